"What an idea promises for every family: it has its effect, is written down, and is the run's for good."
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import ROOT, TAG
from test_training import weights

from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.engine.hooks import Hooks, WeightedLoss
from gr00t_nb.errors import InputError
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.runs.progress import Progress
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune

IDEA = '''
import numpy as np

def loss(outputs, batch):
    return 2 * outputs["loss"]

def images(image, rng):
    return np.minimum(image, rng.integers(100, 200)).astype(np.uint8)
'''


class Silent(Progress):
    "No bar."
    def on_train_begin(self, *args, **kwargs): pass


@pytest.fixture(scope="module")
def run(family, base, tmp_path_factory):
    "Fine-tunes the tiny model for two steps, the rate at its full height in the first."
    folder = tmp_path_factory.mktemp(f"hooks-{family.tiny_name}")
    config = FinetuneConfig(
        str(base),
        str(ROOT / "data_samples/cube_to_bowl"),
        "NEW_EMBODIMENT",
        str(ROOT / "data_samples/cube_to_bowl_config.py"),
        check_data=False,
        max_steps=2,
        warmup_ratio=0.0,
        logging_steps=1,
        global_batch_size=4,
        learning_rate=1e-3,
        dataloader_num_workers=0,
        dropout=0.0 if "dropout" in family.capabilities else None,
    )

    def run(name: str, idea: Hooks | None = None, **changes):
        now = replace(config, output_dir=str(folder / name), **changes)
        try: return finetune(now, [Silent(folder / name / "log.jsonl")], idea)
        finally: MODALITY_CONFIGS.pop(TAG, None)

    return run


@pytest.fixture(scope="module")
def usual(run) -> SimpleNamespace:
    result = run("usual")
    return SimpleNamespace(
        losses=[r["loss"] for r in result.log],
        weights=weights(result.output_dir),
        names=[n for n, p in result.model.named_parameters() if p.requires_grad],
        log=result.log,
    )


def test_a_family_gives_each_error_of_a_chunk(family, checkpoint, batch):
    "And what their sum is divided by."
    outputs = family.load_model(checkpoint)(batch)
    assert outputs["action_loss"].shape == batch["action"].shape
    assert torch.equal(outputs["action_loss"].sum() / outputs["counted"], outputs["loss"])


def test_a_loss_with_weights_of_one_is_the_familys_to_the_bit(run, usual):
    ones = run("ones", Hooks(loss=WeightedLoss(groups={"gripper": 1}, horizon=[1.0] * 16)))
    assert [r["loss"] for r in ones.log] == usual.losses
    for name, v in weights(ones.output_dir).items(): assert torch.equal(v, usual.weights[name]), name


@pytest.mark.engine
def test_weights_of_groups_and_steps_are_the_losss(run, usual):
    "Another loss where only the gripper's first step counts; what the robot lacks is said."
    first = [1.0] + [0.0] * 15
    gripper = run("gripper", Hooks(loss=WeightedLoss(groups={"single_arm": 0}, horizon=first)))
    assert 0 < gripper.log[0]["loss"] < usual.losses[0] / 4
    with pytest.raises(InputError, match="Did you mean 'gripper'"):
        run("wrong", Hooks(loss=WeightedLoss(groups={"griper": 2})))


def test_the_same_idea_in_parts_and_as_a_graph(run, usual):
    "Losses of a batch that is computed in parts, or recorded, are the whole batch's."
    idea = lambda: Hooks(loss=WeightedLoss(groups={"gripper": 3}))
    whole, parts = run("whole", idea()), run("parts", idea(), micro_batch_size=1)
    graph = run("graph", idea(), step_graph=True)
    for other in (parts, graph):
        assert abs(other.log[0]["loss"] - whole.log[0]["loss"]) < 1e-5 * whole.log[0]["loss"]
    assert abs(whole.log[0]["loss"] - usual.losses[0]) > 1e-3 * usual.losses[0]


@pytest.mark.engine
def test_what_trains_and_how_fast(run, usual):
    "In a step what is named moves by its own rate, and all else stays."
    *_, one = [n for n in usual.names if usual.weights[n].dim() > 1]
    other = usual.names[0]
    after = {}
    for name, idea in dict(
        still=Hooks(trainable=[other]),
        fast=Hooks(trainable=[one]),
        slow=Hooks(trainable=[one, other], learning_rates={one: 0.1}),
    ).items():
        result = run(name, idea, max_steps=1, weight_decay=0.0)
        trains = {n for n, p in result.model.named_parameters() if p.requires_grad}
        assert trains == set(idea.trainable)
        after[name] = weights(result.output_dir)
    row, = result.log
    assert row[f"learning_rate/{one}"] == pytest.approx(0.1 * row["learning_rate"])
    moved = {name: after[name][one] - after["still"][one] for name in ("fast", "slow")}
    assert moved["fast"].abs().max() > 1e-4
    assert torch.allclose(moved["slow"], moved["fast"] / 10, atol=1e-6)
    for n, v in after["fast"].items(): assert n in (one, other) or torch.equal(v, after["still"][n]), n


