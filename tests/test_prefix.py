"A model that was trained to continue a prefix, and a loop that lets it do so."
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from preloaded import python

from gr00t_nb.checkpoints.registry import families
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError
from gr00t_nb.policy.chunks import Chunking
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.robots.limits import propose_limits
from gr00t_nb.robots.stand_ins import RecordedRobot
from gr00t_nb.rollout import closed_loop
from gr00t_nb.rollout.evaluate import ClosedLoopConfig
from gr00t_nb.rollout.loop import run_episode

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data_samples/cube_to_bowl"
TRAINING = dict(enabled=True, max_delay=4, distribution="uniform")


def knows_prefixes(family, folder: Path) -> bool:
    family.save_tiny(folder)
    return hasattr(family.read_config(folder), "rtc_training_config")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    "A tiny model that has held prefixes in three steps of training."
    tmp = tmp_path_factory.mktemp("prefix")
    family = next(f for k, f in enumerate(families()) if knows_prefixes(f, tmp / str(k)))
    bases = sorted(tmp.iterdir(), key=lambda p: int(p.name))
    model, processor = family.load_model(bases[-1]), family.load_processor(bases[-1])
    model.config = replace(model.config, rtc_training_config=TRAINING)
    family.save(tmp / "base", model, processor)
    assert "rtc_delay" in family.draw_flow(model.config, [0, 1], seed=0)
    done = python(
        ROOT / "scripts/finetune.py", "--base-model-path", tmp / "base", "--dataset-path", SAMPLE,
        *("--embodiment-tag", "NEW_EMBODIMENT", "--modality-config-path", f"{SAMPLE}_config.py"),
        *("--max-steps", 3, "--global-batch-size", 4, "--dataloader-num-workers", 0, "--logging-steps", 1),
        *("--no-check-data", "--output-dir", tmp / "run"), timeout=300,
    )
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp / "run/log.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and np.isfinite(losses).all()
    return tmp / "run"


def test_a_loop_continues_prefixes(trained):
    "Rows that are being executed while the policy computes come back in its answer, to the bit."
    policy = Gr00tPolicy("NEW_EMBODIMENT", trained, device="cpu")
    assert policy.model.config.rtc_training_config == TRAINING
    data = LeRobotDataset(SAMPLE)
    chunks = Chunking(8, asynchronous=True, first_delay=3, continuation="prefix")
    result = run_episode(
        policy, RecordedRobot(data, 3), "put the blue cube in the bowl", limits=propose_limits(data), chunks=chunks,
        max_steps=26, options=lambda tick: dict(seed=tick),
    )
    assert result.reason == "step limit", result.reason
    # the first answers are of a robot that waits, and on its slow way to the start
    pairs = [(a, b) for a, b in zip(result.chunks, result.chunks[1:]) if b.arrived - b.begin == 3]
    assert len(pairs) >= 2
    for old, new in pairs:
        for group, rows in new.actions.items():
            left = old.left(new.begin)[group].astype(np.float32)
            assert np.array_equal(rows[:3], left[:3])
            assert not np.array_equal(rows[3 : len(left)], left[3:])  # the rest is its own answer


def test_others_are_refused_before_anything_starts(trained, tmp_path, monkeypatch):
    "In the process that somebody has started, and not in one of its workers."
    policy = Gr00tPolicy("NEW_EMBODIMENT", trained, device="cpu")
    policy.model.config = replace(policy.model.config, rtc_training_config=None)
    policy.family.save(tmp_path / "plain", policy.model, policy.processor)
    def started(*args, **kwargs): raise AssertionError("a worker was started")
    monkeypatch.setattr(closed_loop, "in_processes", started)
    told = dict(continuation="prefix", delay=3, processes=2, output_dir=str(tmp_path / "out"))
    with pytest.raises(InputError, match="was not trained to continue a prefix"):
        closed_loop.evaluate_closed_loop(ClosedLoopConfig(str(tmp_path / "plain"), **told), progress=False)
    with pytest.raises(AssertionError, match="a worker was started"):
        closed_loop.evaluate_closed_loop(ClosedLoopConfig(str(trained), **told), progress=False)
