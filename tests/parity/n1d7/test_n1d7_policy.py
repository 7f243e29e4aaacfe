"The policy bundle of N1.7: observation to action, the training loss on real data, open-loop figures."
import json
import shutil

import numpy as np
import pytest
import torch
from bundles import json_of
from safetensors.numpy import load_file

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_step
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.files import read_json
from gr00t_nb.policy.policy import Gr00tPolicy, observation_steps

NORMALIZED, DECODED = 2e-5, 5e-5  # the bundle's own tolerances
TOKENIZER = ("vocab.json", "merges.txt")  # those of the N1.6 bundle beside it


@pytest.fixture(scope="module")
def checkpoint(bundle, tmp_path_factory):
    "The bundle's checkpoint with the backbone's configuration beside the weights."
    folder = tmp_path_factory.mktemp("policy") / "checkpoint"
    folder.mkdir()
    for f in bundle("policy/checkpoint").iterdir(): (folder / f.name).symlink_to(f)
    (folder / "qwen3vl_config.json").symlink_to(bundle("policy/qwen3vl_config.json"))
    return folder


@pytest.fixture(scope="module")
def words(bundle, reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for file in bundle("tokenizer").glob("*.json"): shutil.copy(file, folder)
    for name in TOKENIZER:
        places = [reference / "tokenizer" / name, reference.parent / "n1d6/tokenizer" / name]
        found = next((p for p in places if p.exists()), None)
        if found is None: pytest.skip(f"{name} is at neither of {', '.join(map(str, places))}")
        shutil.copy(found, folder)
    return str(folder)


@pytest.fixture(scope="module")
def tag(bundle):
    said = read_json(bundle("policy/checkpoint/processor_config.json"))["processor_kwargs"]
    return next(iter(said["modality_configs"]))


@pytest.fixture(scope="module")
def policy(checkpoint, tag, words):
    return Gr00tPolicy(tag, checkpoint, device="cpu", round_inputs=False, tokenizer_path=words)


@pytest.fixture(scope="module")
def io(bundle): return load_file(bundle("policy/policy_io.safetensors"))


@pytest.fixture(scope="module")
def told(bundle): return json.loads(bundle("policy/policy_io.json").read_text())


@pytest.fixture(scope="module")
def dataset(reference):
    found = sorted((reference.parent / "datasets").glob("gr1.*"))
    if not found: pytest.skip("datasets/ is absent")
    return LeRobotDataset(found[0])


def observation(policy, io, told, rows=slice(None)) -> dict:
    config, said = policy.get_modality_config(), [[o["language"]] for o in told["observations"]]
    arrays = lambda kind: {k: io[f"obs/{kind}/{k}"][rows] for k in config[kind].modality_keys}
    language = {k: said[rows] for k in config["language"].modality_keys}
    return dict(video=arrays("video"), state=arrays("state"), language=language)


def same(actions: dict, io: dict, prefix: str):
    expected = {k.split("/")[1]: v for k, v in io.items() if k.startswith(f"{prefix}/")}
    assert expected and set(actions) == set(expected)
    for k, v in expected.items():
        assert actions[k].dtype == v.dtype
        np.testing.assert_allclose(actions[k], v, rtol=0, atol=DECODED, err_msg=k)


@pytest.mark.parametrize("rounded", [False, True])
def test_actions(policy, io, told, rounded):
    prefix = f"action_float32_{'model_bf16_rounded_' * rounded}inputs"
    policy.round_inputs = rounded
    noise = dict(noise=io["given/init_noise"])
    try: actions, info = policy.get_action(observation(policy, io, told), options=noise)
    finally: policy.round_inputs = False
    same(actions, io, prefix)
    assert info == {}


def test_each_observation_alone(policy, io, told):
    "The padded one answers otherwise than in the batch."
    together, _ = policy.get_action(observation(policy, io, told), dict(noise=io["given/init_noise"]))
    for i in range(len(told["observations"])):
        rows = slice(i, i + 1)
        noise = dict(noise=io["given/init_noise"][rows])
        actions, _ = policy.get_action(observation(policy, io, told, rows), options=noise)
        same(actions, io, f"action_float32_inputs_sample{i}_alone")
        moved = max(np.abs(actions[k][0] - together[k][i]).max() for k in actions)
        longest = io["train/attention_mask"][i].all()
        assert (moved > 1e-3) == (not longest), (i, moved)


def batch_of(policy, told, dataset, tag) -> dict:
    config = policy.get_modality_config()
    (key,) = config["language"].modality_keys
    def step(o): return read_step(dataset, o["episode"], o["step"], config) | {key: o["language"]}
    return policy.processor.collate([policy.processor(step(o), tag) for o in told["observations"]])


def test_normalized_prediction(policy, io, told):
    "What the network gives, together and each alone."
    config, every = policy.get_modality_config(), range(len(told["observations"]))
    for rows, name in [(every, ""), *(([i], f"_sample{i}_alone") for i in every)]:
        chosen = slice(rows[0], rows[-1] + 1)
        steps = observation_steps(observation(policy, io, told, chosen), config, len(rows))
        batch = policy.processor.collate([policy.processor(s, policy.tag) for s in steps])
        noise = torch.from_numpy(io["given/init_noise"][chosen])
        got = policy.model.get_action(batch, noise=noise)["action_pred"].numpy()
        wanted = io[f"action_float32_inputs{name}__normalized"]
        assert np.abs(got - wanted).max() <= NORMALIZED * max(1, np.abs(wanted).max()), name


def test_training_loss(policy, io, told, dataset, tag):
    batch = batch_of(policy, told, dataset, tag)
    for k in ("input_ids", "attention_mask"): np.testing.assert_array_equal(batch[k], io[f"train/{k}"])
    assert batch["embodiment_id"].tolist() == io["train/embodiment_id"].tolist()
    width, (rows, dims) = io["train/state"].shape[-1], io["train/action"].shape[1:]
    batch["state"] = batch["state"][..., :width]
    for k in ("action", "action_mask"): batch[k] = batch[k][:, :rows, :dims]
    for k in ("state", "action", "action_mask"):
        np.testing.assert_allclose(batch[k], io[f"train/{k}"], rtol=0, atol=2e-6, err_msg=k)
    official = policy.processor.as_rows(batch)
    assert official["image_grid_thw"].tolist() == io["train/image_grid_thw"].tolist()
    sums = official["pixel_values"].double().sum(1).numpy()
    np.testing.assert_allclose(sums, io["train/pixel_values_row_sums"], rtol=0, atol=1e-2)
    drawn = dict(noise=torch.from_numpy(io["given/train_noise"]), time=torch.from_numpy(io["given/train_t"]))
    for given in (batch, official):
        with torch.no_grad(): out = policy.model(given | drawn)
        wanted = io["train/loss_eval_mode"].item()
        assert abs(out["loss"].item() - wanted) <= 1e-5 * wanted
        scale = np.abs(io["train/action_loss"]).max()
        assert np.abs(out["action_loss"].numpy() - io["train/action_loss"]).max() <= 5e-5 * scale


def pytest_generate_tests(metafunc):
    if "run" in metafunc.fixturenames:
        said = json_of(metafunc.config, "policy/policy_io.json", {}, "n1d7")
        metafunc.parametrize("run", sorted(said.get("open_loop", {})))


class Told:
    "A policy that is told one sentence, whatever the episode says."

    def __init__(self, policy, sentence: str): self.policy, self.sentence = policy, sentence
    def __getattr__(self, name): return getattr(self.policy, name)

    def predict(self, steps, *rest, **how):
        (key,) = self.policy.get_modality_config()["language"].modality_keys
        return self.policy.predict([s | {key: self.sentence} for s in steps], *rest, **how)


def test_open_loop(policy, io, told, dataset, run):
    "Every call begins with the same noise."
    case, noise = told["open_loop"][run], io["given/init_noise"][0]
    how = [case["episode"]], case["steps"], case["action_horizon"]
    told_so = Told(policy, case["language"])
    result = evaluate_open_loop(told_so, dataset, *how, noise=noise, progress=False)
    episode = result.episodes[0]
    np.testing.assert_allclose(episode.predicted, io[f"open_loop/{run}/pred"], rtol=0, atol=DECODED)
    np.testing.assert_allclose(episode.truth, io[f"open_loop/{run}/true"], rtol=0, atol=1e-6)
    assert result.mse == pytest.approx(case["mse"], rel=1e-5)
    assert result.mae == pytest.approx(case["mae"], rel=1e-5)
