"""A simulator of others in an environment of its own, with the policy behind our server: PushT.

The environment is made once, in outputs/pusht (about 350 MB), with pip; where it cannot be made, because no
registry is reachable, the test is skipped. GR00T_NB_PUSHT names an interpreter that has it already.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from preloaded import ROOT

from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.policy import check_observation
from gr00t_nb.serving.server import PolicyServer

NEEDS = ("gym-pusht==0.1.8", "msgpack", "pyzmq", "fastcore")
GOAL = np.array([256.0, 100.0])  # pixels of PushT's table of 512


class Approaches:
    "Goes straight to a place, from wherever it is seen to be: in each answer half of the way."

    def get_modality_config(self) -> dict:
        return dict(
            video=ModalityConfig([0], ["top"]),
            state=ModalityConfig([0], ["agent"]),
            action=ModalityConfig(range(16), ["agent"]),
            language=ModalityConfig([0], ["task"]),
        )

    def get_action(self, observation, options=None):
        check_observation(observation, self.get_modality_config())
        here = observation["state"]["agent"]
        part = np.linspace(0, 1, 17)[None, 1:, None]
        return dict(agent=(here + part * (GOAL - here)).astype(np.float32)), {}

    def reset(self, options=None) -> dict: return {}


@pytest.fixture(scope="module")
def python() -> Path:
    "An interpreter that has the simulator."
    if ready := os.environ.get("GR00T_NB_PUSHT"): return Path(ready)
    folder = ROOT / "outputs/pusht"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            install = [folder / "bin/python", "-m", "pip", "install", "-q", "--no-compile", *NEEDS]
            done = subprocess.run(install, capture_output=True, text=True)
            if done.returncode: pytest.skip(f"gym-pusht cannot be installed: {done.stderr[-300:]}")
            (folder / "ready").touch()
    return folder / "bin/python"


def test_three_episodes_of_pusht(python):
    "The agent sees where it is, asks, moves, and arrives; the simulator's process has no torch."
    env = dict(PYTHONPATH=str(ROOT), SDL_VIDEODRIVER="dummy", PATH=os.environ["PATH"])
    with PolicyServer(Approaches(), port=0) as server:
        command = [python, ROOT / "tests/pusht_episodes.py", str(server.port)]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        counts = server.figures.counts
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert counts["get_action"] == 24 and told["foreign"] == []
    for episode in told["episodes"]:
        begin, end = (np.linalg.norm(np.array(episode[k]) - GOAL) for k in ("begin", "end"))
        assert episode["steps"] == 64 and end < min(10, begin / 4), episode
