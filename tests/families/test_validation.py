"What is promised of a run that is watched: nothing changes by it, and it knows what is good."
import math
import multiprocessing
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from batches import ROOT, TAG
from preloaded import free_port

from gr00t_nb.checkpoints.manifest import broken_files
from gr00t_nb.optimizer.averages import EMA, ema_weight
from gr00t_nb.engine.faults import FAULTS
from gr00t_nb.engine.validation import VALIDATION, HeldOut, log_numbers
from gr00t_nb.errors import InputError
from gr00t_nb.checkpoints.adapters import ADAPTERS
from gr00t_nb.files import read_json, read_jsonl
from gr00t_nb.loading.samples import StepDataset
from gr00t_nb.model.checkpoints import read_tensors, stored_tensors, weight_files
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.runs.run_folder import best_checkpoint, checkpoints, newest_checkpoint
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import FinetuneResult, finetune
from gr00t_nb.training.plan import plan_prepared
from gr00t_nb.training.prepare import training_dataset

STEPS = 4


def four_steps(family, base: Path, folder: Path, **more) -> FinetuneConfig:
    "A run over all that trains, with dropout where there is some."
    config = FinetuneConfig(
        str(base),
        str(ROOT / "data_samples/cube_to_bowl"),
        "NEW_EMBODIMENT",
        str(ROOT / "data_samples/cube_to_bowl_config.py"),
        output_dir=str(folder / "run"),
        check_data=False,
        val_fraction=0.1,
        eval_chunks=9,
        global_batch_size=4,
        max_steps=STEPS,
        save_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        dataloader_num_workers=0,
    )
    return replace(config, **more)


@pytest.fixture
def config(family, base, tmp_path) -> FinetuneConfig: return four_steps(family, base, tmp_path)


@pytest.fixture(scope="module")
def watched(family, base, tmp_path_factory) -> FinetuneResult:
    "A run that validates and averages, with a checkpoint at each step."
    more = dict(eval_steps=2, ema_decay=0.9, save_steps=1)
    return finetune(four_steps(family, base, tmp_path_factory.mktemp("watched"), **more))


@pytest.fixture(scope="module")
def with_all(family, base, tmp_path_factory) -> FinetuneResult:
    "A run that validates at each step, averages, marks what is best, and trains adapters."
    more = dict(eval_steps=1, ema_decay=0.9, early_stopping_patience=STEPS, save_steps=1)
    more |= with_adapters(family)
    return finetune(four_steps(family, base, tmp_path_factory.mktemp("with_all"), **more))


def with_adapters(family) -> dict:
    "LoRA and the rows of one robot, where the family has them."
    options = dict(lora_parts=list(family.blocks), lora_rank=2, lora_dropout=0.1) if family.blocks else {}
    if "embodiment_rows" in family.capabilities: options["embodiment_rows_only"] = True
    return options


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in weight_files(folder) for k, v in read_tensors(stored_tensors(f))}


def averages(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(read_tensors(stored_tensors(checkpoint / EMA)))


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(v, b[n]) for n, v in a.items())


def rows(folder: Path) -> list[dict]:
    "Of the validations, without the clock."
    return [r | dict(seconds=0) for r in read_jsonl(folder / VALIDATION)]


def test_a_run_that_is_watched_is_the_run_to_the_bit(config, watched):
    "Losses and weights; the log says what the validations found."
    plain = finetune(config)
    assert [r["loss"] for r in plain.log] == [r["loss"] for r in watched.log]
    assert same(weights(plain.output_dir), weights(watched.output_dir))
    assert not (plain.output_dir / VALIDATION).exists() and plain.best is None
    found = rows(watched.output_dir)
    assert [r["step"] for r in found] == [2, 4]
    for row in found:
        line = next(r for r in watched.log if r["step"] == row["step"])
        assert log_numbers(row).items() <= line.items()
    assert not any("val_error" in r for r in watched.log if r["step"] % 2)
    least = min(found, key=lambda r: r["val"]["error"])["step"]
    folder = watched.output_dir
    assert watched.best == best_checkpoint(folder) == folder / f"checkpoint-{least}"


