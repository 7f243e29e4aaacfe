"What every way to share a model promises: the numbers of one process, whole checkpoints, exact resume."
import json
import os
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from batches import TAG
from dummy import DUMMY
from preloaded import Running, python
from test_training import weights

from gr00t_nb.checkpoints.registry import families
from gr00t_nb.engine.faults import FAULTS
from gr00t_nb.files import read_jsonl
from gr00t_nb.model.checkpoints import read_tensors, stored_tensors
from gr00t_nb.optimizer.averages import EMA
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.runs.run_folder import checkpoints
from gr00t_nb.settings.config import FinetuneConfig

HERE = Path(__file__).resolve().parent
STEPS = 2
COMMON = dict(
    dataset_path="data_samples/cube_to_bowl",
    embodiment_tag="NEW_EMBODIMENT",
    modality_config_path="data_samples/cube_to_bowl_config.py",
    max_steps=STEPS,
    save_steps=1,
    logging_steps=1,
    warmup_ratio=0.0,
    global_batch_size=4,
    learning_rate=1e-3,
    weight_decay=0.1,
    dataloader_num_workers=0,
    check_data=False,
)

WATCHED = dict(val_fraction=0.2, eval_steps=1, eval_chunks=4, ema_decay=0.9)
LEVERS = dict(gradient_checkpointing="gradient_checkpointing", embodiment_rows="embodiment_rows_only")


def everything(family) -> dict:
    "What else a run can be asked for: adapters, single rows, parts of batches, bfloat16."
    more = dict(save_steps=STEPS, micro_batch_size=1, gradient_accumulation_steps=2, bf16=True)
    if family.blocks: more["lora_parts"] = list(family.blocks)[-1:]
    return more | {flag: True for can, flag in LEVERS.items() if can in family.capabilities}


def still(family) -> dict: return dict(dropout=0.0) if "dropout" in family.capabilities else {}


def all_of_it(family) -> dict:
    return still(family) | WATCHED | {f: True for f, v in family.flags.items() if v is False}


@pytest.fixture(scope="package")
def run(family, tmp_path_factory):
    "Trains into a folder of a name, beside the others."
    folder = tmp_path_factory.mktemp("parallel")

    def run(name: str, processes: int, start: str | None = None, double: bool = True, **more):
        output = folder / name
        if start: shutil.copytree(folder / start, output / Path(start).name)
        place = dict(output_dir=str(output), base_model_path=family.tiny_name)
        config = FinetuneConfig(**COMMON | place | more)
        words = [HERE / "train.py", *["--double"] * double, *config.to_flags()]
        done = python(*words, processes=processes)
        assert done.returncode == 0, done.stderr[-4000:]
        return folder

    return run


@pytest.fixture(scope="package")
def runs(family, run) -> Path:
    "A folder with a folder for every run: in one process, in two, in shards."
    asked = all_of_it(family)
    run("one", 1, **asked)
    run("ddp", 2, **asked)
    return run("fsdp2", 2, **asked, parallel="fsdp2")


@pytest.fixture(scope="package")
def resumed(family, run, runs) -> Path:
    """Beside them what goes on from shards: in shards, and in one process. A family has no part in it but
    names and blocks of its parameters, and `runs` cuts, gathers and saves those."""
    asked = all_of_it(family)
    run("again", 2, "fsdp2/checkpoint-1", **asked, parallel="fsdp2")
    return run("back", 1, "fsdp2/checkpoint-1", **asked)


@pytest.fixture(scope="package")
def hsdp(family, run, runs) -> Path:
    "Two copies of a model in two shards each: the shards are those of `runs`, so the dummy shows it."
    return run("hsdp", 4, "one/checkpoint-1", **all_of_it(family), parallel="hsdp", shard_group=2)


def losses(run: Path) -> dict[int, float]:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in log}


def files(folder: Path) -> set[str]:
    "Of a checkpoint, without the optimizer's."
    every = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
    return {f for f in every if "optimizer" not in f}


