"""Robots as FluxVLA's runners drive them: what was published there in order is published here.

Its recording has `rate` where a timer is made, `sleep` where it is waited for, and `publish`. Here a
robot of a configuration publishes into a transport that writes it down, and a clock writes down
each wait, which must be one period long.
"""
import json
from types import SimpleNamespace

import numpy as np
import pytest

from gr00t_nb.fluxvla.numbers import unscale_numbers
from gr00t_nb.robots.moving import way_to_pose
from gr00t_nb.robots.robot import SimulatedClock
from gr00t_nb.ros.messages import numbers_of
from gr00t_nb.ros.pairing import Mailbox
from gr00t_nb.ros.ros_robot import LocalTransport, RosRobot
from gr00t_nb.robots.fitting import snapped
from gr00t_nb.ros.topics import ALOHA_ROS, FLUXVLA_UR_POSE, UR3_ROS, as_fluxvla, with_base


@pytest.fixture(scope="module")
def told(bundle) -> dict:
    return json.loads(bundle("fluxvla/extra/robot_loop.json").read_text())


class Recorder(LocalTransport, SimulatedClock):
    "Transport and clock in one: messages and waits in the order in which they happen."

    now = SimulatedClock.now

    def __init__(self):
        SimulatedClock.__init__(self)
        LocalTransport.__init__(self, self)
        self.log, self.waits, self.drivers = [], [], lambda: None

    def send(self, topic, message):
        self.log.append(["publish", topic, plain(message)])
        for heard in self.heard.get(topic, ()): heard(message)

    def sleep_until(self, t):
        self.log.append(["sleep"])
        self.waits.append(t - self.seconds)
        super().sleep_until(t)
        self.drivers()


def plain(message) -> dict:
    "A message as the recording writes it."
    if hasattr(message, "linear"): return dict(linear_x=message.linear.x, angular_z=message.angular.z)
    if hasattr(message, "position"): return dict(name=message.name, position=message.position)
    return dict(data=message.data)


def without_rates(log: list) -> list: return [entry for entry in log if entry[0] != "rate"]


def same(ours: list, theirs: list, within: float = 1e-12):
    "Equal entries, numbers to the last bits; what a policy answers is float32."
    theirs = without_rates(theirs)
    assert [e[:2] for e in ours] == [e[:2] for e in theirs]
    for mine, its in zip(ours, theirs):
        if mine[0] == "sleep": continue
        assert mine[2].keys() == its[2].keys() and mine[2].get("name") == its[2].get("name")
        for field, value in its[2].items():
            if field != "name": np.testing.assert_allclose(mine[2][field], value, rtol=within, atol=within)


def joints(recorder: Recorder, settings, **positions):
    "What the arms' drivers send."
    for r in settings.readings:
        if r.group in positions: recorder.heard[r.topic][0](SimpleNamespace(position=positions[r.group], data=positions[r.group]))


def pictures(recorder: Recorder, settings):
    for c in settings.cameras:
        data = np.zeros((8, 10, 3), np.uint8)
        recorder.heard[c.topic][0](SimpleNamespace(height=8, width=10, step=30, encoding="rgb8", data=data.tobytes()))


def test_messages_are_paired(told):
    "FluxVLA's rule, and what stays in its queues."
    names = dict(F="front", L="left", R="right", AL="arm_left", AR="arm_right")
    assert len(told["aloha_sync"]) == 4
    for entry in told["aloha_sync"]:
        box = Mailbox(tuple(names.values()), leads=("front", "left", "right"))
        for short, stamps in entry["case"].items():
            for s in stamps: box.put(names[short], s, f"{short}{s}" if len(short) == 1 else s)
        found = box.pair()
        assert (found and [m.value for m in found.values()] or False) == entry["result"]
        assert {n: len(q) for n, q in box.queues.items()} == entry["left"]


def carry_out(robot: RosRobot, recorder: Recorder, rows: dict):
    "Commands one after another, a period each."
    due = recorder.now()
    for k in range(len(next(iter(rows.values())))):
        robot.act({g: r[k] for g, r in rows.items()})
        recorder.sleep_until(due := due + 1 / robot.rate)


def test_step_wise_move(told):
    said, recorder = told["aloha_move_to_joints"], Recorder()
    robot = RosRobot(as_fluxvla(ALOHA_ROS), recorder, recorder)
    places = {k: {f"{s}_arm": np.array(said[f"{k}_{s}"]) for s in ("left", "right")} for k in ("start", "target")}
    carry_out(robot, recorder, way_to_pose(places["start"], places["target"], said["step"]))
    same(recorder.log, said["log"])
    assert np.allclose(recorder.waits, 1 / said["publish_rate"])


def test_a_chunk_with_the_base(told):
    said, recorder = told["aloha_execute_trajectory"], Recorder()
    robot = RosRobot(with_base(as_fluxvla(ALOHA_ROS)), recorder, recorder)
    rows = np.array(said["trajectory"])
    carry_out(robot, recorder, dict(left_arm=rows[:, :7], right_arm=rows[:, 7:14], base=rows[:, 14:]))
    same(recorder.log, said["log"])
    assert said["log"][0] == ["rate", pytest.approx(1 / recorder.waits[0])]


def denormalised(episode: dict) -> np.ndarray:  # (T, D)
    "What FluxVLA's runner makes of the model's answer: its units, cut to a chunk."
    rows = np.array(episode["raw_actions"][0])
    return unscale_numbers(rows, episode["stats"]["private"]["action"], "mean_std")[: episode["action_chunk"]]


def test_grippers_are_snapped(told):
    said, snap = told["aloha_postprocess"], ALOHA_ROS.snaps[0]
    rows = denormalised(told["aloha_episode"])
    sent = snapped(dict(left_arm=rows[:, :7], right_arm=rows[:, 7:]), ALOHA_ROS.snaps)
    np.testing.assert_allclose(np.concatenate([*sent.values()], 1), said["out"], rtol=1e-12)
    assert snap.below == said["gripper_threshold"] and (rows[:, 6] < snap.below).any()


def test_order_of_a_ur(told):
    "Without names FluxVLA's order; with them the names decide."
    arm, gripper = UR3_ROS.readings
    q = numbers_of(SimpleNamespace(position=np.arange(10.0, 16.0)), arm)
    width = numbers_of(SimpleNamespace(data=0.04), gripper)
    assert [*q, *width] == np.float32(told["ur_qpos_from_joint_states_10_to_15_gripper_0.04"]).tolist()
    assert told["ur_observation_keys"] == ["qpos", "cam_high", "cam_left_wrist"]  # the wrist under another name
