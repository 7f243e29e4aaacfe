"""From a policy to a moving robot: what the guard promises of whatever comes, and how an episode ends."""
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError
from gr00t_nb.evaluation.replay import ReplayPolicy
from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.chunks import Chunking, ChunkSchedule
from gr00t_nb.robots.guard import Guard
from gr00t_nb.robots.limits import propose_limits
from gr00t_nb.robots.robot import GroupLimits, MotionLimits, Observation, WallClock
from gr00t_nb.robots.stand_ins import RecordedRobot, StandIn
from gr00t_nb.robots.watch import WatchSettings
from gr00t_nb.rollout import closed_loop
from gr00t_nb.rollout.loop import Control, run_episode
from gr00t_nb.rollout.questions import ThreadAsker
from gr00t_nb.rollout.recorder import EpisodeRecorder

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data_samples/cube_to_bowl"
LIMITS = MotionLimits(dict(
    arm=GroupLimits([-1.5] * 6, [1.5] * 6, [2, 3, 1, 2, 4, 2], [10, 20, 5, 40, 8, 12]),
    gripper=GroupLimits([0], [1], [5], [50]),
))


class Waves:
    "Answers with rows of any kind: `rows(call)` gives (16, 6)."
    def __init__(self, rows): self.rows, self.calls = rows, 0

    def get_modality_config(self):
        keys = ["arm", "gripper"]
        kinds = dict(video=["front"], state=keys, language=["task"])
        return {k: ModalityConfig([0], v) for k, v in kinds.items()} | dict(action=ModalityConfig(range(16), keys))

    def get_action(self, question, options=None):
        self.calls += 1
        return dict(arm=self.rows(self.calls)[None], gripper=np.ones((1, 16, 1))), {}


def calm(call): return 0.2 * np.sin((8 * call + np.arange(16)[:, None]) / 10 + np.zeros(6))