def averages(run: Path) -> dict[str, torch.Tensor]:
    return dict(sorted(read_tensors(stored_tensors(run / f"checkpoint-{STEPS}/{EMA}"))))


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


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_any_way_trains_as_one_process(runs, way): trained_as_one(runs, way)


@pytest.mark.engine
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed: pip install deepspeed")
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_by_deepspeed_as_one_process_and_resumed_to_the_bit(family, run, engine):
    "In float32, so within 1e-5; on a CPU DeepSpeed compiles for minutes when it is first used."
    asked = dict(double=False, **still(family))
    folder = run(engine, 2, **asked, parallel=engine)
    run(f"{engine}-again", 2, f"{engine}/checkpoint-1", **asked, parallel=engine)
    run(f"{engine}-one", 1, **asked)
    once, again = weights(folder / engine), weights(folder / f"{engine}-again")
    assert all(torch.equal(v, again[n]) for n, v in once.items())
    parts = sorted((folder / engine / f"checkpoint-{STEPS}").glob("optimizer-zero*"))
    assert len(parts) == 2
    for part in parts:
        assert part.read_bytes() == (folder / f"{engine}-again/checkpoint-{STEPS}" / part.name).read_bytes()
    one, other = losses(folder / f"{engine}-one"), losses(folder / engine)
    assert all(abs(other[step] - loss) < 1e-5 * loss for step, loss in one.items())
    assert_same_weights(folder / f"{engine}-one", folder / engine, within=1e-4)  # of steps of 1e-3


@pytest.mark.engine
def test_from_shards_one_process_trains_on(resumed): trained_as_one(resumed, "back")


@pytest.mark.engine("dummy")
def test_copies_of_shards_train_as_one_process(hsdp): trained_as_one(hsdp, "hsdp")


def trained_as_one(runs: Path, way: str):
    "In float64: losses within 1e-6, weights within 1e-9, each in its own scale."
    one, other = losses(runs / "one"), losses(runs / way)
    assert {v.dtype for v in weights(runs / way).values()} == {torch.float64}
    assert set(other) == set(range(1 if way in ("ddp", "fsdp2") else 2, STEPS + 1))
    for step, loss in other.items(): assert abs(loss - one[step]) <= 1e-6 * one[step], step
    assert_same_weights(runs / "one", runs / way, 1e-9)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_any_way_validates_and_averages_as_one_process(runs, way): judged_as_one(runs, way)


@pytest.mark.engine
@pytest.mark.parametrize("way", ["again", "back"])
def test_from_shards_it_is_judged_as_one_process(resumed, way): judged_as_one(resumed, way)


@pytest.mark.engine("dummy")
def test_copies_of_shards_are_judged_as_one_process(hsdp): judged_as_one(hsdp, "hsdp")


def judged_as_one(runs: Path, way: str):
    "What is asked of shards while they train, and their averages in float32: within 1e-6."
    one, other = (read_jsonl(runs / name / "validation.jsonl") for name in ("one", way))
    assert other[-1]["step"] == STEPS
    for who in ("val", "ema", "hold"):
        errors = [rows[-1][who]["error"] for rows in (one, other)]
        assert abs(errors[0] - errors[1]) <= 1e-6 * errors[0], who
    kept, also = (averages(runs / name) for name in ("one", way))
    assert set(kept) == set(also)
    for n, v in kept.items(): assert (v - also[n]).abs().max() <= 1e-6 * v.abs().max().clamp(min=1), n
    assert_same_weights(runs / "one/ema", runs / way / "ema", 1e-6)


@pytest.mark.engine
def test_a_resumed_run_in_shards_is_the_run_to_the_bit(resumed):
    runs = resumed
    assert all(map(torch.equal, *(averages(runs / n).values() for n in ("fsdp2", "again"))))
    assert losses(runs / "again") == {s: v for s, v in losses(runs / "fsdp2").items() if s > 1}
    assert_same_weights(runs / "fsdp2", runs / "again", 0)
    once, again = (shards(runs / name / "checkpoint-2/optimizer") for name in ("fsdp2", "again"))
    assert set(once) == set(again)
    for name, pieces in once.items():
        assert len(pieces) == len(again[name]) and all(map(torch.equal, pieces, again[name])), name


