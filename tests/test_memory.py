"A plan on the command line, and what is refused before anything is loaded."
import re
import shutil
from subprocess import CompletedProcess
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from preloaded import python

from gr00t_nb.errors import InputError
from gr00t_nb.model.checkpoints import read_tensors, stored_tensors
from gr00t_nb.processes.eight_bits import plain_numbers
from gr00t_nb.training import experiment
from gr00t_nb.training import finetune as entry
from gr00t_nb.training.disk import warn_of_disk
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune as train
from gr00t_nb.training.finetune import main
from gr00t_nb.training.plan import fit_memory, plan_run

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data_samples/cube_to_bowl"
RUN = FinetuneConfig("tiny", str(DATA), "NEW_EMBODIMENT", f"{DATA}_config.py", global_batch_size=16)


def finetune(*more) -> CompletedProcess: return python("scripts/finetune.py", *RUN.to_flags(), *more)


def test_a_plan_loads_and_writes_nothing(tmp_path):
    done = finetune("--plan", "--gpu", "24gb", "--pace", "100", "--output-dir", f"{tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "it fits (24 GB, " in done.stdout and "at 100 samples a second" in done.stdout
    assert not (tmp_path / "run").exists()


def test_the_first_process_of_torchrun_plans_for_all(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["finetune.py", *RUN.to_flags(), "--plan", "--parallel", "fsdp2"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, words in ((1, ""), (0, "8 samples at once")):
        monkeypatch.setenv("RANK", str(rank))
        main()
        out = capsys.readouterr().out
        assert words in out and bool(out) == (rank == 0)
    assert "gradients and shards" in out


def test_a_card_without_a_plan_trains_nothing(tmp_path):
    for words in (["--gpu", "24gb"], ["--pace", "100"]):
        done = finetune(*words, "--output-dir", f"{tmp_path}/run")
        assert done.returncode == 2 and f"{words[0]} belongs to a plan: add --plan" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_gpu_is_refused(tmp_path):
    done = finetune("--memory", "rtx4080", "--output-dir", f"{tmp_path}/run")
    assert done.returncode == 2 and "There is no GPU 'rtx4080'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_8_bits_without_torchao(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torchao"):
        train(replace(RUN, adamw_8bit=True, output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


NEEDS_TORCHAO = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao, which .ci/run installs")
FEW = dict(max_steps=3, save_steps=2, global_batch_size=4, dataloader_num_workers=0, check_data=False)


@NEEDS_TORCHAO
def test_8_bits_are_resumed_to_the_bit(tmp_path):
    "The update runs as it is written: on a CPU it would be compiled for minutes."
    from torchao.optim.subclass_8bit import OptimState8bit
    config = replace(RUN, adamw_8bit=True, tune_llm=True, **FEW)
    config, run = replace(config, output_dir=str(tmp_path / "run")), tmp_path / "run"
    files = run / "model.safetensors", run / "checkpoint-3/optimizer.pt"
    with torch.compiler.set_stance("force_eager"):
        train(config)
        once = [f.read_bytes() for f in files]
        states = torch.load(files[1], weights_only=True)["state"].values()
        narrow = {s["exp_avg"].numel() for s in states if isinstance(s["exp_avg"], OptimState8bit)}
        assert len(narrow) > 5 and min(narrow) >= 4096 and max(narrow) > 100_000
        shutil.rmtree(run / "checkpoint-3")
        train(config)
    assert [f.read_bytes() for f in files] == once


def in_shards(run: Path, processes: int = 2, **more) -> CompletedProcess:
    "A run of so many processes; what is compiled elsewhere runs as it is written."
    if processes > 1: more = dict(parallel="fsdp2") | more
    few = FEW | dict(max_steps=2, save_steps=1)
    config = replace(RUN, output_dir=str(run), **dict(adamw_8bit=True) | few | more)
    done = python("tests/families/train.py", "--eager", *config.to_flags(), processes=processes)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@NEEDS_TORCHAO
def test_8_bits_in_shards_are_resumed_to_the_bit(tmp_path):
    "From their parts; by one process too, whose averages are rounded anew."
    run, one = tmp_path / "run", tmp_path / "one"
    in_shards(run)
    files = [run / "model.safetensors", *sorted((run / "checkpoint-2/optimizer").iterdir())]
    once = [read_file(f) for f in files]
    ends = {key.rpartition("@")[2] for tensors in once[1:] for key in tensors if "@" in key}
    assert {f"{part}.{i}.2" for part in ("codes", "scale", "qmap", "plain") for i in (0, 1)} <= ends
    assert max(t.numel() for t in once[1].values() if t.dtype == torch.uint8) > 50_000
    one.mkdir()
    (run / "checkpoint-1").rename(one / "checkpoint-1")
    shutil.copytree(one, run, dirs_exist_ok=True)
    shutil.rmtree(run / "checkpoint-2")
    in_shards(run)
    assert all(same_tensors(read_file(f), kept) for f, kept in zip(files, once))
    in_shards(one, processes=1)
    states = torch.load(one / "checkpoint-2/optimizer.pt", weights_only=True)["state"].values()
    whole = sum(plain(s["exp_avg"]).abs().sum() for s in states)
    assert abs(whole - sum(map(summed, once[1:]))) < 0.02 * whole
    said = in_shards(one, max_steps=3).stdout  # from one file into shards
    assert "2 of 3 steps are done" in said and "they are rounded anew" in said


@NEEDS_TORCHAO
def test_8_bits_in_copies_of_shards_are_resumed_to_the_bit(tmp_path):
    "Two copies of a model in two shards each: what both hold is written once, and read by both."
    run, copies = tmp_path / "run", dict(processes=4, parallel="hsdp", shard_group=2)
    in_shards(run, **copies)
    once = read_file(run / "model.safetensors"), averages(run)
    assert sum(key.endswith("codes.1.2") for key in once[1]) > 5
    shutil.rmtree(run / "checkpoint-2")
    assert "1 of 2 steps are done" in in_shards(run, **copies).stdout
    assert same_tensors(read_file(run / "model.safetensors"), once[0])
    assert same_tensors(averages(run), once[1])


def averages(run: Path) -> dict[str, torch.Tensor]:
    "Of all files: which of the two copies writes a tensor may be another one each time."
    every = [read_file(f) for f in (run / "checkpoint-2/optimizer").iterdir()]
    whole = {key: t for tensors in every for key, t in tensors.items()}
    assert len(every) == 4 and len(whole) == sum(map(len, every))
    return whole


def plain(average: torch.Tensor) -> torch.Tensor:
    return average.dequantize() if hasattr(average, "codes") else average


def summed(shard: dict) -> torch.Tensor:
    "The sizes of all numbers of the first averages in a shard, added."
    parts = {}
    for key, t in shard.items():
        name, _, end = key.partition("/exp_avg@")
        if end: parts.setdefault(name, {})[end.partition(".")[0]] = t
    numbers = (p["plain"] if "plain" in p else plain_numbers(**p) for p in parts.values())
    return sum(n.abs().sum() for n in numbers)


def read_file(file: Path) -> dict[str, torch.Tensor]: return dict(read_tensors(stored_tensors(file)))


def same_tensors(a: dict, b: dict) -> bool: return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_card_that_is_too_small_and_what_is_advised():
    "The card that the refusal names is enough."
    small = replace(RUN, base_model_path="3b", memory="8gb")
    with pytest.raises(InputError, match="too small for this run") as refused: fit_memory(small)
    needed = re.search(r"--memory (\d+gb)", str(refused.value))[1]
    assert plan_run(replace(small, memory=needed)).fits


SIZED = (".safetensors", ".pt")  # what holds tensors


def with_free(size: int): return dict(disk_usage=lambda path: SimpleNamespace(free=size))


def test_a_run_says_that_its_disk_is_too_small(tmp_path, monkeypatch):
    "Once, with figures; where not even a checkpoint fits, it does not begin."
    few = dict(max_steps=2, save_steps=1, global_batch_size=2, dataloader_num_workers=0, check_data=False)
    config = replace(RUN, **few, output_dir=str(tmp_path / "run"))
    monkeypatch.setattr(entry, "warn_of_disk", partial(warn_of_disk, **with_free(1000)))
    with pytest.raises(InputError, match="A checkpoint has .* GB, and 1e-06 GB are free"): train(config)
    assert not (tmp_path / "run").exists()
    needs = plan_run(config).disk
    monkeypatch.setattr(entry, "warn_of_disk", partial(warn_of_disk, **with_free(needs.checkpoint)))
    with pytest.warns(UserWarning, match="will have 2 checkpoints of .*--output-dir"): train(config)
    written = sum(f.stat().st_size for f in (tmp_path / "run/checkpoint-2").iterdir() if f.suffix in SIZED)
    assert abs(written - needs.checkpoint) < 0.02 * written


def test_what_the_user_says_stays():
    said = replace(RUN, micro_batch_size=2, adamw_8bit=False, memory="24gb")
    fitted = fit_memory(said)
    assert (fitted.micro_batch_size, fitted.adamw_8bit) == (2, False)
    least = plan_run(replace(said, memory=None), gpu="24gb").peak / 1e9
    with pytest.raises(InputError, match="too small"): fit_memory(replace(said, memory=f"{least / 4:.4f}gb"))
