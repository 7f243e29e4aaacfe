"""The diagnosis of policies with known defects on a second robot.

It is a humanoid with one camera, no gripper, and a sentence for each episode.
"""
from pathlib import Path

import numpy as np
import pytest

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.evaluation.diagnosis_page import rows_that_move
from gr00t_nb.evaluation.diagnostics import Diagnosis, diagnose
from gr00t_nb.evaluation.replay import ReplayPolicy

GR1 = Path(__file__).resolve().parents[2] / "shared/reference/datasets/gr1.PickNPlace"
pytestmark = pytest.mark.skipif(
    not GR1.exists(), reason="the data set gr1.PickNPlace is not beside this checkout"
)


class Replay(ReplayPolicy):
    "Finds the step by the state alone: it looks at no picture and hears no sentence."
    sees, listens = (), False


class Jumps(Replay):
    "Every second chunk lies too high, the others too low."
    def chunk(self, episode, step, noise):
        return self.recorded(episode, step) + (0.3 if step // 16 % 2 else -0.3) * self.spread


class Waits(Replay):
    "Stays where it is in the first steps."
    def chunk(self, episode, step, noise):
        chunk = self.recorded(episode, step)
        return chunk if step > 2 else np.repeat(chunk[:1], 16, 0)


@pytest.fixture(scope="module")
def ds() -> LeRobotDataset: return LeRobotDataset(GR1)


def examined(kind: type, ds: LeRobotDataset) -> Diagnosis:
    policy = kind(ds, MODALITY_CONFIGS["gr1"])
    return diagnose(policy, ds, [0, 3], steps=120, questions=3, draws=2, progress=False)


def wrong(d: Diagnosis) -> dict[str, str]:
    return {f.kind: f.severity for f in d.findings() if f.severity in ("problem", "warning")}


def test_blind_and_deaf(ds):
    d = examined(Replay, ds)
    assert wrong(d) == {"cameras": "problem", "prompt": "problem"}  # one camera is all of them
    assert d.open_loop.mse == 0 and d.motion().value == pytest.approx(1)
    assert len(d.recording.prompts) == 5
    assert any(f.kind == "gripper" and "No gripper" in f.sentence for f in d.findings())
    assert len(d.plot().axes) == 6
    groups = ["left_arm", "right_arm", "left_hand", "right_hand", "waist"]
    assert list(rows_that_move(d)) == groups  # too many dimensions for a row each


def test_jumps(ds):
    found = wrong(examined(Jumps, ds))
    assert found["seams"] == "problem" and "tremble" not in found


def test_late_start(ds):
    assert wrong(examined(Waits, ds))["start"] == "problem"
