"""A robot of ROS 1 through a real master: an ALOHA without metal sends pictures and joints, the kit looks
and commands.

The master runs on a free port of this machine. ROS is Debian's packages; where it is absent the
tests are skipped, with GR00T_NB_ROS=required, as CI sets it, they fail instead.
"""
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.chunks import Chunking
from gr00t_nb.robots.fitting import fit_policy
from gr00t_nb.robots.watch import WatchSettings
from gr00t_nb.rollout.session import Session
from gr00t_nb.ros.ros1 import Ros1Transport, ros1_modules, ros1_robot
from gr00t_nb.ros.messages import numbers_of, stamp_of
from gr00t_nb.ros.topics import ALOHA_ROS, UR3_ROS

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60  # seconds, on a machine that does other things as well


def missing(what: str):
    if os.environ.get("GR00T_NB_ROS") == "required": pytest.fail(what)
    pytest.skip(what)


def until(condition, what: str):
    "Waits for something that must come about."
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition(): return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen in {PATIENCE} s")


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    "A ROS master on loopback, in the environment of this process and of its children."
    try: ros = ros1_modules()
    except InputError as e: missing(str(e))
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    home = tmp_path_factory.mktemp("ros")
    told = dict(ROS_MASTER_URI=f"http://127.0.0.1:{port}", ROS_IP="127.0.0.1")
    told |= dict(ROS_HOME=str(home), ROS_LOG_DIR=str(home))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items(): patch.setenv(name, value)
        process = subprocess.Popen(
            ["rosmaster", "--core", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(ros.rosgraph.is_master_online, "the master's start")
            yield ros
        finally:
            process.terminate()
            process.wait(PATIENCE)


class FakeAloha:
    "The process of tests/fake_aloha.py, and what it was commanded."

    def __init__(self):
        env = os.environ | dict(PYTHONPATH=str(ROOT))
        command = [sys.executable, str(ROOT / "tests/fake_aloha.py")]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.process = subprocess.Popen(command, env=env, **pipes)
        self.lines, self.commands = queue.Queue(), []
        threading.Thread(target=self._read, daemon=True).start()
        assert self.lines.get(timeout=PATIENCE) == "ready"

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("["): self.commands.append(json.loads(line))
            else: self.lines.put(line.strip())

    def wish(self, words: str): print(words, file=self.process.stdin, flush=True)

    def of(self, topic: str) -> np.ndarray: return np.array([p for t, _, p in self.commands if t == topic])

    def close(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE)


@pytest.fixture
def aloha(master):
    fake = FakeAloha()
    yield fake
    fake.close()


@pytest.fixture
def robot(aloha):
    robot = ros1_robot(ALOHA_ROS, patience=PATIENCE)
    yield robot
    robot.close()


def test_looks_and_commands(aloha, robot):
    "Pictures and joints are those that were sent; commands arrive as they were given, in order."
    look = robot.observe()
    assert {v: int(np.median(p)) for v, p in look.video.items()} == dict(
        cam_high=60, cam_left_wrist=120, cam_right_wrist=180
    )
    assert all(p.shape == (480, 640, 3) for p in look.video.values())
    assert [p for p in look.parts() if p.startswith("state")] == ["state.left_arm", "state.right_arm"]
    sent = []
    for k in range(20):
        rows = dict(left_arm=np.full(7, 0.01 * k), right_arm=np.linspace(0, 0.02 * k, 7))
        sent.append(robot.act(rows))
        until(lambda: len(aloha.commands) == 2 * len(sent), "the command's arrival")
    for side in ("left", "right"):
        got = aloha.of(f"/master/joint_{side}")
        np.testing.assert_array_equal(got, [s[f"{side}_arm"] for s in sent])
    assert aloha.commands[0][1] == [f"joint{i}" for i in range(7)]
    last = sent[-1]["left_arm"]
    until(lambda: np.allclose(robot.observe().state["left_arm"], last, atol=1e-6), "the arm's arrival")


def test_a_silent_camera_grows_old(aloha, robot):
    "The looks go on; the silent part keeps its stamp, and is named; when it speaks again, all is well."
    stamp = robot.observe().stamps["video.cam_left_wrist"]
    aloha.wish("silence l")
    until(lambda: robot.observe() and "video.cam_left_wrist is silent" in robot.refused, "its getting old")
    look = robot.observe()
    ages = look.ages(robot.clock.now())
    assert ages["video.cam_left_wrist"] > robot.settings.max_age > 0
    assert look.stamps["video.cam_left_wrist"] - stamp < PATIENCE
    aloha.wish("speak l")
    until(lambda: robot.observe().stamps["video.cam_left_wrist"] > look.stamps["video.cam_left_wrist"], "a new picture")
    until(lambda: robot.observe() and not robot.refused, "a whole look")


def test_what_is_wrong_is_said(aloha):
    "Drivers that are not there, topics with other names or messages: a sentence each, and no waiting for ever."
    def with_camera(**change):
        "An ALOHA one of whose cameras is configured otherwise."
        first, *others = ALOHA_ROS.cameras
        return replace(ALOHA_ROS, cameras=(replace(first, **change), *others))
    for change, words in [
        (dict(topic="/camera_f/color/image"), "Did you mean '/camera_f/color/image_raw'"),
        (dict(kind="sensor_msgs/CompressedImage"), "the configuration says sensor_msgs/CompressedImage"),
    ]:
        robot = ros1_robot(with_camera(**change), patience=PATIENCE)
        robot.patience = 1.0
        with pytest.raises(InputError, match=words): robot.observe()
        robot.close()
    left, right = ALOHA_ROS.commands
    deaf = replace(ALOHA_ROS, commands=(replace(left, topic="/nobody"), right))
    with pytest.raises(InputError, match="Nobody listens to /nobody"): ros1_robot(deaf, patience=0.2)


def test_messages_without_their_package(master):
    "The gripper's message comes with its definition; a class is made of it."
    kind, lines = "robotiq/StampedFloat32", "Header header\nfloat32 data\n"
    header = "=" * 80 + "\nMSG: std_msgs/Header\nuint32 seq\ntime stamp\nstring frame_id\n"
    Grip = master.dynamic(kind, lines + header)[kind]
    transport, got = Ros1Transport(), queue.Queue()
    transport.subscribe("/gripper/position", kind, got.put)
    out = master.rospy.Publisher("/gripper/position", Grip, queue_size=1)
    until(out.get_num_connections, "the connection")
    message = Grip(data=0.04)
    message.header.stamp = master.rospy.Time(7, 250_000_000)
    out.publish(message)
    came = got.get(timeout=PATIENCE)
    assert (numbers_of(came, UR3_ROS.readings[1]), stamp_of(came)) == (np.float32(0.04), 7.25)
    transport.close()
    out.unregister()


def test_a_node_leaves_the_process_as_it_was(master):
    "Signals and the root logger belong to whoever runs the loop."
    root = logging.getLogger()
    before = signal.getsignal(signal.SIGINT), list(root.handlers), root.level
    Ros1Transport().close()
    assert (signal.getsignal(signal.SIGINT), list(root.handlers), root.level) == before


def test_no_master(master, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    monkeypatch.setenv("ROS_MASTER_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(InputError, match=f"No ROS master answers at http://127.0.0.1:{port}"): Ros1Transport()


class Waves:
    "A policy with FluxVLA's names, which waves with both arms and opens one gripper slowly."

    def get_modality_config(self):
        return dict(
            video=ModalityConfig([0], ["cam_high", "cam_left_wrist", "cam_right_wrist"]),
            state=ModalityConfig([0], ["proprio"]),
            action=ModalityConfig(range(1, 17), ["action"]),
            language=ModalityConfig([0], ["annotation.human.task_description"]),
        )

    def get_action(self, question, options=None):
        way = 0.02 * np.sin(np.arange(1, 17) / 3)[None, :, None] * np.ones(14)
        rows = question["state"]["proprio"][:, -1:] + way
        rows[..., [6, 13]] = [0.06, 0.02]
        return dict(action=rows.astype(np.float32)), {}


def session_of(robot, **watch) -> Session:
    "As `rollout.run --robot aloha` puts it together, with a patience for busy machines."
    watch = WatchSettings(**dict(late_after=PATIENCE, heartbeat=PATIENCE, max_age=PATIENCE) | watch)
    policy = fit_policy(Waves(), robot, snaps=robot.settings.snaps)
    return Session(policy, robot, chunks=Chunking(8), watch=watch, pose=robot.settings.prepare)


def test_the_loop_moves_the_robot(aloha, robot):
    "Two seconds of a policy: every command was guarded, and is what the driver got."
    result = session_of(robot).round("wave", 60)
    assert result.reason == "step limit", result.reason
    limits, sent = ALOHA_ROS.limits.groups["left_arm"], [p.done.sent for p in result.periods]
    for side in ("left", "right"):
        own = np.array([s[f"{side}_arm"] for s in sent])
        until(lambda: aloha.of(f"/master/joint_{side}")[-1].tolist() == own[-1].tolist(), "the last command")
        got = iter(own.tolist())  # those that came are among those that were sent, in order
        assert all(row in got for row in aloha.of(f"/master/joint_{side}").tolist())
        assert (np.abs(np.diff(own, axis=0)) <= limits.velocity / robot.rate + 1e-9).all()
    asked = np.array([p.done.asked["right_arm"][6] for p in result.periods if p.kind == "policy"])
    np.testing.assert_allclose(asked, -0.01, rtol=1e-6)  # 0.02 is a closed gripper


def test_a_silent_camera_stops_the_robot(aloha, robot):
    "The loop ends with the camera's name, and the arms stand."
    told = []

    def silence(period, look):
        if len(told) == 20: aloha.wish("silence r")
        told.append(period)

    result = session_of(robot, max_age=1.0).round("wave", 100_000, on_period=silence)
    assert result.reason.startswith("video.cam_right_wrist is"), result.reason
    assert not result.ended_well and result.guard.standing
    until(lambda: len(aloha.commands) >= 2, "a command")
    count = len(aloha.commands)
    last = result.periods[-1].done.sent["left_arm"]
    until(lambda: np.allclose(aloha.of("/master/joint_left")[-1], last), "the last command")
    assert len(aloha.commands) <= count + 4  # nothing is sent to a robot that was stopped


def test_prepare_pose(aloha, robot):
    "From zero to FluxVLA's pose, in steps and within the limits."
    result = session_of(robot).prepare()
    assert result.reason == "done", result.reason
    for group, pose in ALOHA_ROS.prepare.items():
        until(lambda: np.allclose(robot.observe().state[group], pose, atol=1e-5), f"{group} at its pose")