def test_every_checkpoint_is_whole(runs, family):
    "It has the files of one by DDP, loads by itself, and answers."
    for name in ("checkpoint-1", "checkpoint-2"):
        here = runs / "fsdp2" / name
        assert files(here) == files(runs / "ddp" / name)
        assert_same_weights(runs / "ddp" / name, here, 1e-9)
        loaded = family.load_model(here).state_dict()
        for key, value in weights(here).items(): assert torch.equal(loaded[key], value), key
    for folder in (runs / "fsdp2", runs / "fsdp2/checkpoint-1"): Gr00tPolicy(TAG, folder, device="cpu")


@pytest.mark.engine("dummy")
def test_a_checkpoint_of_copies_answers(hsdp): Gr00tPolicy(TAG, hsdp / "hsdp/checkpoint-2", device="cpu")


def test_shards_are_shards(runs):
    "accelerate trains with DDP on CPUs where it is not told twice, and no loss would tell."
    whole = (runs / "ddp/checkpoint-2/optimizer.pt").stat().st_size
    sizes = [f.stat().st_size for f in (runs / "fsdp2/checkpoint-2/optimizer").iterdir()]
    assert max(sizes) < 0.7 * whole
    assert not (runs / "fsdp2/checkpoint-2/optimizer.pt").exists()


SECOND_IS_NO_NUMBER = """
asked = []

def loss(outputs, batch):
    asked.append(1)
    return outputs["loss"] * (float("nan") if len(asked) == 2 else 1)
"""


