"What holds for every family. No test here names one."
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from preloaded import python
from batches import TAG
from capabilities import TESTS, loss_of, padding_does_not_matter
from dummy import DUMMY

from gr00t_nb.checkup.metadata import check_configuration, read_metadata
from gr00t_nb.data.steps import read_steps
from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.evaluation.diagnostics import diagnose
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.evaluation.predictions import Predictions
from gr00t_nb.checkpoints.base_models import base_limits, tiny_base, tiny_family
from gr00t_nb.families.family import CAPABILITIES
from gr00t_nb.checkpoints.registry import families, family_of
from gr00t_nb.plots.style import save_figure
from gr00t_nb.viz.prediction_figures import plot_prediction
from gr00t_nb.viz.prediction_viewer import PredictionViewer

HERE = Path(__file__).resolve().parent


def some_steps(model, batch, steps: int = 3):
    "AdamW on one batch, as in training: frozen parts are not in the optimizer."
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    torch.manual_seed(0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model.train(), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------- files
def test_save_and_load(family, checkpoint, tmp_path):
    "Weights, configuration and processor come back equal, and the folder is recognized."
    model, processor = family.load_model(checkpoint), family.load_processor(checkpoint)
    family.save(tmp_path, model, processor)
    assert family_of(tmp_path) is family and family_of(model.config) is family
    assert all((tmp_path / name).is_file() for name in family.files)
    again, same = family.load_model(tmp_path), model.state_dict()
    assert list(again.state_dict()) == list(same)
    assert all(torch.equal(v, same[k]) for k, v in again.state_dict().items())
    for config in (again.config, family.read_config(tmp_path)):
        assert config.to_dict() == model.config.to_dict()
    for name in family.files:
        if name.endswith(".json"):
            assert (tmp_path / name).read_text() == (checkpoint / name).read_text(), name


def test_the_tiny_checkpoint_follows_from_its_seed(family, base, tmp_path):
    assert family.tiny_settings() == family.tiny_settings() != family.tiny_settings(seed=1)
    weights = {}
    for name, seed in (("same", 0), ("other", 1)):
        family.save_tiny(tmp_path / name, seed)
        weights[name] = family.load_model(tmp_path / name).state_dict()
    stored = family.load_model(base).state_dict()
    assert all(torch.equal(v, weights["same"][k]) for k, v in stored.items())
    assert any(not torch.equal(v, weights["other"][k]) for k, v in stored.items())
    place = tiny_base(family=family)
    assert family_of(place) is tiny_family(family.tiny_name) is family


def test_limits_are_the_models(family, base):
    horizon, width = family.chunk_shape(family.read_config(base))
    assert base_limits(base)["max_horizon"] == horizon
    assert base_limits(base)["max_action_dim"] == width


def test_the_check_up_asks_what_the_model_takes(family, base, sample):
    "One number or step more than the base model takes is an error, as many as it takes are none."
    limits, found = family.limits(base), {}
    for more in (0, 1):
        modality = json.loads(json.dumps(sample.data.modality))
        config = {k: ModalityConfig([0], ["all"]) for k in ("state", "action")}
        config["action"] = ModalityConfig(range(limits["max_horizon"] + more), ["all"])
        for kind in config:
            size = limits[f"max_{kind}_dim"] + more
            modality[kind] = dict(all=dict(start=0, end=size))
        metadata = read_metadata(sample.data.path, modality)
        check_configuration(metadata, config, limits)
        found[more] = [p for p in metadata.problems if "as the base model takes" in p.expected]
    assert not found[0]
    kinds = ["too_many_dimensions", "too_many_dimensions", "horizon_too_long"]
    assert [p.kind for p in found[1]] == kinds
    assert f"at most {limits['max_state_dim']}" in found[1][0].expected


def test_another_familys_checkpoint_is_refused(family, base):
    for other in families():
        if other is family: continue
        with pytest.raises(InputError, match=other.model_type): other.read_config(base)


# ---------------------------------------------------------------- training
def test_loss_and_gradients(family, checkpoint, batch):
    "Finite, the same again, and every parameter that asks for a gradient gets one."
    found = []
    for _ in range(2):
        model = family.load_model(checkpoint).train()
        torch.manual_seed(0)
        loss = loss_of(model, batch)
        loss.backward()
        trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert loss.isfinite() and all(g is not None for g in trained.values())
        assert all(g.isfinite().all() for g in trained.values())
        found.append([loss.detach(), *trained.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_it_learns(family, checkpoint, batch):
    losses = some_steps(family.load_model(checkpoint), batch, 10)
    assert losses[-1] < losses[0]


def flags_of(family):
    "Every flag that is a switch, alone off."
    return [k for k, v in family.flags.items() if isinstance(v, bool)]


def test_frozen_parts_are_untouched(family, checkpoint, batch):
    "Each switch freezes something; what is frozen is equal after some steps, the rest has moved."
    everything = {k: True if isinstance(v, bool) else 0 for k, v in family.flags.items()}
    for flag in flags_of(family):
        model = family.load_model(checkpoint)
        family.set_trainable(model, **everything)
        all_that_trains = {n for n, p in model.named_parameters() if p.requires_grad}
        family.set_trainable(model, **{flag: False})
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trains < all_that_trains, flag
        some_steps(model, batch)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert moved <= trains, (flag, sorted(moved - trains)[:3])
        assert trains - moved <= set(before) and len(moved) > 0.9 * len(trains), flag


def test_flags_are_the_familys(family, checkpoint):
    model = family.load_model(checkpoint, **family.flags)
    a = family.count_parameters(model)
    family.set_trainable(model, **family.flags)
    assert family.count_parameters(model) == a
    with pytest.raises(InputError, match="has no flag tune_nothing"):
        family.set_trainable(model, tune_nothing=True)


def test_every_parameter_belongs_to_a_part(family, checkpoint):
    *parts, total = family.count_parameters(family.load_model(checkpoint)).values()
    assert tuple(map(sum, zip(*parts))) == total


def test_weight_decay_spares_norms_and_biases(family, checkpoint):
    model = family.load_model(checkpoint)
    decayed = set(family.decayed(model))
    assert decayed <= {n for n, _ in model.named_parameters()}
    for name, module in model.named_modules():
        own = {f"{name}.{n}" for n, _ in module.named_parameters(recurse=False)}
        if isinstance(module, torch.nn.LayerNorm): assert not own & decayed, name
        if isinstance(module, torch.nn.Linear):
            assert own & decayed == own - {f"{name}.bias"}, name


# ---------------------------------------------------------------- answers
def test_a_policy_in_a_fresh_process(family, checkpoint, batch, sample, tmp_path):
    "A trained model answers from its checkpoint, in another process, as it does in memory."
    model, processor = family.load_model(checkpoint), family.load_processor(checkpoint)
    some_steps(model, batch)
    family.save(tmp_path, model, processor)
    done = python(HERE / "ask.py", tmp_path, sample.data.path, tmp_path / "answer.npz")
    assert done.returncode == 0, done.stderr
    steps = read_steps(sample.data, 0, [0, 20, 40], sample.robot)
    shape = family.chunk_shape(model.config)
    noise = np.random.default_rng(7).standard_normal(shape, np.float32)
    asked = processor.collate([processor(s, TAG) for s in steps])
    noise = torch.from_numpy(noise).expand(len(steps), *shape)
    chunk = model.eval().get_action(asked, noise=noise)["action_pred"]
    state = lambda k: np.stack([s[f"state.{k}"] for s in steps])
    states = {k: state(k) for k in sample.robot["state"].modality_keys}
    expected = processor.decode_action(chunk.numpy(), TAG, states)
    answer = np.load(tmp_path / "answer.npz")
    assert set(answer) == set(expected)
    for group, a in expected.items(): assert np.array_equal(answer[group], a), group


def test_several_answers_are_each_what_they_are_alone(policy, sample):
    noise = np.stack([policy.draw_noise(seed) for seed in range(3)])[:, None]
    together = policy.predict(sample.steps[:2], noise)
    for i, one in enumerate(noise[:, 0]):
        for group, a in policy.predict(sample.steps[:2], one).items():
            assert together[group].shape == (3, *a.shape)
            assert np.abs(together[group][i] - a).max() <= 1e-4 * max(1, np.abs(a).max())


@pytest.mark.parametrize("compile", [None, lambda module: module], ids=["kernels", "joined runs"])
def test_an_accelerated_policy_answers_the_same(policy, sample, compile):
    "The first question is traced, the second proves what was made of it, the third is played."
    noise = policy.draw_noise(0)
    asked = (2, 1, 2, 2, 1, 1)
    plain = {n: policy.predict(sample.steps[:n], noise) for n in (2, 1)}
    policy.accelerate()
    policy.graphs.compile = compile
    try:
        quick = [policy.predict(sample.steps[:n], noise) for n in asked]
        assert all(r.proven for r in policy.graphs.recordings.values())
    finally: policy.graphs = None
    for n, b in zip(asked, quick):
        for group, a in plain[n].items(): np.testing.assert_allclose(b[group], a, atol=1e-4, err_msg=group)


def test_open_loop(policy, sample):
    result = evaluate_open_loop(policy, sample.data, [0], steps=40, progress=False)
    assert np.isfinite([result.mse, result.mae]).all() and "all" in repr(result)
    chunks = result.episodes[0].chunks
    assert chunks.shape[1] <= policy.family.chunk_shape(policy.model.config)[0]


def test_viewers(policy, sample, tmp_path):
    predictions = Predictions(policy, sample.data, samples=2)
    figure = plot_prediction(predictions, episode=0, step=20, strip=False)
    assert save_figure(figure, tmp_path / "prediction.png").stat().st_size > 20_000


def test_the_prediction_viewer_asks(policy, sample):
    "Its fan, its survey of an episode and another step: what a user touches."
    shown = PredictionViewer({"it": policy}, sample.data, episode=0, step=20, samples=2, survey=False)
    try:
        assert shown.predictions.width == 7 and shown.prompt.value
        drawn = [len(a.get_lines()) for a in shown._fan.fan.axes]
        assert len(drawn) == len(shown.chosen) and min(drawn) > 0
        list(shown.predictions.survey(0, stride=60))
        assert np.isfinite(shown.predictions.errors("it", 0)).any()
        assert ("denoising" in shown.view.options) == ("denoising" in policy.family.capabilities)
    finally: shown.cameras.store.close()


def test_the_diagnosis_is_made(policy, sample):
    d = diagnose(policy, sample.data, [0], steps=40, questions=2, draws=2, progress=False)
    assert {f.kind for f in d.findings()} >= {"cameras", "prompt"} and np.isfinite(d.open_loop.mse)
    assert len(d.plot().axes) > 3


# ---------------------------------------------------------------- capabilities
def test_every_declared_capability_has_a_test():
    declared = set().union(*(f.capabilities for f in families()))
    assert declared <= set(TESTS) and set(TESTS) == set(CAPABILITIES)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_capability(capability, family, checkpoint, sample, tmp_path):
    if capability in family.capabilities: TESTS[capability](family, checkpoint, sample, tmp_path)
    else:
        with pytest.raises(InputError, match=f"has no {capability}"): family.require(capability)


def test_padding(family, checkpoint, sample, tmp_path):
    if "padding_matters" in family.capabilities: return  # has its test
    padding_does_not_matter(family, checkpoint, sample, tmp_path)


def test_switches_ask_for_their_capability(family, checkpoint):
    model = family.load_model(checkpoint)
    for capability, use in dict(
        dropout=lambda: family.set_dropout(model, 0.1),
        embodiment_rows=lambda: family.train_rows(model, [10]),
        gradient_checkpointing=lambda: family.recompute(model),
    ).items():
        if capability in family.capabilities: use()
        else:
            with pytest.raises(InputError, match=f"has no {capability}"): use()


def test_no_test_names_a_family():
    "The dummy's own files may; what is tested of all is tested of none in particular."
    names = {w for f in families() if f is not DUMMY for w in (f.name, f.model_type, f.tiny_name)}
    for file in HERE.glob("*.py"):
        assert not [w for w in names if w in file.read_text()], file.name
