"What `--cache-features` promises for every family: a run that reads what a frozen network saw is the run that looks."
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import ROOT, TAG
from preloaded import python
from test_resume import STOP, StopAfter, same, states
from test_training import weights

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.engine.first_look import FirstLook
from gr00t_nb.errors import InputError
from gr00t_nb.files import read_jsonl
from gr00t_nb.loading.features import FeatureStore
from gr00t_nb.loading.order import DataSource
from gr00t_nb.runs.run_folder import newest_checkpoint
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune, main
from gr00t_nb.training.plan import plan_run

DATA = ROOT / "data_samples/cube_to_bowl"
STILL = dict(tune_llm=False, tune_visual=False, tune_top_llm_layers=0)  # nothing that sees is trained


@pytest.fixture
def config(family, tmp_path, monkeypatch) -> FinetuneConfig:
    "Two epochs and a half of one episode, with all that draws behind the front."
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path / "cache"))
    can = family.capabilities
    return FinetuneConfig(
        family.tiny_name,
        str(DATA),
        "NEW_EMBODIMENT",
        str(ROOT / "data_samples/cube_to_bowl_config.py"),
        exclude_episodes=[*range(1, 40)],
        check_data=False,
        augment=False,
        global_batch_size=32,
        micro_batch_size=12,
        max_steps=6,
        save_steps=100,
        logging_steps=1,
        learning_rate=1e-3,
        dataloader_num_workers=0,
        output_dir=str(tmp_path / "direct"),
        **{k: v for k, v in STILL.items() if k in family.flags},
        **dict(dropout=0.2) if "dropout" in can else {},
        **dict(state_dropout_prob=0.5) if "state_dropout" in can else {},
    )


def of(config: FinetuneConfig, name: str, **changes) -> FinetuneConfig:
    "The same run in a folder of its own, with features kept."
    place = str(Path(config.output_dir).with_name(name))
    return replace(config, **dict(cache_features=True, output_dir=place) | changes)


def needs_a_front(family):
    if "frozen_front" not in family.capabilities: pytest.skip("it has no front that can be frozen")


def is_the_same_run(one: FinetuneConfig, other: FinetuneConfig):
    "The newest checkpoints, to the bit."
    a, b = (newest_checkpoint(c.output_dir) for c in (one, other))
    assert same(states(a), states(b))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_two_steps_with_features_are_the_run_to_the_bit(family, config):
    "What differs between families: what their fronts see, and that nothing else is read from it."
    needs_a_front(family)
    short = replace(config, global_batch_size=4, micro_batch_size=None, max_steps=2)
    direct, again = finetune(short), finetune(of(short, "cached"))
    assert [r["loss"] for r in again.log] == [r["loss"] for r in direct.log]
    is_the_same_run(short, of(short, "cached"))


@pytest.mark.engine
def test_a_run_with_features_is_the_run_to_the_bit(family, config, capfd):
    "In float32 on a CPU, over epochs, with loader processes, and stopped and resumed: what is there is read again."
    needs_a_front(family)
    direct, kept = finetune(config), of(config, "cached", dataloader_num_workers=2)
    finetune(kept, [StopAfter()])
    made = {f: f.stat().st_mtime_ns for f in (Path(config.output_dir).parent / "cache/features").rglob("*.safetensors")}
    told = capfd.readouterr().out
    again = finetune(kept)
    epoch = direct.prepared.samples
    assert 32 * STOP > epoch and 32 * 6 > 2 * epoch and len(made) == 1
    assert "steps are looked at first" in told and f"kept in {next(iter(made)).parent}" in told
    assert "kept in" in (told := capfd.readouterr().out) and "looked at first" not in told
    assert all(f.stat().st_mtime_ns == t for f, t in made.items())
    assert [r["loss"] for r in again.log] == [r["loss"] for r in direct.log]
    is_the_same_run(config, kept)


@pytest.mark.engine
def test_two_processes_share_the_first_look(family, config, tmp_path):
    "The weights are those of two processes that look in every step, to the bit."
    needs_a_front(family)
    two = replace(config, exclude_episodes=[*range(2, 40)], global_batch_size=8, micro_batch_size=None, max_steps=3)
    for run in (two, of(two, "cached")):
        done = python(Path(__file__).with_name("train.py"), *run.to_flags(), processes=2)
        assert done.returncode == 0, done.stderr[-4000:]
    assert len([*(tmp_path / "cache/features").rglob("*.safetensors")]) == 2
    a, b = (weights(tmp_path / name) for name in ("direct", "cached"))
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    logs = [[r["loss"] for r in read_jsonl(tmp_path / name / "log.jsonl")] for name in ("direct", "cached")]
    assert logs[0] == logs[1]


def test_what_trains_cannot_be_kept(family, config):
    "Nor can what changes; a family without a front says so, too."
    if "frozen_front" not in family.capabilities:
        with pytest.raises(InputError, match="has no frozen_front"): finetune(of(config, "cached"))
        return
    for wrong, sentence in (
        (dict(augment=True), "changes images anew in every epoch: add --no-augment"),
        (dict(tune_llm=True), "of it .*language layers train: freeze them .--no-tune-llm"),
        (dict(tune_visual=True), "vision tower"),
        (dict(lora_parts=["language"]), "language layers train"),
    ):
        with pytest.raises(InputError, match=sentence): finetune(of(config, "cached", **wrong))
    assert not Path(of(config, "cached").output_dir).exists()


