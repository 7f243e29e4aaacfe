"The diagnosis of policies with known defects on a second robot: a humanoid with one camera, no gripper, and a sentence for each episode."
from pathlib import Path

import numpy as np
import pytest

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.evaluation.diagnostics import diagnose

GR1 = Path(__file__).resolve().parents[2] / "shared/reference/datasets/gr1.PickNPlace"
pytestmark = pytest.mark.skipif(
    not GR1.exists(), reason="the data set gr1.PickNPlace is not beside this checkout"
)


class Replay:
    "Answers with the recording, which it finds by the state alone; `spoil` changes the chunk."
    def __init__(self, ds: LeRobotDataset, spoil=lambda chunk, t: chunk):
        self.config, self.spoil = MODALITY_CONFIGS["gr1"], spoil
        self.widths = {
            g: x.shape[1] for g, x in ds.action(0, self.config["action"].modality_keys).items()
        }
        self.truth = [
            np.concatenate(list(ds.action(e, self.widths).values()), 1) for e in range(len(ds))
        ]
        states = [
            np.concatenate(list(ds.state(e, self.config["state"].modality_keys).values()), 1)
            for e in range(len(ds))
        ]
        self.where = {
            row.tobytes(): (e, t) for e, s in enumerate(states) for t, row in enumerate(s)
        }

    def get_modality_config(self): return self.config
    def draw_noise(self, seed): return np.zeros((16, 32), np.float32)

    def predict(self, steps, noise):
        chunks = []
        for s in steps:
            e, t = self.where[
                np.concatenate(
                    [s[f"state.{g}"][0] for g in self.config["state"].modality_keys]
                ).tobytes()
            ]
            chunks.append(
                self.spoil(self.truth[e][np.minimum(t + np.arange(16), len(self.truth[e]) - 1)], t)
            )
        parts = np.split(np.stack(chunks), np.cumsum(list(self.widths.values()))[:-1], axis=2)
        return dict(zip(self.widths, parts))


@pytest.fixture(scope="module")
def ds() -> LeRobotDataset: return LeRobotDataset(GR1)


def wrong(d) -> dict[str, str]:
    return {f.kind: f.severity for f in d.findings() if f.severity in ("problem", "warning")}


def test_blind_and_deaf(ds):
    d = diagnose(Replay(ds), ds, [0, 3], steps=120, questions=3, draws=2, progress=False)
    assert wrong(d) == {"cameras": "problem", "prompt": "problem"}  # one camera is all of them
    assert (
        d.open_loop.mse == 0
        and d.motion().value == pytest.approx(1)
        and len(d.recording.prompts) == 5
    )
    assert any(f.kind == "gripper" and "No gripper" in f.sentence for f in d.findings())
    assert len(d.plot().axes) == 6 and list(d._seam_rows()) == [
        "left_arm",
        "right_arm",
        "left_hand",
        "right_hand",
        "waist",
    ]


def test_jumps(ds):
    spread = diagnose(
        Replay(ds), ds, [0], steps=16, questions=1, draws=1, progress=False
    ).recording.spread
    shifted = Replay(
        ds, lambda chunk, t: (chunk + (0.3 if t // 16 % 2 else -0.3) * spread).astype(np.float32)
    )
    d = diagnose(shifted, ds, [0, 3], steps=120, questions=3, draws=2, progress=False)
    assert wrong(d)["seams"] == "problem" and "tremble" not in wrong(d)


def test_late_start(ds):
    waits = Replay(ds, lambda chunk, t: chunk if t > 2 else np.repeat(chunk[:1], 16, 0))
    assert (
        wrong(diagnose(waits, ds, [0, 3], steps=120, questions=3, draws=2, progress=False))["start"]
        == "problem"
    )