def series(kind: str, rng, periods: int = 150) -> np.ndarray:  # (periods, 6)
    "Commands of every bad kind."
    if kind == "noise": return rng.normal(0, 10 ** rng.uniform(-2, 2), (periods, 6))
    if kind == "steps": return np.repeat(rng.uniform(-4, 4, (periods // 10, 6)), 10, 0)
    if kind == "runaway": return np.arange(periods)[:, None] * rng.uniform(-1, 1, 6)
    if kind == "ends": return rng.choice([-1.5, 1.5], (periods, 6))
    return 3 * np.sin(np.arange(periods)[:, None] * rng.uniform(0.05, 3, 6))


def assert_within(sent: np.ndarray, start: np.ndarray, lim: GroupLimits, rate: float):
    "Range, speed, acceleration; and from each step braking ends before the range does."
    places = np.concatenate([start[None], sent])
    speed = np.concatenate([np.zeros((1, places.shape[1])), np.diff(places, axis=0) * rate])
    assert (places >= lim.low - 1e-9).all() and (places <= lim.high + 1e-9).all()
    assert (np.abs(speed) <= lim.velocity + 1e-9).all()
    assert (np.abs(np.diff(speed, axis=0)) * rate <= lim.acceleration + 1e-6).all()
    left, at = np.abs(speed), places.copy()
    while (left > 0).any():
        left = np.maximum(left - lim.acceleration / rate, 0)
        at += np.sign(speed) * left / rate
    assert (at >= lim.low - 1e-9).all() and (at <= lim.high + 1e-9).all()


# ---- the guard

@pytest.mark.parametrize("kind", ["noise", "steps", "runaway", "ends", "sines"])
@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_whatever_comes_the_limits_are_kept(kind, rate):
    lim = LIMITS.groups["arm"]
    for seed in range(12):
        rng = np.random.default_rng([seed, int(rate)])
        guard, start = Guard(LIMITS, rate, dict(arm=6, gripper=1)), rng.uniform(-1.5, 1.5, 6)
        guard.begin(dict(arm=start, gripper=np.ones(1)))
        asked = series(kind, rng)
        sent = []
        for k, row in enumerate(asked):
            slow = rng.choice([1.0, 0.2]) if seed % 3 == 0 else 1.0
            hold = seed % 4 == 1 and k % 17 > 12
            one = guard.hold() if hold else guard.send(dict(arm=row, gripper=[k % 2]), slow)
            sent.append(one.sent["arm"])
        assert_within(np.stack(sent), start, lim, rate)
        assert guard.counts["arm"].sum() > 0  # there was something to do


def test_a_joint_outside_of_its_range_only_comes_back():
    guard = Guard(LIMITS, 20, dict(arm=6, gripper=1))
    guard.begin(dict(arm=np.full(6, 2.0), gripper=np.zeros(1)))
    places = [guard.send(dict(arm=[9] * 6, gripper=[0])).sent["arm"] for _ in range(60)]
    assert (np.diff(places, axis=0) <= 1e-12).all() and np.allclose(places[-1], 1.5)


def test_recorded_motion_is_not_touched():
    sample = LeRobotDataset(SAMPLE)
    limits = propose_limits(sample)
    for e in (0, 7, 21, 39):
        actions = sample.action(e)
        guard = Guard(limits, sample.fps, {g: a.shape[1] for g, a in actions.items()})
        guard.begin({g: s[0] for g, s in sample.state(e).items()})
        for t in range(sample.length(e)): guard.send({g: a[t] for g, a in actions.items()})
        assert guard.touched == 0


# ---- the schedule

@pytest.mark.parametrize("seed", range(4))
def test_a_schedule_never_executes_the_past(seed):
    "Whatever the delays: a row is executed at its own tick, of the newest answer that is there."
    rng = np.random.default_rng(seed)
    schedule, due = ChunkSchedule(Chunking(6, asynchronous=True), 16), None
    for tick in range(300):
        if schedule.question_due(tick):
            schedule.question(tick)
            due = tick + int(rng.integers(0, 14))
        if due == tick: schedule.answer(tick, dict(arm=(schedule.pending + np.arange(16.0))[:, None]))
        row = schedule.command(tick)
        assert row is None or row["arm"][0] == tick


# ---- how an episode ends

def test_the_same_each_time():
    def play():
        robot = StandIn(rate=20, limits=LIMITS)
        rows = lambda call: calm(call) + np.random.default_rng(call).normal(0, 0.3, (16, 6))
        chunks = Chunking(8, asynchronous=True, first_delay=3)
        result = run_episode(Waves(rows), robot, "wave", chunks=chunks, max_steps=80)
        return np.stack([s["arm"] for s in robot.sent]), [c.begin for c in result.chunks]
    first, again = play(), play()
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]
    assert_within(first[0], np.zeros(6), LIMITS.groups["arm"], 20)


WORDS = dict(
    nan="finite", shape="shape", missing="but not 'arm'", late="late", frozen="frozen", stale="s old",
    early="in the future", refused="another robot", gone="unplugged",
    crash="ValueError: out of memory", broken="ValueError: of a callback",
)


@pytest.mark.parametrize("fault", [*WORDS])
def test_every_fault_leaves_it_standing(fault):
    class Robot(StandIn):
        def observe(self):
            look = super().observe()
            if len(self.sent) < 20: self.kept = look
            if fault == "gone" and len(self.sent) >= 20: raise InputError("the camera was unplugged")
            if fault == "frozen": return Observation(self.kept.video, look.state, look.stamps)
            if fault == "stale": return Observation(look.video, look.state, self.kept.stamps)
            if fault == "early" and len(self.sent) >= 20:
                return Observation(look.video, look.state, {k: t + 30 for k, t in look.stamps.items()})
            return look

    class Policy(Waves):
        def get_action(self, question, options=None):
            actions, info = super().get_action(question, options)
            if self.calls < 4: return actions, info
            if fault == "nan": actions["arm"][0, 3, 2] = np.nan
            if fault == "shape": actions["arm"] = actions["arm"][..., :5]
            if fault == "missing": del actions["arm"]
            if fault == "refused": raise InputError("the observation is of another robot")
            if fault == "crash": raise ValueError("out of memory")
            return actions, info

    robot = Robot(rate=20, limits=LIMITS)
    chunks = Chunking(8, asynchronous=fault == "late", first_delay=25 if fault == "late" else 1)
    policy = Policy(lambda call: 3 * calm(call))
    def look_on(period, look):
        if fault == "broken" and len(robot.sent) == 30: raise ValueError("of a callback")
    told = dict(chunks=chunks, max_steps=200, on_period=look_on)
    result = run_episode(policy, robot, "wave", **told)
    assert WORDS[fault] in result.reason and not result.ended_well
    assert result.guard.standing
    assert (type(result.error) is ValueError) == (fault in ("crash", "broken"))
    assert_within(np.stack([s["arm"] for s in robot.sent]), np.zeros(6), LIMITS.groups["arm"], 20)
    assert robot.stopped == 1 and 5 < len(robot.sent) < 150


def test_the_slow_first_move():
    robot = StandIn(rate=20, limits=LIMITS)
    result = run_episode(Waves(lambda call: calm(call) + 1.2), robot, "wave", chunks=Chunking(8), max_steps=30)
    first = [p for p in result.periods if p.kind == "approach"]
    assert len(first) > 20 and result.count("policy") == 30
    places = np.stack([p.done.sent["arm"] for p in first])
    assert (np.abs(np.diff(places, axis=0)) * 20 <= 0.2 * LIMITS.groups["arm"].velocity + 1e-9).all()


class Hangs(StandIn):
    "Its camera shows for ever what it has shown at first; the stamps are new."
    def observe(self):
        look = super().observe()
        self.shown = getattr(self, "shown", look.video)
        return Observation(self.shown, look.state, look.stamps)


def test_a_camera_that_hangs_is_noticed_in_slow_motion_too():
    "On the slow way to the start; by a base that drives evenly; and by an arm that creeps, after the same way."
    robot = Hangs(rate=20, limits=LIMITS)
    result = run_episode(Waves(lambda call: calm(call) + 1.2), robot, "wave", chunks=Chunking(8), max_steps=30)
    assert "video.front is frozen" in result.reason and {p.kind for p in result.periods} == {"approach", "stopping"}

    creeps = GroupLimits([-2], [2], [4.0], [100.0])  # a camera should notice 0.08 a second: it goes half as fast
    drives = GroupLimits([-1], [1], [2.0], [100.0], rest=[0.0])
    for lim, rows, seconds in (
        (creeps, lambda call: 0.002 * (8 * call + np.arange(16)), 2.0), (drives, lambda call: np.full(16, 0.5), 1.0)
    ):
        robot = Hangs(dict(arm=1), rate=20, limits=MotionLimits(dict(arm=lim)), follow=1.0)
        policy = Waves(lambda call: rows(call)[:, None])
        policy.get_modality_config = lambda: dict(
            state=ModalityConfig([0], ["arm"]), language=ModalityConfig([0], ["task"]),
            action=ModalityConfig(range(16), ["arm"]),
        )
        result = run_episode(policy, robot, "go", chunks=Chunking(8), max_steps=200)
        assert "video.front is frozen" in result.reason
        assert seconds - 0.1 < result.seconds < seconds + 0.7


@pytest.mark.parametrize("arm", [None, GroupLimits([-2] * 6, [2] * 6, [np.inf] * 6, [np.inf] * 6)])
@pytest.mark.parametrize("told, step", [({}, 1.2 / 60), (dict(first_step=0.05), 0.05)])
def test_the_slow_first_move_of_an_arm_without_a_limit_of_its_speed(arm, told, step):
    robot = StandIn(rate=20, limits=MotionLimits(dict(arm=arm, gripper=LIMITS.groups["gripper"])), follow=1.0)
    policy = Waves(lambda call: np.full((16, 6), 1.2))
    result = run_episode(policy, robot, "go", chunks=Chunking(8), max_steps=20, **told)
    places = np.stack([p.done.sent["arm"] for p in result.periods])
    assert result.ended_well and result.count("approach") >= 20
    assert np.abs(np.diff(places, axis=0)).max() <= step + 1e-6 and np.allclose(places[-1], 1.2)


def test_it_goes_on_from_what_a_robot_has_sent():
    "A robot with limits of its own is told nothing that lies further than a step from what it has sent."
    class Cuts(StandIn):
        def act(self, command):
            self.told = [*getattr(self, "told", []), command["arm"]]
            return super().act(command | dict(arm=np.clip(command["arm"], -0.1, 0.1)))
    robot = Cuts(rate=20, limits=LIMITS, follow=1.0)
    result = run_episode(Waves(lambda call: 1.3 * calm(call)), robot, "wave", chunks=Chunking(8), max_steps=80)
    told, sent = np.stack(robot.told), np.stack([s["arm"] for s in robot.sent])
    kept = np.stack([p.done.sent["arm"] for p in result.periods])
    assert result.ended_well and np.array_equal(kept, sent)
    assert (np.abs(told[1:] - sent[:-1]) * 20 <= LIMITS.groups["arm"].velocity + 1e-6).all()
    cut = np.abs(told - sent) > 1e-4
    assert cut.any() and np.array_equal(result.guard.counts["arm"][:, -1], cut.sum(0))
    assert result.changed()[1] == cut.any(1).sum() and "has sent something else" in str(result)

    robot = Cuts(rate=20, limits=LIMITS, follow=1.0)
    result = run_episode(Waves(lambda call: calm(call) + 1.0), robot, "wave", chunks=Chunking(8), max_steps=80)
    assert "no nearer to where the chunk begins" in result.reason and robot.stopped == 1  # it never gets there


@pytest.mark.parametrize("told, words", [(None, "returned a NoneType"), (dict(arm=[0] * 6), "not 'gripper'")])
def test_a_robot_that_does_not_tell_what_it_has_sent(told, words):
    class Mute(StandIn):
        def act(self, command):
            super().act(command)
            return told
    robot = Mute(rate=20, limits=LIMITS)
    result = run_episode(Waves(calm), robot, "wave", chunks=Chunking(8), max_steps=20)
    assert words in result.reason and robot.stopped == 1


def test_a_question_of_the_episode_before_is_waited_for():
    "A policy is asked by one thread at a time, and reset by nobody while it computes."
    begun, go, inside = threading.Event(), threading.Event(), []
    class Slow(Waves):
        def reset(self): inside.append("reset")
        def get_action(self, question, options=None):
            inside.append("in")
            answer = super().get_action(question, options)
            if self.calls == 2:
                begun.set()
                assert go.wait(120)
            inside.append("out")
            return answer
    policy, control = Slow(calm), Control()
    watch = WatchSettings(max_age=600, frozen_after=600, late_after=600, heartbeat=600)
    told = dict(chunks=Chunking(4, asynchronous=True, first_delay=1), watch=watch)
    def stop(period, look):
        if begun.is_set(): control.stop()
    robot = StandIn(rate=100, limits=LIMITS, clock=WallClock())
    run_episode(policy, robot, "wave", max_steps=10**6, on_period=stop, control=control, **told)
    assert inside == ["reset", "in", "out", "in"]  # it is over, and the policy still at its question
    hasty = told | dict(watch=WatchSettings(answer_within=0.05))
    with pytest.raises(InputError, match="still computing the last question"):
        run_episode(policy, robot, "wave", max_steps=5, **hasty)
    threading.Timer(0.2, go.set).start()
    result = run_episode(policy, robot, "wave", max_steps=5, **told)
    assert result.ended_well and inside[3:6] == ["in", "out", "reset"]
    assert all(pair != ("in", "in") for pair in zip(inside, inside[1:]))


def test_a_pause_and_a_stop_from_elsewhere():
    control, kinds = Control(), []
    def press(period, look):
        kinds.append(period.kind)
        if len(kinds) == 20: control.pause()
        if len(kinds) == 40: control.resume()
        if len(kinds) == 60: control.stop("the button")
    robot = StandIn(rate=20, limits=LIMITS)
    told = dict(chunks=Chunking(8), max_steps=500, on_period=press, control=control)
    result = run_episode(Waves(calm), robot, "wave", **told)
    assert result.reason == "the button" and result.count("paused") == 20
    assert kinds[20:40] == ["paused"] * 20 and kinds[41] in ("policy", "approach")


def test_after_a_pause_it_begins_where_it_is_seen():
    control, ticks = Control(), []
    robot = StandIn(rate=20, limits=LIMITS)
    def press(period, look):
        ticks.append(len(robot.sent))
        if len(ticks) == 20: control.pause()
        if len(ticks) == 40:
            robot.at["arm"][:] = -0.9  # somebody moves it by hand
            control.resume()
    run_episode(Waves(calm), robot, "wave", chunks=Chunking(8), max_steps=100, on_period=press, control=control)
    sent = np.stack([s["arm"] for s in robot.sent])[40:]
    assert_within(sent, np.full(6, np.float32(-0.9), float), LIMITS.groups["arm"], 20)


def test_an_answer_from_before_a_pause_is_not_taken():
    begun, go = threading.Event(), threading.Event()
    class Slow(Waves):
        def get_action(self, question, options=None):
            answer = super().get_action(question, options)
            if self.calls == 1:
                begun.set()
                assert go.wait(120)
            return answer
    asker = ThreadAsker(Slow(lambda call: np.full((16, 6), float(call))))
    asker.ask({}, {}, 0, False)
    assert begun.wait(120)
    asker.drop()
    asker.ask({}, {}, 5, False)
    go.set()
    while (answer := asker.answer(6)) is None: threading.Event().wait(0.01)
    asker.close()
    assert answer["arm"][0, 0] == 2


def test_a_speed_begins_and_ends_at_rest():
    "Whatever a state of its name says: odometry is a place, not a speed."
    base = GroupLimits([-0.3, -0.6], [0.3, 0.6], [0.5, 1.0], [np.inf] * 2, rest=[0, 0])
    robot = StandIn(groups=dict(base=2), views=(), limits=MotionLimits(dict(base=base)))
    robot.at["base"][:] = [5, 2]
    class Still(Waves):
        def get_modality_config(self):
            kinds = {k: ModalityConfig([0], v) for k, v in dict(video=[], state=[], language=["task"]).items()}
            return kinds | dict(action=ModalityConfig(range(16), ["base"]))
        def get_action(self, question, options=None): return dict(base=np.zeros((1, 16, 2))), {}
    run_episode(Still(None), robot, "stay", max_steps=5)
    assert (np.stack([s["base"] for s in robot.sent]) == 0).all()


def test_what_nobody_knows_is_not_sent():
    "A group that may do anything, of a robot that has no state of it."
    robot = StandIn(views=(), limits=MotionLimits(dict(arm=None, gripper=None)))
    robot.state = dict(q=7)
    robot.observe = lambda: Observation({}, dict(q=np.ones(7, np.float32)), {"state.q": robot.clock.now()})
    class Blind(Waves):
        def get_modality_config(self):
            return super().get_modality_config() | dict(video=ModalityConfig([0], []), state=ModalityConfig([0], ["q"]))
    result = run_episode(Blind(calm), robot, "wave", max_steps=5)
    assert "no state 'arm'" in result.reason and not robot.sent


def test_a_robot_that_does_not_follow():
    class Blocked(StandIn):
        def act(self, command):
            stuck = self.at["arm"][2]
            sent = super().act(command)
            self.at["arm"][2] = stuck
            return sent
    robot = Blocked(rate=20, limits=LIMITS)
    watch = WatchSettings(following=dict(arm=0.2))
    waves = Waves(lambda call: 3 * calm(call))
    result = run_episode(waves, robot, "wave", chunks=Chunking(8), watch=watch, max_steps=200)
    assert "joint 2 of arm does not follow" in result.reason and result.guard.standing
    free = StandIn(rate=20, limits=LIMITS)
    assert run_episode(waves, free, "wave", chunks=Chunking(8), watch=watch, max_steps=200).ended_well


def test_a_rest_lies_within_the_range():
    with pytest.raises(InputError, match="rest is"): GroupLimits([-1], [1], [1], [1], rest=[2])
    with pytest.raises(InputError, match="rest is"):
        MotionLimits.from_json(dict(base=dict(low=[-1], high=[1], velocity=[1], acceleration=[1], rest=[None])))


def test_a_loop_that_hangs_is_stopped_from_outside():
    "The camera's driver blocks until somebody has called stop."
    stopped = threading.Event()
    class Hanging(StandIn):
        def observe(self):
            if len(self.sent) == 10: assert stopped.wait(120)
            return super().observe()
        def stop(self):
            super().stop()
            stopped.set()
    robot = Hanging(rate=100, limits=LIMITS, clock=WallClock())
    watch = WatchSettings(max_age=600, frozen_after=600, late_after=600, heartbeat=1.0)
    result = run_episode(Waves(calm), robot, "wave", chunks=Chunking(8), watch=watch, max_steps=2000)
    assert "silent" in result.reason and robot.stopped >= 1
    assert len(robot.sent) == 10  # nothing is sent to a robot that was stopped


def test_a_policy_that_never_answers():
    never = threading.Event()
    class Silent(Waves):
        def get_action(self, question, options=None):
            if self.calls: never.wait(600)
            return super().get_action(question, options)
    robot = StandIn(rate=100, limits=LIMITS, clock=WallClock())
    watch = WatchSettings(max_age=600, frozen_after=600, late_after=0.3, heartbeat=600)
    chunks = Chunking(4, asynchronous=True, first_delay=1)
    result = run_episode(Silent(calm), robot, "wave", chunks=chunks, watch=watch, max_steps=10**6)
    never.set()
    assert "the policy is late" in result.reason and result.guard.standing and robot.stopped == 1


CHILD = """
import numpy as np
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.chunks import Chunking
from gr00t_nb.robots.robot import GroupLimits, MotionLimits, WallClock
from gr00t_nb.robots.stand_ins import StandIn
from gr00t_nb.robots.watch import WatchSettings
from gr00t_nb.rollout.loop import run_episode

class Waves:
    calls = 0
    def get_modality_config(self):
        kinds = dict(state=ModalityConfig([0], ["arm"]), language=ModalityConfig([0], ["task"]))
        return kinds | dict(action=ModalityConfig(range(16), ["arm"]))
    def get_action(self, question, options=None):
        self.calls += 1
        return dict(arm=0.2 * np.sin((8 * self.calls + np.arange(16)[None, :, None]) / 10)), {}

class Told(StandIn):
    def stop(self):
        moving = np.abs(self.sent[-1]["arm"] - self.sent[-2]["arm"]).max()
        print("stopped, standing:", bool(moving < 1e-9), flush=True)

patient = WatchSettings(max_age=600, frozen_after=600, late_after=600, heartbeat=600)
limits = MotionLimits(dict(arm=GroupLimits([-1], [1], [2], [10])))
for _ in range(2):
    robot = Told(dict(arm=1), rate=50, views=(), limits=limits, clock=WallClock())
    def tell(period, look):
        if len(robot.sent) == 20: print("moves", flush=True)
    result = run_episode(Waves(), robot, "wave", chunks=Chunking(8), watch=patient, max_steps=10**6, on_period=tell)
    print(result.reason, flush=True)
"""


def test_a_signal_leaves_it_standing():
    "An episode that SIGTERM ends, and then one that Ctrl-C ends; the process itself goes on."
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=env)
    try:
        for kind in (signal.SIGTERM, signal.SIGINT):
            assert child.stdout.readline() == "moves\n"
            child.send_signal(kind)
            assert child.stdout.readline() == "stopped, standing: True\n"
            assert child.stdout.readline() == f"{kind.name}\n"
        assert child.wait(timeout=300) == 0
    finally: child.kill()


# ---- what is written down

def test_a_recording_is_a_data_set(tmp_path):
    "Every reader opens it; the guard's work and the chunks are in it; a second episode is appended."
    sample = LeRobotDataset(SAMPLE)
    load_modality_config(str(ROOT / "data_samples/cube_to_bowl_config.py"))
    config = MODALITY_CONFIGS.pop("new_embodiment")

    class Replay(ReplayPolicy):
        def get_action(self, question, options=None):
            step = {f"{m}.{k}": a[0] for m in ("video", "state") for k, a in question[m].items()}
            step |= {k: texts[0][0] for k, texts in question["language"].items()}
            return self.predict([step]), {}

    limits = propose_limits(sample)
    for e in (3, 4):
        robot = RecordedRobot(sample, e)
        if e == 3: record = EpisodeRecorder(tmp_path / "run", robot, horizon=16)
        record.robot = robot
        text = sample.tasks[int(sample.rows(e, ["task_index"])["task_index"][0])]
        result = run_episode(Replay(sample, config), robot, text, chunks=Chunking(8), limits=limits,
                             record=record, max_steps=len(robot))
        assert result.reason == "step limit" and result.guard.touched == 0
    made = LeRobotDataset(tmp_path / "run")
    assert len(made) == 2 and check_dataset(made.path).of("error") == []
    for e, origin in enumerate((3, 4)):
        n = sample.length(origin)
        for g, a in made.action(e).items(): assert np.allclose(a[:n], sample.action(origin)[g], atol=1e-6)
        assert np.array_equal(made.state(e)["single_arm"][:n], sample.state(origin)["single_arm"])
    row = made.rows(0, ["answered", "chunk", "chunk_begin", "tick"])
    assert row["answered"].sum() == len(range(0, sample.length(3), 8)) and row["chunk"].shape[1] == 16 * 7
    begin = int(row["chunk_begin"][20])
    assert begin == 16 and np.allclose(row["chunk"][16].reshape(16, 7), np.concatenate(
        [sample.action(3)[g][16:32] for g in ("single_arm", "gripper")], 1), atol=1e-5)


# ---- closed loop in the simulator

def test_pictures_are_drawn_where_somebody_wants_them(monkeypatch):
    "A process knows its own episodes alone: it draws all that are among the first of all, and few others."
    rng = np.random.default_rng(0)
    won, workers, count, drawn = rng.random(80) < 0.3, [Counter(), Counter(), Counter()], Counter(), 0
    film = [dict(front=np.zeros((2, 2, 3), np.uint8))] * 9
    played = lambda policy, robot, config, e, record: (SimpleNamespace(success=bool(won[e])), film)
    monkeypatch.setattr(closed_loop, "closed_loop_episode", played)
    for e in range(80):
        here = None, SimpleNamespace(views=("front",)), None, workers[rng.integers(3)]
        monkeypatch.setattr(closed_loop, "_here", here)
        score, few, frames = closed_loop._play((closed_loop.ServedConfig(videos=3), e))
        count[score.success] += 1
        if count[score.success] <= closed_loop.SHEET: assert few.shape == (6, 2, 2, 3)
        if count[score.success] <= 3: assert frames.shape == (9, 2, 2, 3)
        drawn += few is not None
    assert 2 * closed_loop.SHEET <= drawn <= 3 * 2 * closed_loop.SHEET and drawn < 80


def test_three_episodes_in_the_simulator():
    "The expert puts the named cube into the bowl, with pictures drawn and the guard on; a wrong word is told apart."
    if importlib.util.find_spec("mujoco") is None: pytest.skip("mujoco (of the dev requirements) is not installed")
    from gr00t_nb.simulators.cube_robot import CubeRobot

    class Looking(closed_loop.ScriptedPolicy):
        def get_modality_config(self):
            return super().get_modality_config() | dict(video=ModalityConfig([0], ["front"]))
        def get_action(self, question, options=None):
            assert question["video"]["front"].std() > 5  # something is to be seen
            return super().get_action(question, options)

    robot = CubeRobot()
    try: robot.sim.reset(0), robot.sim.render("front")
    except InputError as e: pytest.skip(f"no OpenGL: {e}")
    for episode, task, outcome in ((0, None, "named cube"), (1, None, "named cube"), (2, 1, "wrong cube")):
        text = robot.reset(episode)
        robot.views = ("front",)
        policy = Looking(robot.expert_commands(task))
        result = run_episode(policy, robot, text, max_steps=200)
        assert (result.outcome, result.reason) == (outcome, "done") and result.guard.touched == 0
    robot.close()
