"""Simulators of others behind the robots' protocol, with the policy behind our server.

PushT runs in an environment of its own, without torch. It is made once, in outputs/pusht (about 600 MB), with pip;
where it cannot be made, because no registry is reachable, its tests are skipped. GR00T_NB_PUSHT names an interpreter
that has it already. ALOHA is tried where GR00T_NB_ALOHA names an interpreter with gym-aloha. LIBERO, whose meshes no
package has, is tried against a stand-in.
"""
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from preloaded import ROOT

from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.policy import check_observation
from gr00t_nb.robots.fitting import fit_policy
from gr00t_nb.rollout.closed_loop import ServedConfig, closed_loop_episode, evaluate_closed_loop
from gr00t_nb.rollout.run import RunConfig
from gr00t_nb.serving.client import PolicyClient
from gr00t_nb.serving.server import PolicyServer
from gr00t_nb.simulators.libero import LiberoPanda
from gr00t_nb.simulators.worlds import SIMULATORS

NEEDS = ("gym-pusht==0.1.8", "-r", str(ROOT / "simulators.txt"))
GOAL = np.array([256.0, 100.0])  # pixels of PushT's table of 512


class Approaches:
    "Goes straight to a place, from wherever it is seen to be: in each answer half of the way."
    views, group = ["image"], "agent"

    def __init__(self): self.asked = []

    def get_modality_config(self) -> dict:
        return dict(
            video=ModalityConfig([0], self.views),
            state=ModalityConfig([0], [self.group]),
            action=ModalityConfig(range(16), [self.group]),
            language=ModalityConfig([0], ["task"]),
        )

    def get_action(self, observation, options=None):
        check_observation(observation, self.get_modality_config())
        here = observation["state"][self.group]
        self.asked.append((observation["language"]["task"][0][0], here[0, 0]))
        return {self.group: self.rows(here)}, {}

    def rows(self, here: np.ndarray) -> np.ndarray:  # (1, 16, D)
        part = np.linspace(0, 1, 17)[None, 1:, None]
        return (here + part * (GOAL - here)).astype(np.float32)

    def reset(self, options=None) -> dict: return {}


@pytest.fixture(scope="module")
def python() -> Path:
    "An interpreter that has PushT, and no torch."
    if ready := os.environ.get("GR00T_NB_PUSHT"): return Path(ready)
    folder = ROOT / "outputs/pusht"
    folder.parent.mkdir(exist_ok=True)
    needs = "\n".join([*NEEDS[:1], (ROOT / "simulators.txt").read_text()])
    with FileLock(f"{folder}.lock"):
        ready = folder / "ready"
        if not ready.exists() or ready.read_text() != needs:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            install = [folder / "bin/python", "-m", "pip", "install", "-q", "--no-compile", *NEEDS]
            done = subprocess.run(install, capture_output=True, text=True)
            if done.returncode: pytest.skip(f"gym-pusht cannot be installed: {done.stderr[-300:]}")
            ready.write_text(needs)
    return folder / "bin/python"


