"An evaluation that is cut short, or cannot write: what was played is told, and nothing is left running."
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_closed_loop_views import Held

from gr00t_nb.errors import InputError, Stopped
from gr00t_nb.evaluation import diagnostics, open_loop
from gr00t_nb.evaluation.asking import AskingConfig
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.rollout import closed_loop
from gr00t_nb.rollout.closed_loop import ServedConfig, evaluate_closed_loop
from gr00t_nb.rollout.run import RunConfig
from gr00t_nb.serving.server import PolicyServer

pytestmark = pytest.mark.skipif(find_spec("mujoco") is None, reason="mujoco is not installed")
ROOT = Path(__file__).resolve().parents[1]


@dataclass(kw_only=True)
class Interrupted(Held):
    "Ctrl-C comes with the first question of an episode."
    at: int | None = None

    def options(self, policy, episode):
        def asked(tick):
            if episode == self.at: signal.raise_signal(signal.SIGINT)
            return {}
        return asked


def interrupted(tmp_path, **more) -> tuple[list, str, dict]:
    "What was said of the result, why it ended, and what lies in the folder."
    said = []
    told = dict(output_dir=str(tmp_path), max_steps=3, videos=0, views=["overhead=front"])
    with pytest.raises(Stopped) as stopped:
        evaluate_closed_loop(Interrupted(**told | more), progress=False, say=lambda r: said.append(len(r.policy)))
    return said, str(stopped.value), json.loads((tmp_path / "closed_loop.json").read_text())


def test_ctrl_c_ends_the_evaluation_and_not_an_episode(tmp_path):
    said, why, written = interrupted(tmp_path, episodes=5, at=2, baselines=False)
    assert said == [2] and why.startswith("Stopped after 2 of 5 episodes of cube_to_bowl")
    assert [s["reason"] for s in written["episodes"]["policy"]] == ["step limit"] * 2
    assert (tmp_path / "failure.png").exists()


@pytest.mark.parametrize("thread", [False, True])
def test_a_schedulers_sigterm_does_the_same_between_two_episodes(tmp_path, monkeypatch, thread):
    "In a thread, where no handler can be set, the process keeps its own; and everywhere it gets it back."
    heard = []
    before = signal.signal(signal.SIGTERM, own := lambda number, frame: heard.append(number))
    def asked(self, policy, episode):
        if episode == self.at: signal.raise_signal(signal.SIGTERM)
        return lambda tick: {}
    monkeypatch.setattr(Interrupted, "options", asked)
    told = dict(output_dir=str(tmp_path), max_steps=3, videos=0, views=["overhead=front"], baselines=False)
    try:
        if thread:
            run = threading.Thread(target=evaluate_closed_loop, args=(Interrupted(episodes=2, at=1, **told), False))
            run.start()
            run.join()
            assert len(json.loads((tmp_path / "closed_loop.json").read_text())["episodes"]["policy"]) == 2
        else: assert interrupted(tmp_path, episodes=3, at=2, baselines=False)[:1] == ([2],)
        assert signal.getsignal(signal.SIGTERM) is own and heard == [signal.SIGTERM] * thread
    finally: signal.signal(signal.SIGTERM, before)


def test_ctrl_c_in_the_first_episode_leaves_nothing(tmp_path):
    config = Interrupted(episodes=2, at=0, output_dir=str(tmp_path), max_steps=3, views=["overhead=front"])
    with pytest.raises(KeyboardInterrupt) as ended: evaluate_closed_loop(config, progress=False)
    assert not isinstance(ended.value, Stopped) and not list(tmp_path.iterdir())


def test_ctrl_c_in_a_yardstick_keeps_the_policys_episodes(tmp_path, monkeypatch):
    class Moving(closed_loop.ScriptedPolicy):
        def get_action(self, *question):
            signal.raise_signal(signal.SIGINT)
            return super().get_action(*question)
    monkeypatch.setattr(closed_loop, "ScriptedPolicy", Moving)
    said, why, written = interrupted(tmp_path, episodes=2)
    assert said == [2] and "Stopped after 2 episodes" in why
    assert list(written["episodes"]) == ["policy"]


def begun(*args, **how): raise AssertionError("it has begun")


@pytest.mark.parametrize("folder", ["/proc/none", Path(__file__)])
def test_a_folder_that_cannot_be_written_is_told_first(monkeypatch, folder):
    "A file, or a place where nothing can be made: before a policy is asked for, or anything is played."
    monkeypatch.setattr(Held, "check", begun)
    with pytest.raises(InputError, match="cannot be written"): evaluate_closed_loop(Held(output_dir=str(folder)))