@pytest.mark.engine
def test_a_plan_says_how_large_they_are(family, config, tmp_path):
    needs_a_front(family)
    plan, direct = plan_run(of(config, "cached")), plan_run(config)
    assert f"GB in {tmp_path}/cache/features" in repr(plan) and "features:" not in repr(direct)
    assert plan.memory.operations < direct.memory.operations and plan.peak < direct.peak
    finetune(of(config, "cached", max_steps=1))
    file, = (tmp_path / "cache/features").rglob("*.safetensors")
    assert abs(plan.features - file.stat().st_size) <= 0.05 * plan.features


FRONT = "videos/chunk-000/observation.images.front/episode_000000.mp4"


@pytest.mark.parametrize("changed", [FRONT, "meta/tasks.jsonl"])
def test_changed_data_are_looked_at_again(sample, tmp_path, changed):
    copy = tmp_path / "data"
    later = lambda folder, names: [n for n in names if n[8:14].isdigit() and n[8:14] > "000001"]
    shutil.copytree(DATA, copy, ignore=later)
    source = lambda: DataSource(LeRobotDataset(copy), TAG, sample.robot, episodes=[0])
    store = FeatureStore("k" * 32, tmp_path / "kept")
    before = [store.path(source(), e) for e in (0, 1)]
    assert before == [store.path(source(), e) for e in (0, 1)]
    (copy / changed).write_bytes((copy / changed).read_bytes() + b"\n")
    after = [store.path(source(), e) for e in (0, 1)]
    assert before[0] != after[0] and (before[1] == after[1]) == changed.startswith("videos")


@pytest.mark.engine
def test_an_interrupted_look_goes_on(family, config, tmp_path, monkeypatch):
    "An episode is there as a whole or not at all, and is not looked at again."
    needs_a_front(family)
    kept, looked = of(config, "cached", exclude_episodes=[*range(2, 40)], max_steps=3), []

    def look(self, batch):
        looked.append(len(batch["input_ids"]))
        if len(looked) == 12: raise KeyboardInterrupt
        return plain(self, batch)

    plain = FirstLook._look
    monkeypatch.setattr(FirstLook, "_look", look)
    with pytest.raises(KeyboardInterrupt): finetune(kept)
    one, = (tmp_path / "cache/features").rglob("*.*")
    before, so_far = one.stat().st_mtime_ns, sum(looked)
    result = finetune(kept)
    every = [*(tmp_path / "cache/features").rglob("*.*")]
    assert len(every) == 2 and one in every and one.stat().st_mtime_ns == before
    assert sum(looked) - so_far < result.prepared.samples


@pytest.mark.engine
def test_what_was_not_written_is_not_read(family, config, tmp_path, monkeypatch):
    "Files with other content than was written are told of and made anew; a loss that fails names the folder."
    needs_a_front(family)
    first = finetune(of(config, "first", max_steps=2))
    file, = (tmp_path / "cache/features").rglob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1000] + bytes(1000))
    with pytest.warns(UserWarning, match="are not those that were written"):
        again = finetune(of(config, "again", max_steps=2))
    assert file.read_bytes()[-1000:] == content[-1000:]
    assert [r["loss"] for r in again.log] == [r["loss"] for r in first.log]
    file.unlink()
    plain = FirstLook._look
    nan = lambda row: row | dict(features=torch.full_like(row["features"], torch.nan))
    monkeypatch.setattr(FirstLook, "_look", lambda self, batch: [nan(row) for row in plain(self, batch)])
    with pytest.raises(InputError, match=f"keeps what was seen in {file.parent}"): finetune(of(config, "broken"))


@pytest.mark.engine
@pytest.mark.parametrize("number, code", [(signal.SIGUSR1, 75), (signal.SIGTERM, 130)])
def test_a_scheduler_ends_the_look_between_two_episodes(family, config, tmp_path, monkeypatch, capsys, number, code):
    "With the exit codes of the training; the next run looks at the others."
    needs_a_front(family)
    kept, plain = of(config, "cached", exclude_episodes=[*range(2, 40)], max_steps=3), FirstLook.episode

    def episode(self, *job):
        os.kill(os.getpid(), number)
        plain(self, *job)

    monkeypatch.setattr(FirstLook, "episode", episode)
    monkeypatch.setattr(sys, "argv", ["finetune.py", *kept.to_flags()])
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with pytest.raises(SystemExit) as ended: main()
    finally:
        for n, handler in before.items(): signal.signal(n, handler)
    said, (one,) = capsys.readouterr().err, (tmp_path / "cache/features").rglob("*.safetensors")
    assert ended.value.code == code and ("Exit code 75 asks" in said) == (code == 75)
    assert f"the features of 1 of 2 episodes are kept in {one.parent}" in said
    monkeypatch.setattr(FirstLook, "episode", plain)
    assert finetune(kept).log[-1]["step"] == 3