def closed_loop(python: Path, server: PolicyServer, simulator: str, out: Path, *flags, lent: str = ""):
    "The command, run where the simulator is; `lent` packages are found after those of the kit."
    env = dict(PYTHONPATH=f"{ROOT}:{lent}", SDL_VIDEODRIVER="dummy", PATH=os.environ["PATH"], HOME=str(out))
    command = [python, "-m", "gr00t_nb.rollout.closed_loop", "--simulator", simulator]
    command += ["--server", f"127.0.0.1:{server.port}", "--output-dir", out / "result", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_three_episodes_of_pusht(python, tmp_path):
    "The agent sees where it is, asks, moves, and arrives; where it runs there is no torch."
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
    with PolicyServer(policy := Approaches(), port=0) as server:
        flags = "--episodes", 3, "--max-steps", 64, "--no-baselines"
        done = closed_loop(python, server, "pusht", tmp_path, *flags)
        assert server.figures.counts["get_action"] == 24
    assert done.returncode == 0, done.stderr
    assert "No videos are written" in done.stderr and "3 episodes of pusht" in done.stdout
    told = json.loads((tmp_path / "result/closed_loop.json").read_text())
    for score in told["episodes"]["policy"]:
        assert (score["reason"], score["chunks"], score["changed"]) == ("step limit", 8, 0)
        assert score["outcome"] in SIMULATORS["pusht"].outcomes
    assert {sentence for sentence, _ in policy.asked} == {"Push the T-shaped block onto the T-shaped target."}
    for k in range(3):
        begin, end = (np.linalg.norm(policy.asked[8 * k + i][1] - GOAL) for i in (0, 7))
        assert end < min(10, begin / 4)
    assert (tmp_path / "result/failure.png").stat().st_size > 10_000


def test_pusht_is_recorded(python, tmp_path):
    "With torchcodec lent from the kit's environment, an episode is a data set without a fault."
    with PolicyServer(Approaches(), port=0) as server:
        flags = "--episodes", 2, "--max-steps", 24, "--no-baselines", "--record", tmp_path / "data"
        bare = closed_loop(python, server, "pusht", tmp_path, *flags)
        done = closed_loop(python, server, "pusht", tmp_path, *flags, lent=sysconfig.get_paths()["purelib"])
    assert bare.returncode == 2 and "nor is torch, which it needs" in bare.stderr and "'.[pusht]'" in bare.stderr
    assert done.returncode == 0, done.stderr
    data = LeRobotDataset(tmp_path / "data")
    assert len(data) == 2 and data.fps == 10 and data.length(0) >= 24
    assert data.frames(0, "image", [0, 20]).shape == (2, 96, 96, 3)
    assert np.ptp(data.frames(0, "image", [0])) > 100  # a picture of something
    way = np.linalg.norm(data.state(1)["agent"] - GOAL, axis=1)
    assert way[-1] < way[0] / 4
    assert not [p for p in check_dataset(data.path).problems if p.severity == "error"]
    assert len(list((tmp_path / "result").glob("failure_*.mp4"))) == 2


def test_a_policy_of_another_robot_is_refused(python, tmp_path):
    class Other(Approaches): views = ["wrist"]
    with PolicyServer(policy := Other(), port=0) as server:
        done = closed_loop(python, server, "pusht", tmp_path)
    assert done.returncode == 2 and not policy.asked
    assert "error: The policy looks through 'wrist', the robot has image." in done.stderr, done.stderr


def test_a_simulator_that_is_not_there_is_told(tmp_path):
    with PolicyServer(Approaches(), port=0) as server:
        done = closed_loop(Path(sys.executable), server, "pusht", tmp_path, "--videos", 0)
    assert done.returncode == 2 and "`pip install gym-pusht==0.1.8` there" in done.stderr, done.stderr


# ---- ALOHA

class Waves(Approaches):
    "Fourteen numbers in one group, as recordings have them: opens the left gripper and lifts the left arm."
    views, group = ["cam_high", "cam_left_wrist", "cam_right_wrist"], "qpos"

    def rows(self, here):
        to = here[0, 0] + np.array([0, 0.2, *[0] * 4, 0.5, *[0] * 7])
        return np.linspace(here[0, 0], to, 17)[None, 1:].astype(np.float32)


@pytest.mark.skipif("GR00T_NB_ALOHA" not in os.environ, reason="GR00T_NB_ALOHA names no interpreter with gym-aloha")
@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_aloha(tmp_path, task):
    "Both arms are where the package says; what is told to one moves that one."
    with PolicyServer(policy := Waves(), port=0) as server:
        flags = "--episodes", 1, "--max-steps", 24, "--no-baselines"
        done = closed_loop(Path(os.environ["GR00T_NB_ALOHA"]), server, f"aloha_{task}", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    first, *_, last = (numbers for _, numbers in policy.asked)
    np.testing.assert_allclose(first[[1, 2, 8, 9]], [-0.96, 1.16] * 2, atol=1e-3)
    assert last[1] > first[1] + 0.1 and last[6] > first[6] + 0.1
    np.testing.assert_allclose(last[7:], first[7:], atol=0.02)


# ---- LIBERO

class Suite:
    "Two tasks with the signatures of `LiberoSuite`: a hand that is to be moved along x, or along y."
    sentences = ("move along x", "move along y")

    def reset(self, seed, options):
        self.task, self.at, self.told = options["task"], np.random.default_rng(seed).uniform(-0.1, 0.1, 3), []
        return self.seen(), {}

    def step(self, action):
        self.told.append(np.array(action))
        self.at = self.at + action[:3] / 20
        done = bool(self.at[self.task] > 0.3)
        return self.seen(), float(done), done, False, dict(is_success=done)

    def seen(self):
        picture = np.zeros((256, 256, 3), np.uint8)
        picture[0, 0] = 255  # upper left in memory: lower right as it is
        hand = dict(robot0_eef_pos=self.at, robot0_eef_quat=np.array([1.0, 0, 0, 0]))
        fingers = dict(robot0_gripper_qpos=np.array([0.04, -0.04]))
        return dict(agentview_image=picture, robot0_eye_in_hand_image=picture) | hand | fingers

    def close(self): pass


class Along(Approaches):
    "A policy in FluxVLA's manner: one row of eight numbers, one of seven; follows the sentence."
    views, group = ["image", "wrist_image"], "row"

    def get_action(self, observation, options=None):
        self.asked.append(observation)
        row = np.zeros((1, 16, 7), np.float32)
        row[..., "xyz".index(observation["language"]["task"][0][0][-1])] = 1
        row[..., 6] = self.gripper
        return dict(row=row), {}


@pytest.mark.parametrize("signs, gripper, sent", [(False, 1.0, -1.0), (False, 0.0, 1.0), (True, 1.0, 1.0)])
def test_libero_through_the_loop(signs, gripper, sent):
    robot, policy = LiberoPanda("libero_goal", signs, Suite()), Along()
    policy.gripper = gripper
    fitted, config = fit_policy(policy, robot), ServedConfig(simulator="libero_goal")
    assert config.longest == 300
    for episode, sentence in enumerate(robot.instructions):
        score, film = closed_loop_episode(fitted, robot, config, episode)
        assert (score.instruction, score.outcome, score.reason) == (sentence, "done", "done")
        first = film[0][robot.views[0]]
        assert first.shape == (256, 256, 3) and first[-1, -1].min() == 255
        moved = [told for told in robot.env.told if told[:3].any()]
        assert len(moved) < 10 and all(told[6] == sent for told in moved)
        assert robot.env.told[-1].tolist() == [0] * 7  # stopped: the hand stands, the gripper is left as it is
    assert policy.asked[0]["state"]["row"].shape == (1, 1, 8)


def test_libero_refuses_the_other_convention():
    robot, policy = LiberoPanda("libero_goal", False, Suite()), Along()
    policy.gripper = -1.0
    score, _ = closed_loop_episode(fit_policy(policy, robot), robot, ServedConfig(simulator="libero_goal"), 0)
    assert "LIBERO's gripper was told -1" in score.reason and not score.success


def test_episodes_are_the_same_each_time_and_no_others():
    robot, begins = LiberoPanda("libero_goal", env=Suite()), []
    for seed, episode in ((0, 0), (0, 2), (1, 0), (0, 0)):
        robot.reset(episode, seed)
        begins.append(robot.observe().state["x"].item())
    assert begins[0] == begins[3] and len(set(begins)) == 3


def test_every_name_tells_what_is_missing():
    "In the kit's own environment none of the packages is there: each says so."
    for name in set(SIMULATORS) - {"cube_to_bowl"}:
        with pytest.raises(InputError, match="is not installed here .* and run `pip install"): SIMULATORS[name]()


@pytest.mark.parametrize("name", ["pusht", "aloha_insertion", "libero_goal"])
def test_what_is_missing_is_told_before_a_policy_is_asked(monkeypatch, name):
    "Nobody waits for a server, or for a checkpoint, to hear that the simulator is not there."
    def asked(*args, **how): raise AssertionError("a policy was asked for")
    monkeypatch.setattr(PolicyClient, "at", asked)
    with pytest.raises(InputError, match="is not installed here"): evaluate_closed_loop(ServedConfig(simulator=name))
    with pytest.raises(InputError, match="is not installed here"):
        RunConfig(name, server="127.0.0.1:1", instruction="go").check()
    monkeypatch.setitem(SIMULATORS, "here", lambda: None)
    with pytest.raises(AssertionError): evaluate_closed_loop(ServedConfig(simulator="here"))