@pytest.mark.parametrize("module, work", [(open_loop, "evaluate_open_loop"), (diagnostics, "diagnose")])
def test_so_it_is_where_recorded_episodes_are_asked(module, work, monkeypatch, capsys):
    monkeypatch.setattr(AskingConfig, "open", lambda self: (SimpleNamespace(tag="x"), None, [0]))
    monkeypatch.setattr(module, work, begun)
    told = "--model-path x --dataset-path y --traj-ids 0 --save-plot-path /proc/none/page.png"
    with pytest.raises(SystemExit): module.main(told.split())
    assert "error: /proc/none" in (said := capsys.readouterr().err) and "cannot be written" in said


@pytest.mark.parametrize("module, work", [(open_loop, "evaluate_open_loop"), (diagnostics, "diagnose")])
def test_what_was_computed_is_told_where_no_picture_can_be_written(module, work, tmp_path, monkeypatch, capsys):
    "And no picture is named that is not there."
    class Result(SimpleNamespace):
        def __repr__(self): return "the table"
        def verdict(self, advice): return "the table"
        def plot(self, *which): raise OSError(28, "No space left on device")
    monkeypatch.setattr(AskingConfig, "open", lambda self: (SimpleNamespace(tag="x"), None, [0]))
    monkeypatch.setattr(module, work, lambda *asked, **how: Result(episodes=[Result(number=0)], action_horizon=16))
    folder = tmp_path if module is open_loop else tmp_path / "page.png"
    told = f"--model-path x --dataset-path y --traj-ids 0 --save-plot-path {folder}"
    with pytest.raises(SystemExit): module.main(told.split())
    out, err = capsys.readouterr()
    assert "the table" in out and str(tmp_path) not in out and "The disk is full" in err


@pytest.mark.parametrize("name, videos, played", [("write_json", 0, 3), ("write_video", 2, 1)])
def test_what_was_played_is_told_where_it_cannot_be_written(tmp_path, monkeypatch, name, videos, played):
    "The disk is full after the last episode, or after the first one."
    def full(*args, **how): raise OSError(28, "No space left on device")
    monkeypatch.setattr(closed_loop, name, full)
    told, said = dict(output_dir=str(tmp_path), episodes=3, max_steps=3, baselines=False), []
    config = Held(**told, videos=videos, views=["overhead=front"])
    with pytest.raises(OSError): evaluate_closed_loop(config, False, lambda result: said.append(len(result.policy)))
    assert said == [played]


def test_the_table_names_no_folder_where_nothing_was_written(tmp_path, monkeypatch, capsys):
    def full(*args, **how): raise OSError(28, "No space left on device")
    monkeypatch.setattr(closed_loop, "write_json", full)
    told = dict(episodes=1, max_steps=3, videos=0, baselines=False, views=["overhead=front"])
    with pytest.raises(OSError): closed_loop.play_and_tell(Held(output_dir=str(tmp_path), **told))
    said = capsys.readouterr().out
    assert "seed 0, which could not be written" in said and "0/1 (" in said and str(tmp_path) not in said


FAULTS = dict(told=InputError("The server is gone."), bug=ZeroDivisionError("of a simulator"))


@dataclass(kw_only=True)
class Dying(Held):
    "The first process is killed, or meets a fault, with the first question of its second episode."
    fault: str | None = None  # None: killed

    def options(self, policy, episode):
        if episode != 2: return lambda tick: {}
        if self.fault: raise FAULTS[self.fault]
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes, fault, kind, words", [
    (2, None, InputError, "A process ended by itself .exit code -9."),
    (1, "told", InputError, "The server is gone"),
    (1, "bug", ZeroDivisionError, "of a simulator"),
])
def test_what_was_played_before_a_fault_is_written_and_told(tmp_path, capsys, processes, fault, kind, words):
    "An earlier result is set aside for it; and the fault is told afterwards."
    told = dict(output_dir=str(tmp_path), max_steps=3, videos=0, views=["overhead=front"])
    (tmp_path / "closed_loop.json").write_text("{}")
    with pytest.raises(kind, match=words):
        closed_loop.play_and_tell(Dying(episodes=6, processes=processes, fault=fault, **told))
    scores = json.loads((tmp_path / "closed_loop.json").read_text())["episodes"]["policy"]
    assert [0] == [s["episode"] for s in scores][:1] and 2 not in [s["episode"] for s in scores]
    assert f"{len(scores)} of 6 episodes of cube_to_bowl, seed 0, in {tmp_path}\n" in capsys.readouterr().out
    assert (tmp_path / "failure.png").exists() and (tmp_path / "earlier_1/closed_loop.json").read_text() == "{}"


def wait_until(condition, seconds: float = 240):
    "With a generous deadline."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


