"What survives: a run that was stopped in mid-epoch, a save that was killed at any of its writes."
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from batches import ROOT, TAG
from dummy import DUMMY
from transformers import TrainerCallback, TrainingArguments

from gr00t_nb.engine.trainer import Gr00tTrainer
from gr00t_nb.loading.order import DataSource
from gr00t_nb.loading.samples import StepDataset
from gr00t_nb.model import checkpoints as weights_on_disk
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics
from gr00t_nb.checkpoints.manifest import verify
from gr00t_nb.runs.run_folder import checkpoints, newest_checkpoint
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune

DATA = ROOT / "data_samples/cube_to_bowl"
TORN = "videos/chunk-000/observation.images.front/episode_000001.mp4"
STEPS, STOP = 6, 4


class StopAfter(TrainerCallback):
    def __init__(self, step: int = STOP): self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.fixture
def torn(tmp_path) -> Path:
    "The sample with links for files, but for one video that cannot be read."
    copy = tmp_path / "data"
    for file in DATA.rglob("*"):
        place = copy / file.relative_to(DATA)
        if file.is_dir(): place.mkdir(parents=True)
        elif str(file.relative_to(DATA)) != TORN: place.symlink_to(file)
    (copy / TORN).write_bytes(b"no video")
    return copy


@contextmanager
def watched(seen: list):
    "Notes down what the model is given: a number for each batch."
    step = Gr00tTrainer.training_step
    def noted(self, model, inputs, *args):
        parts = inputs["action"], inputs["state"], *inputs["pixel_values"]
        seen.append([p.double().sum().item() for p in parts])
        return step(self, model, inputs, *args)
    Gr00tTrainer.training_step = noted
    try: yield
    finally: Gr00tTrainer.training_step = step


def states(checkpoint: Path) -> dict:
    "Everything that a checkpoint holds, weights apart."
    load = partial(torch.load, weights_only=True)
    return {f.name: load(f) for f in sorted(checkpoint.glob("*.pt*"))}


def same(a, b) -> bool:
    "Of nested states, to the bit."
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


def asked(family, data: Path, output: Path) -> FinetuneConfig:
    "With everything that draws, as far as the family has it."
    can = family.capabilities
    return FinetuneConfig(
        family.tiny_name,
        str(data),
        "NEW_EMBODIMENT",
        str(ROOT / "data_samples/cube_to_bowl_config.py"),
        exclude_episodes=[*range(2, 40)],  # two are left: an epoch of some two hundred samples
        check_data=False,
        skip_broken=True,
        random_rotation_angle=5,
        color_jitter_params=dict(brightness=0.3),
        global_batch_size=16,
        gradient_accumulation_steps=2,
        micro_batch_size=6,
        max_steps=STEPS,
        save_steps=100,
        logging_steps=3,  # the run is stopped between two lines
        learning_rate=1e-3,
        dataloader_num_workers=2,
        output_dir=str(output),
        **dict(dropout=0.2) if "dropout" in can else {},
        **dict(state_dropout_prob=0.5) if "state_dropout" in can else {},
    )


def once_and_in_parts(config: FinetuneConfig, folder: Path, stop: int = STOP) -> tuple:
    "A run, the same stopped and gone on with, and what their models were given: to the bit the same."
    config, parts = (replace(config, output_dir=str(folder / n)) for n in ("once", "parts"))
    seen = [], []
    with watched(seen[0]): once = finetune(config)
    with watched(seen[1]):
        finetune(parts, [StopAfter(stop)])
        again = finetune(parts)
    assert seen[0] == seen[1]
    assert [r["loss"] for r in again.log] == [r["loss"] for r in once.log]
    a, b = (newest_checkpoint(c.output_dir) for c in (config, parts))
    assert same(states(a), states(b)) and {"optimizer.pt", "rng_state.pth"} <= set(states(a))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    return once, again, seen[0]


def test_a_resumed_run_is_the_run_to_the_bit(family, tmp_path):
    """Dropout and hidden states, turned and tinted images: what a family draws itself goes on where it was.
    Accumulation, loaders and epochs know no family: the next test has them."""
    small = dict(global_batch_size=2, gradient_accumulation_steps=1, micro_batch_size=None, skip_broken=False)
    config = replace(asked(family, DATA, tmp_path), **small, max_steps=3, logging_steps=1, dataloader_num_workers=0)
    once, _, seen = once_and_in_parts(config, tmp_path, stop=1)
    assert len(seen) == len(once.log) == 3


