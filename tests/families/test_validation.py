"What is promised of a run that is watched: nothing changes by it, and it knows what is good."
import math
import multiprocessing
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from batches import ROOT, TAG

from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.checkpoints.manifest import broken_files
from gr00t_nb.optimizer.averages import EMA, ema_weight
from gr00t_nb.engine.faults import FAULTS
from gr00t_nb.engine.validation import VALIDATION, HeldOut, log_numbers
from gr00t_nb.errors import InputError
from gr00t_nb.families.adapters import ADAPTERS
from gr00t_nb.files import read_json, read_jsonl
from gr00t_nb.loading.samples import StepDataset
from gr00t_nb.model.checkpoints import read_tensors, stored_tensors, weight_files
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.runs.run_folder import best_checkpoint, checkpoints, newest_checkpoint
from gr00t_nb.training.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune
from gr00t_nb.training.plan import plan_prepared
from gr00t_nb.training.prepare import training_dataset

STEPS = 4


@pytest.fixture(autouse=True)
def robot():
    yield
    MODALITY_CONFIGS.pop(TAG, None)


@pytest.fixture
def config(family, base, tmp_path) -> FinetuneConfig:
    "A run of four steps over all that trains, with dropout where there is some."
    return FinetuneConfig(
        str(base),
        str(ROOT / "data_samples/cube_to_bowl"),
        "NEW_EMBODIMENT",
        str(ROOT / "data_samples/cube_to_bowl_config.py"),
        output_dir=str(tmp_path / "run"),
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


def rows(config) -> list[dict]:
    "Of the validations, without the clock."
    return [r | dict(seconds=0) for r in read_jsonl(Path(config.output_dir) / VALIDATION)]


def test_a_run_that_is_watched_is_the_run_to_the_bit(config, tmp_path):
    "Losses and weights; the log says what the validations found."
    watched = replace(config, output_dir=str(tmp_path / "watched"), eval_steps=2, ema_decay=0.9)
    plain, seen = finetune(config), finetune(watched)
    assert [r["loss"] for r in plain.log] == [r["loss"] for r in seen.log]
    assert same(weights(plain.output_dir), weights(seen.output_dir))
    assert not (plain.output_dir / VALIDATION).exists() and plain.best is None
    found = rows(watched)
    assert [r["step"] for r in found] == [2, 4]
    for row in found:
        line = next(r for r in seen.log if r["step"] == row["step"])
        assert log_numbers(row).items() <= line.items()
    assert not any("val_error" in r for r in seen.log if r["step"] % 2)
    least = min(found, key=lambda r: r["val"]["error"])["step"]
    assert seen.best == best_checkpoint(seen.output_dir) == seen.output_dir / f"checkpoint-{least}"


def test_what_is_said_while_training_is_true_of_the_checkpoint(family, config, sample, tmp_path):
    "Of the weights and of their averages, as the policy of a folder answers; on a CPU to the bit."
    config = replace(config, eval_steps=2, ema_decay=0.9, **with_adapters(family))
    result = finetune(config)
    held = HeldOut(sample.data, result.prepared.val_episodes, sample.robot, config.eval_chunks)
    def errors(folder):
        policy = Gr00tPolicy(TAG, folder, device="cpu")
        return held.errors(held.answers(policy, policy.draw_noise(config.seed)))
    last = rows(config)[-1]
    near = dict(rel=1e-4) if family.blocks else dict(rel=1e-6)  # merged adapters round
    for who, folder in (("val", result.output_dir), ("ema", result.output_dir / "ema")):
        assert errors(folder)["error"] == pytest.approx(last[who]["error"], **near)
    assert last["hold"] == held.errors(held.hold[:, None])
    assert last["val"]["error"] != last["ema"]["error"]


def test_averages_are_those_of_the_weights(config):
    "By hand, from the weights of each step; only what trains is kept, in float32."
    start = weights(Path(config.base_model_path))
    config = replace(config, ema_decay=0.9, save_steps=1)
    result = finetune(config)
    trains = {n for n, p in result.model.named_parameters() if p.requires_grad}
    by_hand = {n: start[n].float() for n in trains if n in start}
    for step, checkpoint in enumerate(checkpoints(result.output_dir)):
        now, kept = weights(checkpoint), averages(checkpoint)
        assert set(kept) == trains and {v.dtype for v in kept.values()} == {torch.float32}
        for n in by_hand:
            by_hand[n] = by_hand[n].lerp(now[n].float(), ema_weight(0.9, step))
            assert torch.equal(by_hand[n], kept[n]), (step, n)
    whole = weights(result.output_dir / "ema")
    assert not broken_files(result.output_dir / "ema") and (result.output_dir / "ema/manifest.json").exists()
    assert all(torch.equal(whole[n], v) for n, v in by_hand.items())
    kept, off = result.prepared, replace(result.prepared.config, ema_decay=None)
    with_them, without = (plan_prepared(p) for p in (kept, replace(kept, config=off)))
    size = 4 * sum(p.numel() for p in result.model.parameters() if p.requires_grad)
    assert with_them.peak - without.peak == with_them.checkpoint - without.checkpoint == size


def test_a_resumed_run_knows_what_the_whole_one_knew(family, config):
    "Averages, validations and marks, with adapters; from the first checkpoint on."
    options = dict(eval_steps=1, ema_decay=0.9, early_stopping_patience=STEPS, **with_adapters(family))
    config = replace(config, **options, save_steps=1)
    result = finetune(config)
    folder = result.output_dir
    files = ["best.json", "model.safetensors", "ema/model.safetensors", f"checkpoint-{STEPS}/{EMA}"]
    if family.blocks: files += [f"{p}{ADAPTERS}/adapter_model.safetensors" for p in ("", "ema/")]
    expected, found = [(folder / f).read_bytes() for f in files], rows(config)
    for c in checkpoints(folder)[1:]: shutil.rmtree(c)
    again = finetune(config)
    assert [r["loss"] for r in again.log] == [r["loss"] for r in result.log]
    assert rows(config) == found and again.best == result.best
    for f, content in zip(files, expected): assert (folder / f).read_bytes() == content, f
    shutil.rmtree(folder / "ema")
    finetune(config)  # nothing is left to do but to write out
    assert (folder / "ema/model.safetensors").read_bytes() == expected[2]


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
    assert [r["step"] for r in rows(config)] == [1, 2, 3, 4]


@pytest.fixture
def broken(monkeypatch) -> int:
    "One sample of the third step has a state that is infinite; gives its position."
    read, position = StepDataset.__getitems__, 10
    def broken(self, positions):
        made = read(self, positions)
        bad = lambda s: s | dict(state=np.full_like(s["state"], np.inf))
        return [bad(s) if s["sample_index"] == position else s for s in made]
    monkeypatch.setattr(StepDataset, "__getitems__", broken)
    return position


def test_a_sample_that_is_no_number_stops_the_run_before_it_is_learned(config, broken):
    "The sentence names it, the newest checkpoint is whole, and the run can go on past it."
    with pytest.raises(InputError) as stopped: finetune(config)
    folder = Path(config.output_dir)
    assert newest_checkpoint(folder).name == "checkpoint-2"
    row, = read_jsonl(folder / FAULTS)
    (where,) = row["samples"]
    assert (row["step"], row["did"], row["alone"]) == (3, "stopped", True)
    assert f"step {where['step']} of episode {where['episode']} of" in str(stopped.value)
    assert "checkpoint-2 is whole: start the run again with --on-nonfinite skip" in str(stopped.value)
    on = replace(config, on_nonfinite="skip")
    with pytest.warns(UserWarning, match="The step is left out"): result = finetune(on)
    line = {r["step"]: r for r in result.log}
    assert math.isnan(line[3]["loss"]) and math.isfinite(line[4]["loss"])
    assert [line[s].get("skipped_steps") for s in (2, 3, 4)] == [None, 1, 1]
    assert [r["did"] for r in read_jsonl(folder / FAULTS)] == ["skipped"]
    before, after = weights(folder / "checkpoint-2"), weights(folder)
    assert all(v.isfinite().all() for v in after.values()) and not same(before, after)
    (_, episode, step), = training_dataset(on, result.prepared).where([broken])
    assert (result.prepared.dataset.episodes[episode].index, step) == (where["episode"], where["step"])
    with pytest.warns(UserWarning): once = finetune(replace(on, output_dir=str(folder / "once")))
    assert same(weights(once.output_dir), after)


def one_of(rank: int, port: int, config: FinetuneConfig):
    "One of two processes that train together."
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    finetune(config)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="forks, which CUDA does not survive")
def test_two_processes_find_what_one_finds(family, config, broken, tmp_path):
    "They share the questions, leave the same step out, and name the same sample."
    if "dropout" in family.capabilities: config = replace(config, dropout=0.0)
    config = replace(config, eval_steps=2, ema_decay=0.9, on_nonfinite="skip")
    with pytest.warns(UserWarning): one = finetune(config)
    two = replace(config, output_dir=str(tmp_path / "two"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=one_of, args=(rank, port, two)) for rank in (0, 1)]
    for p in both: p.start()
    for p in both: p.join()
    assert [p.exitcode for p in both] == [0, 0]
    for a, b in zip(rows(config), rows(two), strict=True):
        assert a["hold"] == b["hold"]
        for who in ("val", "ema"):
            assert b[who]["error"] == pytest.approx(a[who]["error"], rel=1e-3)
            assert b[who]["groups"].keys() == a[who]["groups"].keys()
    faults = [read_jsonl(Path(c.output_dir) / FAULTS) for c in (config, two)]
    assert faults[0] == faults[1] and len(faults[0]) == 1
    for n, kept in averages(newest_checkpoint(config.output_dir)).items():
        near = averages(newest_checkpoint(two.output_dir))[n]
        assert (kept - near).abs().max() <= 1e-3 * max(1, kept.abs().max()), n
    assert best_checkpoint(two.output_dir).name == one.best.name