@pytest.mark.engine
def test_averages_are_those_of_the_weights(base, watched):
    "By hand, from the weights of each step; only what trains is kept, in float32."
    start = weights(base)
    trains = {n for n, p in watched.model.named_parameters() if p.requires_grad}
    by_hand = {n: start[n].float() for n in trains if n in start}
    for step, checkpoint in enumerate(checkpoints(watched.output_dir)):
        now, kept = weights(checkpoint), averages(checkpoint)
        assert set(kept) == trains and {v.dtype for v in kept.values()} == {torch.float32}
        for n in by_hand:
            by_hand[n] = by_hand[n].lerp(now[n].float(), ema_weight(0.9, step))
            assert torch.equal(by_hand[n], kept[n]), (step, n)
    whole = weights(watched.output_dir / "ema")
    assert not broken_files(watched.output_dir / "ema") and (watched.output_dir / "ema/manifest.json").exists()
    assert all(torch.equal(whole[n], v) for n, v in by_hand.items())
    kept, off = watched.prepared, replace(watched.prepared.config, ema_decay=None)
    with_them, without = (plan_prepared(p) for p in (kept, replace(kept, config=off)))
    size = 4 * sum(p.numel() for p in watched.model.parameters() if p.requires_grad)
    assert with_them.peak - without.peak == with_them.checkpoint - without.checkpoint == size


def test_what_is_said_while_training_is_true_of_the_checkpoint(family, with_all, sample):
    "Of the weights and of their averages, as the policy of a folder answers; on a CPU to the bit."
    config, folder = with_all.prepared.config, with_all.output_dir
    held = HeldOut([(sample.data, with_all.prepared.root.val_episodes)], sample.robot, config.eval_chunks)
    def errors(folder):
        policy = Gr00tPolicy(TAG, folder, device="cpu")
        return held.errors(held.answers(policy, policy.draw_noise(config.seed)))
    last = rows(folder)[-1]
    near = dict(rel=1e-4) if family.blocks else dict(rel=1e-6)  # merged adapters round
    for who, asked in (("val", folder), ("ema", folder / "ema")):
        assert errors(asked)["error"] == pytest.approx(last[who]["error"], **near)
    assert last["hold"] == held.errors(held.hold[:, None])
    assert last["val"]["error"] != last["ema"]["error"]


@pytest.mark.engine
def test_a_resumed_run_knows_what_the_whole_one_knew(family, with_all):
    "Averages, validations and marks, with adapters; from the first checkpoint on."
    config, folder = with_all.prepared.config, with_all.output_dir
    files = ["best.json", "model.safetensors", "ema/model.safetensors", f"checkpoint-{STEPS}/{EMA}"]
    if family.blocks: files += [f"{p}{ADAPTERS}/adapter_model.safetensors" for p in ("", "ema/")]
    expected, found = [(folder / f).read_bytes() for f in files], rows(folder)
    for c in checkpoints(folder)[1:]: shutil.rmtree(c)
    again = finetune(config)
    assert [r["loss"] for r in again.log] == [r["loss"] for r in with_all.log]
    assert rows(folder) == found and again.best == with_all.best
    for f, content in zip(files, expected): assert (folder / f).read_bytes() == content, f
    shutil.rmtree(folder / "ema")
    finetune(config)  # nothing is left to do but to write out
    assert (folder / "ema/model.safetensors").read_bytes() == expected[2]


@pytest.mark.engine
def test_a_run_ends_when_nothing_improves_and_keeps_the_best(config, capfd):
    "With a learning rate that changes nothing; more patience takes it further."
    options = dict(eval_steps=1, early_stopping_patience=2, save_total_limit=1)
    config = replace(config, learning_rate=1e-30, **options)
    result = finetune(config)
    names = lambda: [c.name for c in checkpoints(result.output_dir)]
    assert result.ended_early and names() == ["checkpoint-1", "checkpoint-3"]
    assert read_json(result.output_dir / "best.json")["step"] == 1
    assert "ended after step 3 of 4: nothing has improved for 2 validations" in capfd.readouterr().err
    assert result.log[-1]["ended_early"] == 1 and result.best.name == "checkpoint-1"
    again = finetune(config)
    assert "checkpoint-3 is its last step: nothing is left to do" in capfd.readouterr().out
    assert again.ended_early and again.log == result.log and names() == ["checkpoint-1", "checkpoint-3"]
    longer = finetune(replace(config, early_stopping_patience=9))
    assert not longer.ended_early and names() == ["checkpoint-1", "checkpoint-4"]
    assert [r["step"] for r in rows(longer.output_dir)] == [1, 2, 3, 4]