class Sleeps:
    "Holds the arm still, and falls asleep over the sixth question."

    def __init__(self): self.asked, self.awake = 0, threading.Event()

    def get_modality_config(self): return Held.policy(None).get_modality_config()

    def get_action(self, observation, options=None):
        self.asked += 1
        if self.asked > 5: self.awake.wait(600)
        return {g: np.repeat(x, 16, axis=1) for g, x in observation["state"].items()}, {}

    def reset(self, options=None): return {}


def hears_ctrl_c():
    "As in a terminal: what a shell starts in the background ignores it, and so do all that are started there."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_a_terminal_ends_all_processes(tmp_path):
    "It goes to each of them; those that wait for an answer are not waited for, and say nothing."
    policy, err = Sleeps(), tmp_path / "err"
    command = [sys.executable, "-m", "gr00t_nb.rollout.closed_loop", "--views", "overhead=front", "--processes", "2"]
    command += "--episodes 8 --max-steps 3 --videos 0 --no-baselines --answer-within 600".split()
    command += ["--output-dir", tmp_path / "result"]
    with PolicyServer(policy, port=0) as server, open(err, "w") as words:
        command += ["--server", f"127.0.0.1:{server.port}"]
        env = os.environ | dict(PYTHONPATH=str(ROOT), MPLBACKEND="agg")
        how = dict(stdout=-1, stderr=words, text=True, env=env, start_new_session=True)
        job = subprocess.Popen(command, preexec_fn=hears_ctrl_c, **how)
        try:
            wait_until(lambda: policy.asked > 5 and re.search(r"[1-5]/8", err.read_text()) or job.poll() is not None)
            os.killpg(job.pid, signal.SIGINT)
            out, _ = job.communicate(timeout=240)
        finally:
            policy.awake.set()
            job.kill()
    said = err.read_text()
    assert job.returncode == 130 and "Traceback" not in said, said
    number = int(re.search(r"Stopped after (\d) of 8 episodes", said)[1])
    assert f"{number} of 8 episodes of cube_to_bowl" in out and f"0/{number} (" in out
    assert len(json.loads((tmp_path / "result/closed_loop.json").read_text())["episodes"]["policy"]) == number


def test_a_second_evaluation_keeps_the_first_ones_results(tmp_path, capsys):
    "Whatever is asked differently; and where a second one plays nothing, the first stays where it is."
    told = dict(output_dir=str(tmp_path), max_steps=3, videos=1, baselines=False, views=["overhead=front"])
    number = lambda folder: len(json.loads((folder / "closed_loop.json").read_text())["episodes"]["policy"])
    evaluate_closed_loop(Held(episodes=2, **told), progress=False)
    with pytest.raises(KeyboardInterrupt): evaluate_closed_loop(Interrupted(episodes=1, at=0, **told), progress=False)
    assert number(tmp_path) == 2 and capsys.readouterr().out == ""
    evaluate_closed_loop(Held(episodes=1, **told), progress=False)
    assert (number(tmp_path), number(tmp_path / "earlier_1")) == (1, 2)
    for folder in (tmp_path, tmp_path / "earlier_1"):
        assert {"failure.png", "failure_000.mp4"} < {p.name for p in folder.iterdir()}
    assert f"are in {tmp_path}/earlier_1 now" in capsys.readouterr().out


def test_short_chunks_are_played_to_their_end_unless_more_is_asked_for(tmp_path):
    "The command of the page about simulators fits its policy, whose chunks have five rows."
    class Short(Sleeps):
        def __init__(self): self.asked = -1000
        def get_modality_config(self):
            return super().get_modality_config() | dict(action=ModalityConfig(range(5), ["single_arm", "gripper"]))

    told = dict(output_dir=str(tmp_path), episodes=1, max_steps=20, videos=0, baselines=False)
    with PolicyServer(Short(), port=0) as server:
        told |= dict(server=f"127.0.0.1:{server.port}", views=["overhead=front"])
        result = evaluate_closed_loop(ServedConfig(**told), progress=False)
        with pytest.raises(InputError, match="execution_length is 8, but the policy's chunks have 5 rows"):
            evaluate_closed_loop(ServedConfig(**told, execution_length=8), progress=False)
    assert [score.chunks for score in result.policy] == [4]


@pytest.mark.parametrize("made", [
    lambda **told: ServedConfig(**told),
    lambda **told: RunConfig("cube_to_bowl", server="127.0.0.1:1", instruction="go", asynchronous=True, **told).check(),
])
def test_a_wrong_continuation_hears_all_that_there_are(made):
    "In both commands, before anything is loaded, and as their help names them."
    expected = "continuation is 'ramps': expected fade or guidance or ramp or prefix, or none. Did you mean 'ramp'"
    with pytest.raises(InputError, match=expected): made(continuation="ramps")
    for way in ("fade", "ramp"): made(continuation=way)