@pytest.mark.engine
def test_a_file_is_the_same_idea_and_stays_the_runs(run, usual, tmp_path):
    "In loader processes, too, and from a cache of frames; with another text it is another run."
    file = tmp_path / "my_idea.py"
    file.write_text(IDEA)
    first = run("file", hooks=str(file), save_steps=1)
    assert first.log[0]["loss"] != 2 * usual.losses[0]  # images and loss
    with_loaders = run("loaders", hooks=str(file), dataloader_num_workers=1, frame_cache=True)
    assert [r["loss"] for r in with_loaders.log] == [r["loss"] for r in first.log]
    written = (first.output_dir / "checkpoint-2/experiment_cfg/hooks.py").read_text()
    assert 'return 2 * outputs["loss"]' in written and "rng.integers(100, 200)" in written
    file.write_text(IDEA.replace("2 *", "3 *"))
    for words, changes in (
        ("hooks.loss has changed", dict(hooks=str(file))),
        ("hooks.loss is not given; hooks.images is not given", {}),
    ):
        with pytest.raises(InputError, match=words): run("file", **changes)
    file.rename(tmp_path / "elsewhere.py").write_text(IDEA)
    again = run("file", hooks=str(tmp_path / "elsewhere.py"))
    assert [r["loss"] for r in again.log] == [r["loss"] for r in first.log]
    with pytest.raises(InputError, match="as an argument"): run("both", Hooks(), hooks=str(file))


def test_of_adapters_some_train(family, run):
    "Patterns match the adapters' own names, and a run goes on with them."
    if not family.blocks: pytest.skip("no part with blocks")
    part, where = next(reversed(family.blocks.items()))
    idea = Hooks(trainable=["*lora_B*"], learning_rates={f"{where}.0.*": 2})
    adapters = dict(lora_parts=[part], lora_rank=2, save_steps=1)
    first = run("adapters", idea, **adapters)
    trains = [n for n, p in first.model.named_parameters() if p.requires_grad]
    assert trains and all("lora_B" in n and n.startswith(where) for n in trains)
    shutil.rmtree(first.output_dir / "checkpoint-2")
    again = run("adapters", idea, **adapters)
    assert [r["loss"] for r in again.log] == [r["loss"] for r in first.log]


@pytest.mark.engine
def test_what_is_not_reached_ends_the_run(run, monkeypatch):
    "A reader that ignores the hook, as an example; and what is no loss."
    def ignore(self, sample): return sample
    monkeypatch.setattr("gr00t_nb.loading.samples.StepReader._changed", ignore)
    with pytest.raises(InputError, match="hooks.images was given and had no effect"):
        run("lost", Hooks(images=lambda image, rng: image))
    monkeypatch.undo()
    with pytest.raises(InputError, match="expected uint8 of shape"):
        run("no image", Hooks(images=lambda image, rng: image / 255))
    with pytest.raises(InputError, match="cannot be trained on"):
        run("no loss", Hooks(loss=lambda outputs, batch: 1.0))
    with pytest.raises(InputError, match="matches no parameter"): run("typo", Hooks(trainable=["hed.*"]))


@pytest.mark.engine
def test_an_idea_that_fails_says_where(run):
    "In the training process and in a loader process."
    def torn(image, rng): raise ValueError("no mask")
    here = r".*test_hooks\.py, line \d+"
    with pytest.raises(InputError, match="hooks.loss ended with KeyError: 'los', in " + here):
        run("misspelt", Hooks(loss=lambda outputs, batch: outputs["los"]))
    with pytest.raises(InputError, match="hooks.images ended with ValueError: no mask, in " + here):
        run("torn", Hooks(images=torn), dataloader_num_workers=1)
    with pytest.raises(InputError, match="hooks.loss ended with TypeError: .* called with other arguments"):
        run("short", Hooks(loss=lambda outputs: outputs["loss"]))


def test_a_patch_of_the_processor_trains(run, usual, monkeypatch):
    "Whoever replaces what the processor does to images replaces it in training."
    kept = Gr00tProcessor.images
    black = lambda *args: [[np.zeros_like(i) for i in own] for own in kept(*args)]
    monkeypatch.setattr(Gr00tProcessor, "images", black)
    assert run("black").log[0]["loss"] != usual.losses[0]