BROKEN = 10  # position of a sample of the third step


@contextmanager
def broken():
    "Its state is infinite."
    read = StepDataset.__getitems__
    def infinite(self, positions):
        made = read(self, positions)
        bad = lambda s: s | dict(state=np.full_like(s["state"], np.inf))
        return [bad(s) if s["sample_index"] == BROKEN else s for s in made]
    with patch.object(StepDataset, "__getitems__", infinite): yield


def without_dropout(family) -> dict:
    return dict(dropout=0.0) if "dropout" in family.capabilities else {}


@pytest.fixture(scope="module")
def past_it(family, base, tmp_path_factory) -> FinetuneResult:
    "A run that leaves the step out, and is watched."
    more = dict(eval_steps=2, ema_decay=0.9, on_nonfinite="skip", **without_dropout(family))
    config = four_steps(family, base, tmp_path_factory.mktemp("past_it"), **more)
    with broken(), pytest.warns(UserWarning): return finetune(config)


@pytest.mark.engine
def test_a_sample_that_is_no_number_stops_the_run_before_it_is_learned(family, config, past_it):
    "The sentence names it, the newest checkpoint is whole, and the run can go on past it."
    config = replace(config, **without_dropout(family))
    with broken(), pytest.raises(InputError) as stopped: finetune(config)
    folder = Path(config.output_dir)
    assert newest_checkpoint(folder).name == "checkpoint-2"
    row, = read_jsonl(folder / FAULTS)
    (where,) = row["samples"]
    assert (row["step"], row["did"], row["alone"]) == (3, "stopped", True)
    assert f"step {where['step']} of episode {where['episode']} of" in str(stopped.value)
    assert "checkpoint-2 is whole: start the run again with --on-nonfinite skip" in str(stopped.value)
    on = replace(config, on_nonfinite="skip")
    with broken(), pytest.warns(UserWarning, match="The step is left out"): result = finetune(on)
    line = {r["step"]: r for r in result.log}
    assert math.isnan(line[3]["loss"]) and math.isfinite(line[4]["loss"])
    assert [line[s].get("skipped_steps") for s in (2, 3, 4)] == [None, 1, 1]
    assert [r["did"] for r in read_jsonl(folder / FAULTS)] == ["skipped"]
    before, after = weights(folder / "checkpoint-2"), weights(folder)
    assert all(v.isfinite().all() for v in after.values()) and not same(before, after)
    (_, episode, step), = training_dataset(on, result.prepared).where([BROKEN])
    assert (result.prepared.root.dataset.episodes[episode].index, step) == (where["episode"], where["step"])
    assert same(weights(past_it.output_dir), after)


def one_of(rank: int, port: int, config: FinetuneConfig):
    "One of two processes that train together."
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    finetune(config)
    torch.distributed.destroy_process_group()


@pytest.mark.engine
@pytest.mark.skipif(torch.cuda.is_available(), reason="forks, which CUDA does not survive")
def test_two_processes_find_what_one_finds(past_it, tmp_path):
    "They share the questions, leave the same step out, and name the same sample."
    two, one = tmp_path / "two", past_it.output_dir
    config = replace(past_it.prepared.config, output_dir=str(two))
    port, fork = free_port(), multiprocessing.get_context("fork")
    both = [fork.Process(target=one_of, args=(rank, port, config)) for rank in (0, 1)]
    with broken():
        for p in both: p.start()
    for p in both: p.join()
    assert [p.exitcode for p in both] == [0, 0]
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["hold"] == b["hold"]
        for who in ("val", "ema"):
            assert b[who]["error"] == pytest.approx(a[who]["error"], rel=1e-3)
            assert b[who]["groups"].keys() == a[who]["groups"].keys()
    faults = [read_jsonl(folder / FAULTS) for folder in (one, two)]
    assert faults[0] == faults[1] and len(faults[0]) == 1
    for n, kept in averages(newest_checkpoint(one)).items():
        near = averages(newest_checkpoint(two))[n]
        assert (kept - near).abs().max() <= 1e-3 * max(1, kept.abs().max()), n
    assert best_checkpoint(two).name == past_it.best.name
