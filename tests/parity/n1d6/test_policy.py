"The policy bundle: observation to action, the training loss on real data, open-loop figures."
import json

import numpy as np
import pytest
import torch
from bundles import json_of
from safetensors.numpy import load_file

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_step
from gr00t_nb.files import read_json
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.policy.policy import Gr00tPolicy


@pytest.fixture(scope="module")
def checkpoint(bundle, reference, tmp_path_factory):
    "The bundle's checkpoint folder as the kit writes one: with the backbone's configuration beside the weights."
    folder = tmp_path_factory.mktemp("policy") / "checkpoint"
    folder.mkdir()
    for f in bundle("policy/checkpoint").iterdir(): (folder / f.name).symlink_to(f)
    (folder / "eagle_config.json").symlink_to(bundle("policy/eagle_config.json"))
    return folder


@pytest.fixture(scope="module")
def tag(bundle):
    return next(
        iter(
            read_json(bundle("policy/checkpoint/processor_config.json"))["processor_kwargs"][
                "modality_configs"
            ]
        )
    )


@pytest.fixture(scope="module")
def policy(checkpoint, tag, bundle):
    return Gr00tPolicy(
        tag, checkpoint, device="cpu", round_inputs=False, tokenizer_path=str(bundle("tokenizer"))
    )


@pytest.fixture(scope="module")
def io(bundle): return load_file(bundle("policy/policy_io.safetensors"))


@pytest.fixture(scope="module")
def told(bundle): return json.loads(bundle("policy/policy_io.json").read_text())


def observation(policy, io, told, rows=slice(None)) -> dict:
    config = policy.get_modality_config()
    return dict(
        video={k: io[f"obs/video/{k}"][rows] for k in config["video"].modality_keys},
        state={k: io[f"obs/state/{k}"][rows] for k in config["state"].modality_keys},
        language={
            k: [[o["language"]] for o in told["observations"]][rows]
            for k in config["language"].modality_keys
        },
    )


@pytest.mark.parametrize(
    "rounded, prefix", [(False, "action_float32_inputs"), (True, "action_with_bf16_rounded_inputs")]
)
def test_actions(policy, io, told, rounded, prefix):
    policy.round_inputs = rounded
    try:
        actions, info = policy.get_action(
            observation(policy, io, told), options=dict(noise=io["given/init_noise"])
        )
    finally:
        policy.round_inputs = False
    expected = {k.split("/")[1]: v for k, v in io.items() if k.startswith(prefix + "/")}
    assert expected, f"the bundle holds no {prefix}"
    assert set(actions) == set(expected) and info == {}
    for k, v in expected.items():
        assert actions[k].dtype == v.dtype
        np.testing.assert_allclose(actions[k], v, rtol=0, atol=2e-5, err_msg=k)


def test_one_observation_alone(policy, io, told):
    actions, _ = policy.get_action(
        observation(policy, io, told, slice(0, 1)), options=dict(noise=io["given/init_noise"][:1])
    )
    for k in actions:
        np.testing.assert_allclose(
            actions[k],
            io[f"action_float32_inputs_first_sample_alone/{k}"],
            rtol=0,
            atol=2e-5,
            err_msg=k,
        )


def batch_of(policy, io, told, reference, tag):
    dataset = LeRobotDataset(next(iter(sorted((reference.parent / "datasets").glob("gr1.*")))))
    config, key = (
        policy.get_modality_config(),
        policy.get_modality_config()["language"].modality_keys[0],
    )
    steps = [
        read_step(dataset, o["episode"], o["step"], config) | {key: o["language"]}
        for o in told["observations"]
    ]
    return policy.processor.collate([policy.processor(s, tag) for s in steps])


def test_normalized_prediction(policy, io, told, reference, tag):
    if not (reference.parent / "datasets").exists(): pytest.skip("datasets/ is absent")
    batch = {
        k: v
        for k, v in batch_of(policy, io, told, reference, tag).items()
        if not k.startswith("action")
    }
    got = policy.model.get_action(batch, noise=torch.from_numpy(io["given/init_noise"]))[
        "action_pred"
    ].numpy()
    expected = io["normalized_action_pred_float32_inputs"]
    assert np.abs(got - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_training_loss(policy, io, told, reference, tag):
    if not (reference.parent / "datasets").exists(): pytest.skip("datasets/ is absent")
    batch = batch_of(policy, io, told, reference, tag)
    for k in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(batch[k], io[f"train/{k}"])
    width, rows = io["train/state"].shape[-1], io["train/action"].shape[1:]
    batch["state"] = batch["state"][..., :width]  # the bundle's processor pads wider than its small model reads
    for k in ("action", "action_mask"): batch[k] = batch[k][:, :rows[0], :rows[1]]
    for k in ("state", "action", "action_mask"):
        np.testing.assert_allclose(batch[k], io[f"train/{k}"], rtol=0, atol=1e-6, err_msg=k)
    with torch.no_grad():
        out = policy.model(
            batch
            | dict(
                noise=torch.from_numpy(io["given/train_noise"]),
                time=torch.from_numpy(io["given/train_t"]),
            )
        )
    assert (
        abs(out["loss"].item() - io["train/loss_eval_mode"].item())
        <= 1e-5 * io["train/loss_eval_mode"].item()
    )
    scale = np.abs(io["train/action_loss"]).max()
    assert np.abs(out["action_loss"].numpy() - io["train/action_loss"]).max() <= 1e-5 * scale


def pytest_generate_tests(metafunc):
    if "trajectory" in metafunc.fixturenames:
        cases = json_of(metafunc.config, "policy/policy_io.json", {}).get("open_loop", {})
        metafunc.parametrize(
            "trajectory",
            list(cases)
            or [
                pytest.param(
                    None,
                    marks=pytest.mark.skip(reason="policy/policy_io.json holds no open-loop cases"),
                )
            ],
        )


def test_open_loop(policy, told, bundle, reference, trajectory):
    if not (reference.parent / "datasets").exists(): pytest.skip("datasets/ is absent")
    case, data = told["open_loop"][trajectory], load_file(bundle("policy/open_loop.safetensors"))
    dataset = LeRobotDataset(next(iter(sorted((reference.parent / "datasets").glob("gr1.*")))))
    result = evaluate_open_loop(
        policy,
        dataset,
        [case["traj_id"]],
        case["steps"],
        case["action_horizon"],
        noise=data["given/init_noise_every_call"][0],
        progress=False,
    )
    episode = result.episodes[0]
    np.testing.assert_allclose(episode.predicted, data[f"{trajectory}/pred"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(episode.truth, data[f"{trajectory}/gt"], rtol=0, atol=1e-6)
    assert (
        abs(result.mse - case["mse"]) <= 1e-5 * case["mse"]
        and abs(result.mae - case["mae"]) <= 1e-5 * case["mae"]
    )
