"""Every case of the state/action bundle, forward, inverse, batched, and its errors, against `StateActionProcessor`."""

import numpy as np
import pytest
from bundles import json_of, tensor_names
from safetensors.numpy import load_file

from gr00t_nb.processing.state_action import StateActionProcessor
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.errors import InputError

STEPS = {  # group of tensors it gives: (name of the step under `errors`, how to get it)
    "normalized_state": ("apply_state", lambda p, g, e: p.apply_state(g["raw_state"], e)),
    "unapplied_state": ("unapply_state", lambda p, g, e: p.unapply_state(g["normalized_state"], e)),
    "normalized_action": (
        "apply_action",
        lambda p, g, e: p.apply_action(g["raw_action"], e, g["raw_state"]),
    ),
    "unapplied_action": (
        "unapply_action",
        lambda p, g, e: p.unapply_action(g["normalized_action"], e, g["raw_state"]),
    ),
    "random_decoded": (
        "decode_random",
        lambda p, g, e: p.unapply_action(g["random_model_output"], e, g["raw_state"]),
    ),
    "batched_decoded": (
        "decode_batched",
        lambda p, g, e: p.unapply_action(g["batched_model_output"], e, g["batched_state"]),
    ),
}


NEEDS = {  # test: whether it has something to compare in a case, with these groups of tensors
    "test_dimensions": lambda case, groups: "state_dim" in case,
    "test_leading_dimensions": lambda case, groups: {
        "normalized_action",
        "unapplied_action",
    } <= groups,
}


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = json_of(metafunc.config, "state_action/cases.json", {})
        tensors = tensor_names(metafunc.config, "state_action/cases.safetensors")
        names = [k.split("/") for k in tensors]
        wanted = NEEDS.get(metafunc.function.__name__, lambda case, groups: True)
        cases = {n: c for n, c in cases.items() if wanted(c, {k[1] for k in names if k[0] == n})}
        metafunc.parametrize(
            "case",
            [pytest.param(c, id=n) for n, c in cases.items()]
            or [pytest.param(None, marks=pytest.mark.skip("no state_action/cases.json"))],
        )


@pytest.fixture
def groups(request, bundle) -> dict:
    "The case's tensors, {group: {key: array}}."
    name, out = request.node.callspec.id, {}
    for key, x in load_file(bundle("state_action/cases.safetensors")).items():
        case, group, leaf = key.split("/", 2)
        if case == name: out.setdefault(group, {})[leaf] = x
    return out


def make(case) -> StateActionProcessor:
    configs = {k: ModalityConfig.from_json(v) for k, v in case["modality_configs"].items()}
    return StateActionProcessor(
        {case["embodiment"]: configs}, {case["embodiment"]: case["statistics"]}, **case["processor"]
    )


def test_case(case, groups):
    errors, embodiment = case["errors"], case["embodiment"]
    unknown = set(errors) - {"construct"} - {step for step, _ in STEPS.values()}
    assert not unknown, f"steps without a test: {unknown}"
    if "construct" in errors:
        with pytest.raises(InputError): make(case)
        return
    processor, compared = make(case), 0
    for group, (step, compute) in STEPS.items():
        if step in errors:
            with pytest.raises(InputError): compute(processor, groups, embodiment)
            compared += 1
        elif group in groups:
            got = compute(processor, groups, embodiment)
            assert set(got) == set(groups[group])
            for key, want in groups[group].items():
                assert got[key].dtype == want.dtype, (group, key)
                assert got[key].shape == want.shape, (group, key)
                # of order 1, where 1e-6 is the bundle's tolerance; numbers of 1e9 have seven digits
                np.testing.assert_allclose(
                    got[key],
                    want,
                    rtol=2e-7,
                    atol=1e-5 if "eef" in key and "decoded" in group else 1e-6,
                    err_msg=f"{group}/{key}",
                )
            compared += 1
    assert compared, "nothing was compared"


def test_dimensions(case):
    processor, e = make(case), case["embodiment"]
    assert processor.state_dim(e) == case["state_dim"]
    assert processor.state_dim(e, include_sincos_expansion=True) == case["state_dim_with_sincos"]
    assert processor.action_dim(e) == case["action_dim"]


def test_leading_dimensions(case, groups):
    "Two leading dimensions give what the single chunk gives."
    processor, e = make(case), case["embodiment"]
    def lead(d): return {k: np.broadcast_to(v, (2, 3, *v.shape)) for k, v in d.items()}
    for compute, args in (
        (processor.apply_action, (groups["raw_action"], groups["raw_state"])),
        (processor.unapply_action, (groups["normalized_action"], groups["raw_state"])),
    ):
        alone, many = compute(args[0], e, args[1]), compute(lead(args[0]), e, lead(args[1]))
        for k in alone:
            assert many[k].shape == (2, 3, *alone[k].shape)
            np.testing.assert_array_equal(many[k][1, 2], alone[k])
