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
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.chunks import Chunking
from gr00t_nb.robots.fitting import fit_policy, snapped
from gr00t_nb.robots.moving import way_to_pose
from gr00t_nb.robots.robot import SimulatedClock
from gr00t_nb.robots.watch import WatchSettings
from gr00t_nb.rollout.session import Session
from gr00t_nb.ros.messages import numbers_of
from gr00t_nb.ros.pairing import Mailbox
from gr00t_nb.ros.ros_robot import LocalTransport, RosRobot
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
        now = positions.get(r.group)
        if now is not None: recorder.heard[r.topic][0](SimpleNamespace(position=now, data=now))


def pictures(recorder: Recorder, settings):
    for c in settings.cameras:
        data = np.zeros((8, 10, 3), np.uint8)
        picture = dict(height=8, width=10, step=30, encoding="rgb8", data=data.tobytes())
        recorder.heard[c.topic][0](SimpleNamespace(**picture))


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


class Raw:
    "FluxVLA's fake model, and what its runner makes of the answer."

    def __init__(self, episode: dict, names: dict):
        self.rows, self.names, self.asked = denormalised(episode), names, []

    def get_modality_config(self):
        return dict(
            video=ModalityConfig([0], self.names["video"]),
            state=ModalityConfig([0], ["proprio"]),
            action=ModalityConfig(range(1, 1 + len(self.rows)), ["action"]),
            language=ModalityConfig([0], ["annotation.human.task_description"]),
        )

    def get_action(self, question, options=None):
        look = question["video"] | question["state"]
        shapes = {k: list(np.shape(v)[2:]) for k, v in look.items()}
        self.asked.append(shapes | dict(task_description=sentence(question)))
        return dict(action=self.rows[None].astype(np.float32)), {}


def sentence(question: dict) -> str: return question["language"]["annotation.human.task_description"][0][0]


def session_of(settings, policy: Raw, recorder: Recorder, length: int | None = None) -> Session:
    "As `rollout.run --fluxvla` puts it together; the drivers send at each wait."
    robot = RosRobot(settings, recorder, recorder)

    def drivers():
        pictures(recorder, settings)
        still = {r.group: np.zeros(r.width) if r.width > 1 else 0.05 for r in settings.readings}
        joints(recorder, settings, **still)

    recorder.drivers = drivers
    fitted = fit_policy(policy, robot, snaps=settings.snaps)
    watch = WatchSettings(frozen_after=np.inf)
    session = Session(fitted, robot, chunks=Chunking(length), pose=settings.prepare, watch=watch)
    # without limits ours goes slowly to where a chunk begins; FluxVLA's goes at once
    session.shared["first_step"] = np.inf
    return session


def published(log: list) -> list: return [e for e in log if e[0] == "publish"]


@pytest.mark.parametrize("name, length, tasks", [
    ("aloha_episode", None, {"1": "task one", "2": "task two"}),
    ("aloha_episode_execute_horizon_10_unknown_task", 10, {"1": "task one"}),
])
def test_episodes_of_an_aloha(told, name, length, tasks):
    "Keyboard to commands. FluxVLA waits twice where a chunk ends, for its own end and for a look; here once."
    said, recorder = told[name], Recorder()
    cameras = ["cam_high", "cam_left_wrist", "cam_right_wrist"]
    policy = Raw(told["aloha_episode"], dict(video=cameras))
    session = session_of(as_fluxvla(ALOHA_ROS), policy, recorder, length)
    answers, prompts = iter(said["keyboard"]), []

    def ask(prompt):
        prompts.append(prompt)
        return next(answers)

    usual = "place it in the brown paper bag with right arm"
    session.by_keyboard(tasks, usual, ask, max_steps=published_steps(said), as_fluxvla=True, say=lambda s: None)
    assert prompts == said["prompts"] and said["end"] == "max_publish_step reached"
    same(published(recorder.log), published(said["log"]), within=2e-7)
    observed = [renamed(o, dict(qpos="proprio")) for o in said["observations_passed_to_dataset"]]
    assert policy.asked == observed


def published_steps(said: dict) -> int: return len(published(said["log"])) // 2


def renamed(entry: dict, names: dict) -> dict: return {names.get(k, k): v for k, v in entry.items()}


def test_episode_of_a_ur(told):
    """FluxVLA's order, and its wrist camera under another name. To the prepare pose it sends one message,
    `movej`; ours goes there in steps, and arrives at the same numbers."""
    said, recorder = told["ur_episode"], Recorder()
    policy = Raw(said, dict(video=["cam_high", "cam_wrist"]))
    session = session_of(as_fluxvla(UR3_ROS), policy, recorder)
    answers, prompts = iter(said["keyboard"]), []

    def ask(prompt):
        prompts.append(prompt)
        if len(prompts) == 3: recorder.log.clear()  # what follows is the task
        elif len(prompts) == 2: session.arrived = published(recorder.log)[-2:]
        return next(answers)

    tasks = {"1": "task one", "2": "task two"}
    session.by_keyboard(tasks, "usual", ask, said["action_chunk"], True, lambda s: None)
    assert prompts == said["prompts"]
    theirs = published(said["log"])
    same(published(recorder.log), theirs[2:], within=2e-7)
    (_, _, pose), (_, _, grip) = session.arrived
    np.testing.assert_allclose(pose["position"], theirs[0][2]["position"], rtol=1e-12)
    assert theirs[0][2]["position"] == list(FLUXVLA_UR_POSE) and grip == theirs[1][2]
    names = dict(qpos="proprio", cam_left_wrist="cam_wrist")
    assert policy.asked == [renamed(o, names) for o in said["observations_passed_to_dataset"]]


def test_our_ur_keeps_its_limits(told):
    "The same answers without FluxVLA's rules: a width stays within the gripper, a joint within its speed."
    recorder = Recorder()
    session = session_of(UR3_ROS, Raw(told["ur_episode"], dict(video=["cam_high", "cam_wrist"])), recorder)
    session.round("task two", 8)
    sent = published(recorder.log)
    widths = [m["data"] for _, topic, m in sent if topic == "/cmd/gripper"]
    arm = np.array([m["position"] for _, topic, m in sent if topic == "/cmd/servoj"])
    assert min(widths) >= 0 and max(widths) <= 0.085
    assert np.abs(np.diff(arm, axis=0)).max() <= 1 / 60 + 1e-9
    assert min(m["data"] for _, t, m in published(told["ur_episode"]["log"]) if t == "/cmd/gripper") < -1