@pytest.mark.engine("first")
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_run_stopped_in_mid_epoch_is_the_run_to_the_bit(family, torn, tmp_path):
    """With all that draws, adds up or replaces: dropout, turned and tinted images, micro batches with a
    rest, two batches to a step, loader processes, an unreadable video, an epoch that ends inside a batch."""
    once, again, seen = once_and_in_parts(asked(family, torn, tmp_path), tmp_path)
    epoch = sum(once.prepared.root.dataset.episodes[e].length - 15 for e in (0, 1))
    assert 2 * 16 * STOP < epoch < 2 * 16 * STEPS and epoch % 16  # stopped before its end
    assert len(seen) == 2 * STEPS
    assert once.skipped and [r["skipped"] for r in once.log] == [r["skipped"] for r in again.log]


# ------------------------------------------------------------------- killed while it saves
SAVED = 2  # steps after which the save comes that is killed


def trainer_of(start: Path, sample, output: Path, steps: int = SAVED, done: int = 0) -> Gr00tTrainer:
    processor = DUMMY.load_processor(start)
    processor.set_embodiment(TAG, sample.robot, embodiment_statistics(sample.data, sample.robot))
    samples = StepDataset([DataSource(sample.data, TAG, sample.robot)], processor, seed=42)
    args = TrainingArguments(
        output_dir=output,
        use_cpu=True,
        max_steps=steps,
        lr_scheduler_type="constant",  # whatever the number of steps
        save_steps=1,
        save_total_limit=1,
        report_to="none",
        remove_unused_columns=False,
        ignore_data_skip=True,
        disable_tqdm=True,
    )
    model = DUMMY.load_model(start)
    return Gr00tTrainer(model, args, samples, processor, 42, global_batch_size=2, start_step=done)


class Killer:
    "Ends the process at the k-th write of any kind, before it is done or when it is half done."
    EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"}

    def __init__(self, k: int):
        self.left = k
        sys.addaudithook(self.audit)  # stays for ever: for a child process alone
        os.fsync = self.before(os.fsync)
        torch.save, weights_on_disk.save_file = self.half(torch.save), self.half(safetensors.torch.save_file)

    def tick(self) -> bool:
        self.left -= 1
        return self.left == 0

    def audit(self, event: str, args):
        writes = event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in self.EVENTS) and self.tick(): os._exit(137)

    def before(self, call):
        def counted(*args):
            if self.tick(): os._exit(137)
            return call(*args)
        return counted

    def half(self, save):
        def counted(obj, file, *args, **kwargs):
            save(obj, file, *args, **kwargs)
            if not self.tick(): return
            with open(file, "rb+") as f: f.truncate(os.path.getsize(file) // 2)
            os._exit(137)
        return counted


def killed(trainer: Gr00tTrainer, k: int) -> bool:
    "Saves in a child process that is killed at its k-th write; whether it came so far."
    child = os.fork()
    if child == 0:
        try:
            Killer(k)
            trainer._save_checkpoint(trainer.model, None)
            os._exit(0)
        finally: os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 137)
    return code == 137


def trained(start: Path, sample, output: Path, steps: int, done: int = 0) -> Gr00tTrainer:
    "A run to its end, from a checkpoint if there is one."
    trainer = trainer_of(start, sample, output, steps, done)
    trainer.train(resume_from_checkpoint=str(start) if done else None)
    return trainer


def test_a_save_that_is_killed_at_any_write(sample, tmp_path):
    "The newest checkpoint is whole then, nothing half written stays, and a run from it ends as it should."
    DUMMY.save_tiny(tmp_path / "base")
    trainer = trained(tmp_path / "base", sample, tmp_path / "run", SAVED)
    last = trained(tmp_path / "base", sample, tmp_path / "whole", SAVED + 1)
    expected = last.model.state_dict()
    os.rename(tmp_path / "run" / f"checkpoint-{SAVED}", tmp_path / "kept")  # the one to be replaced
    outcomes = {}
    for k in range(1, 1000):
        trainer.args.output_dir = place = tmp_path / f"killed-{k}"
        shutil.copytree(tmp_path / "kept", place / f"checkpoint-{SAVED}")
        trainer.state.global_step = SAVED + 1
        reached = killed(trainer, k)
        newest = newest_checkpoint(place)
        verify(newest)
        outcomes.setdefault(newest.name, newest)
        trainer.clear_unfinished()
        assert newest in checkpoints(place) and {p.name for p in place.iterdir()} <= set(outcomes), k
        if not reached: break
    assert k > 40 and [*outcomes] == [f"checkpoint-{n}" for n in (SAVED, SAVED + 1)]
    before, after = outcomes.values()
    again = trained(before, sample, tmp_path / "again", SAVED + 1, done=SAVED)
    assert same(again.model.state_dict(), expected)
    assert after.name == newest.name and [p.name for p in place.iterdir()] == [after.name]