def test_a_step_that_is_left_out_leaves_shards_alone(tmp_path):
    "The engine's doing, so the dummy shows it: the second of three steps changes nothing, the third does."
    idea = tmp_path / "idea.py"
    idea.write_text(SECOND_IS_NO_NUMBER)
    place = dict(output_dir=str(tmp_path / "run"), base_model_path=DUMMY.tiny_name, hooks=str(idea))
    more = dict(parallel="fsdp2", on_nonfinite="skip", max_steps=3)
    config = FinetuneConfig(**COMMON | place | more)
    done = python(HERE / "train.py", *config.to_flags(), processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two, three = (weights(tmp_path / f"run/checkpoint-{k}") for k in (1, 2, 3))
    assert all(torch.equal(v, two[n]) for n, v in one.items())
    assert any(not torch.equal(v, three[n]) for n, v in one.items())
    assert [r["step"] for r in read_jsonl(tmp_path / "run" / FAULTS)] == [2]


def small_run(output: Path, **more) -> list:
    "The words of a run, of the dummy if nothing else is said."
    place = dict(output_dir=str(output), base_model_path=DUMMY.tiny_name)
    return [HERE / "train.py", *FinetuneConfig(**COMMON | place | more).to_flags()]


def states(checkpoint: Path) -> dict[str, bytes]:
    "What two processes keep beside the weights, each its own."
    files = sorted(f for f in checkpoint.rglob("*") if f.suffix in (".pt", ".pth", ".safetensors"))
    return {str(f.relative_to(checkpoint)): f.read_bytes() for f in files}


def test_two_resumed_processes_are_the_run_to_the_bit(tmp_path):
    "With DDP: dropout and hidden states, two batches to a step in parts, averages. The first family shows it."
    more = dict(base_model_path=families()[0].tiny_name, state_dropout_prob=0.5, dropout=0.2, max_steps=3)
    more |= dict(gradient_accumulation_steps=2, micro_batch_size=1, ema_decay=0.9)
    once, again = tmp_path / "once", tmp_path / "again"
    for output in (once, again):
        done = python(*small_run(output, **more), processes=2)
        assert done.returncode == 0, done.stderr[-4000:]
        if output == once: shutil.copytree(once / "checkpoint-1", again / "checkpoint-1")
    assert losses(again) == {s: v for s, v in losses(once).items() if s > 1} and len(losses(once)) == 3
    a, b = (states(folder / "checkpoint-3") for folder in (once, again))
    assert {"optimizer.pt", "rng_state_0.pth", "rng_state_1.pth", "model.safetensors", EMA} <= set(a)
    assert a == b


@pytest.mark.parametrize("number, hear, code", [(signal.SIGTERM, 2, 130), (signal.SIGUSR1, 1, 75)])
def test_a_signal_stops_shards_with_a_whole_checkpoint(tmp_path, number, hear, code):
    "The end of a job reaches both processes, a scheduler's wish one of them; the run goes on from there."
    output = tmp_path / "run"
    endless = dict(parallel="fsdp2", max_steps=100_000, save_steps=100_000)
    running = Running(*small_run(output, **endless), processes=2)
    end = time.monotonic() + 240
    while not (output / "log.jsonl").exists() and time.monotonic() < end:
        assert all(job.is_alive() for job in running.jobs), running.said()[1][-2000:]
        time.sleep(0.1)
    for job in running.jobs[-hear:]: os.kill(job.pid, number)
    ended = running.end(120)
    kept, = checkpoints(output)
    assert ended.returncode == code and f"{kept} is whole" in ended.stderr, ended.stderr[-2000:]
    assert len([*(kept / "optimizer").iterdir()]) == 2
    step = int(kept.name.rpartition("-")[2])
    done = python(*small_run(output, **endless | dict(max_steps=step + 1)), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{step} of {step + 1} steps are done" in done.stdout


@pytest.mark.engine
def test_compiled_blocks_are_sharded(family, tmp_path):
    "Blocks that are compiled before they are sharded train as those of one process that are neither."
    if not family.blocks: pytest.skip("it has no blocks to compile")
    for name, more in (("plain", {}), ("compiled", dict(compile=True, parallel="fsdp2"))):
        place = dict(output_dir=str(tmp_path / name), base_model_path=family.tiny_name)
        config = FinetuneConfig(**COMMON | still(family) | place | dict(save_steps=STEPS) | more)
        words, two = ["--double", "--traced", *config.to_flags()], name == "compiled"
        done = python(HERE / "train.py", *words, processes=1 + two)
        assert done.returncode == 0, done.stderr[-4000:]
    a, b = (losses(tmp_path / name) for name in ("plain", "compiled"))
    assert set(a) == set(b) == {1, 2} and all(abs(a[s] - b[s]) <= 1e-6 * a[s] for s in a)
    assert_same_weights(tmp_path / "plain", tmp_path / "compiled", 1e-9)


@pytest.mark.engine
def test_what_else_a_run_can_be_asked_for(run, family):
    """Adapters, single rows, parts of batches and bfloat16 give the numbers of DDP. After the first
    step bfloat16 rounds the last bit of a sum to its own: losses agree to its width, weights in the
    mean to a fiftieth of what a step moves them."""
    mixed = still(family) | everything(family)
    run("mixed ddp", 2, double=False, **mixed)
    runs = run("mixed fsdp2", 2, double=False, **mixed, parallel="fsdp2")
    a, b = losses(runs / "mixed ddp"), losses(runs / "mixed fsdp2")
    assert set(a) == set(b) == {1, 2}
    for step, within in ((1, 1e-5), (2, 2**-9)): assert abs(a[step] - b[step]) <= within * a[step], step
    one, other = weights(runs / "mixed ddp"), weights(runs / "mixed fsdp2")
    assert one.keys() == other.keys()
    off = {n: (v.float() - other[n].float()).abs().mean() for n, v in one.items()}
    assert max(off.values()) <= COMMON["learning_rate"] / 50, max(off, key=off.get)
    assert files(runs / "mixed ddp") == files(runs / "mixed fsdp2")
