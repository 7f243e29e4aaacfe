"What every way to share a model promises: the numbers of one process, whole checkpoints, exact resume."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from batches import ROOT, TAG
from test_training import weights

from gr00t_nb.families.registry import families
from gr00t_nb.model.checkpoints import read_tensors, stored_tensors
from gr00t_nb.policy.policy import Gr00tPolicy

HERE = Path(__file__).resolve().parent
STEPS = 4  # the learning rate is zero in the first
COMMON = dict(
    dataset_path="data_samples/cube_to_bowl",
    embodiment_tag="NEW_EMBODIMENT",
    modality_config_path="data_samples/cube_to_bowl_config.py",
    max_steps=STEPS,
    save_steps=2,
    logging_steps=1,
    global_batch_size=4,
    learning_rate=1e-3,
    weight_decay=0.1,
    dataloader_num_workers=0,
    check_data=False,
)


LEVERS = dict(gradient_checkpointing="gradient_checkpointing", embodiment_rows="embodiment_rows_only")


def everything(family) -> dict:
    "What else a run can be asked for: adapters, single rows, parts of batches, bfloat16."
    more = dict(max_steps=2, micro_batch_size=1, gradient_accumulation_steps=2, bf16=True)
    if family.blocks: more["lora_parts"] = list(family.blocks)[-1:]
    return more | {flag: True for can, flag in LEVERS.items() if can in family.capabilities}


def groups_of(family, folder: Path) -> list[dict]:
    "Runs, by the processes that do them."
    all_of_it = {f: True for f, v in family.flags.items() if v is False}
    still = dict(dropout=0.0) if "dropout" in family.capabilities else {}

    def run(name: str, start: str | None = None, double: bool = True, **more) -> dict:
        place = dict(output_dir=str(folder / name), base_model_path=family.tiny_name)
        config = COMMON | place | still | more
        return dict(double=double, start=start and str(folder / start), config=config)

    whole = lambda name, start=None, **more: run(name, start, **all_of_it, **more)
    mixed = lambda name, **more: run(name, double=False, **everything(family), **more)
    two = [whole("ddp"), whole("fsdp2", parallel="fsdp2")]
    two += [mixed("mixed ddp"), mixed("mixed fsdp2", parallel="fsdp2")]
    later = [whole("again", "fsdp2/checkpoint-2", parallel="fsdp2")]
    later += [whole("back", "fsdp2/checkpoint-2")]
    hsdp = whole("hsdp", "one/checkpoint-2", parallel="hsdp", shard_group=2)
    runs = (1, [whole("one")]), (2, two), (2, later), (4, [hsdp])
    return [dict(processes=n, runs=group) for n, group in runs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    "A folder with a folder of runs for every family."
    folder = tmp_path_factory.mktemp("parallel")
    groups = [groups_of(f, folder / f.tiny_name) for f in families()]
    together = [
        dict(processes=same[0]["processes"], runs=[run for g in same for run in g["runs"]])
        for same in zip(*groups)
    ]
    (folder / "runs.json").write_text(json.dumps(together))
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, HERE / "forks.py", folder / "runs.json"],
        cwd=ROOT,
        env=os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=paths),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "said").write_text(done.stderr)
    return folder


@pytest.fixture
def runs(trained, family) -> Path: return trained / family.tiny_name


def losses(run: Path) -> dict[int, float]:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in log}


def files(folder: Path) -> set[str]:
    "Of a checkpoint, without the optimizer's."
    every = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
    return {f for f in every if "optimizer" not in f}


def shards(folder: Path) -> dict[str, list[torch.Tensor]]:
    "The pieces of each of the optimizer's tensors."
    every = sorted(folder.iterdir())
    assert len(every) == 2, every
    pieces = {}
    for file in every:
        for name, value in read_tensors(stored_tensors(file)): pieces.setdefault(name, []).append(value)
    return pieces


def assert_same_weights(a: Path, b: Path, within: float):
    "Each in its own scale."
    a, b = weights(a), weights(b)
    assert set(a) == set(b) and all(v.dtype == b[name].dtype for name, v in a.items())
    off = {n: ((v - b[n]).abs().max() / v.abs().max().clamp(min=1)).item() for n, v in a.items()}
    assert max(off.values()) <= within, max(off, key=off.get)


@pytest.mark.parametrize("run", ["ddp", "fsdp2", "back", "hsdp"])
def test_any_way_trains_as_one_process(runs, run):
    "In float64: losses within 1e-6, weights within 1e-9, each in its own scale."
    one, other = losses(runs / "one"), losses(runs / run)
    assert {v.dtype for v in weights(runs / run).values()} == {torch.float64}
    assert set(other) == set(range(1 if run in ("ddp", "fsdp2") else 3, STEPS + 1))
    for step, loss in other.items(): assert abs(loss - one[step]) <= 1e-6 * one[step], step
    assert_same_weights(runs / "one", runs / run, 1e-9)


def test_a_resumed_run_in_shards_is_the_run_to_the_bit(runs):
    assert losses(runs / "again") == {s: v for s, v in losses(runs / "fsdp2").items() if s > 2}
    assert_same_weights(runs / "fsdp2", runs / "again", 0)
    once, again = (shards(runs / name / "checkpoint-4/optimizer") for name in ("fsdp2", "again"))
    assert set(once) == set(again)
    for name, pieces in once.items():
        assert len(pieces) == len(again[name]) and all(map(torch.equal, pieces, again[name])), name


def test_every_checkpoint_is_whole(runs, family):
    "It has the files of one by DDP, loads by itself, and answers."
    for name in ("checkpoint-2", "checkpoint-4"):
        here = runs / "fsdp2" / name
        assert files(here) == files(runs / "ddp" / name)
        assert_same_weights(runs / "ddp" / name, here, 1e-9)
        loaded = family.load_model(here).state_dict()
        for key, value in weights(here).items(): assert torch.equal(loaded[key], value), key
    for folder in (runs / "fsdp2", runs / "fsdp2/checkpoint-2", runs / "hsdp/checkpoint-4"):
        Gr00tPolicy(TAG, folder, device="cpu")


def test_shards_are_shards(runs):
    "accelerate trains with DDP on CPUs where it is not told twice, and no loss would tell."
    whole = (runs / "ddp/checkpoint-4/optimizer.pt").stat().st_size
    sizes = [f.stat().st_size for f in (runs / "fsdp2/checkpoint-4/optimizer").iterdir()]
    assert max(sizes) < 0.7 * whole
    assert not (runs / "fsdp2/checkpoint-4/optimizer.pt").exists()


def test_what_else_a_run_can_be_asked_for(runs, family):
    "Adapters, single rows, parts of batches and bfloat16 give the numbers of DDP."
    a, b = losses(runs / "mixed ddp"), losses(runs / "mixed fsdp2")
    assert set(a) == set(b) == {1, 2}
    for step, loss in a.items(): assert abs(loss - b[step]) <= 1e-5 * loss, step
    assert_same_weights(runs / "mixed ddp", runs / "mixed fsdp2", 1e-4)
    assert files(runs / "mixed ddp") == files(runs / "mixed fsdp2")
