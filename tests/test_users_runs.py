"""What ends a run ends it in one sentence, with nothing lost; one folder, one run; advice that works."""
import ctypes
import multiprocessing
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from preloaded import Running, python
from runs import ROBOT, ROOT, RUN, SAMPLE
from transformers import TrainerCallback

from gr00t_nb.conversion.lerobot_v3 import to_v3
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.embodiments import register_modality_config
from gr00t_nb.errors import InputError
from gr00t_nb.files import read_jsonl
from gr00t_nb.runs.run_folder import checkpoints
from gr00t_nb.training import finetune as command
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune

def environment(**changed) -> dict:
    "None removes a variable."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changed}
    return {k: v for k, v in env.items() if v is not None}


def script(config: FinetuneConfig) -> list[str]:
    return [sys.executable, str(ROOT / "scripts/finetune.py"), *config.to_flags()]


def run(command: list, **changed) -> subprocess.CompletedProcess:
    wanted = dict(capture_output=True, text=True, timeout=300, env=environment(**changed))
    return subprocess.run([str(c) for c in command], **wanted)


def wait_for(path: Path, alive: Callable[[], bool], said: Callable[[], str], seconds: float = 240):
    end = time.time() + seconds
    while time.time() < end and alive():
        if path.exists() and path.stat().st_size: return
        time.sleep(0.2)
    raise AssertionError(f"no {path.name}: {said()[-2000:]}")


def in_front():
    "Hears Ctrl-C, as a command does that a shell has not put into the background."
    signal.signal(signal.SIGINT, signal.default_int_handler)


def begun(config: FinetuneConfig, **how) -> Running:
    "A run that has logged its first steps."
    running = Running(*script(config)[1:], first=in_front, **how)
    alive = lambda: all(job.is_alive() for job in running.jobs)
    wait_for(Path(config.output_dir) / "log.jsonl", alive, lambda: running.said()[1])
    return running


def waits_for(pid: int, number: int) -> bool:
    "Whether a signal that was sent to a process has not reached it yet."
    status = Path(f"/proc/{pid}/status").read_text()
    return any(int(p, 16) >> number - 1 & 1 for p in re.findall(r"^S(?:ig|hd)Pnd:\s*(\w+)", status, re.M))


def test_second_run_is_refused_and_ctrl_c_keeps_what_was_learned(tmp_path):
    config = replace(RUN, max_steps=5000, save_steps=5000, output_dir=str(tmp_path / "out"))
    first = begun(config)
    second = python(*script(config)[1:])
    assert second.returncode == 2 and "Traceback" not in second.stderr
    assert f"process {first.jobs[0].pid} on host" in second.stderr.splitlines()[-1]
    os.kill(first.jobs[0].pid, signal.SIGINT)
    ended = first.end(120)
    kept, = checkpoints(tmp_path / "out")
    step, said = kept.name.rpartition("-")[2], ended.stderr
    assert ended.returncode == 130 and "Traceback" not in said, said[-2000:]
    assert f"stopped after step {step} of 5000" in said and f"{kept} is whole" in said
    assert not list((tmp_path / "out").glob(".running*"))


def test_two_processes_stop_together(tmp_path):
    "The signal goes to both of them, as a terminal's does, and once more, as torchrun sends it."
    config = replace(RUN, max_steps=5000, save_steps=5000, output_dir=str(tmp_path / "out"))
    both = begun(config, processes=2)
    for _ in range(2):
        for job in both.jobs: os.kill(job.pid, signal.SIGTERM)
        while any(waits_for(job.pid, signal.SIGTERM) for job in both.jobs): time.sleep(0.001)
    said = both.end(120).stderr
    kept, = checkpoints(tmp_path / "out")
    assert f"{kept} is whole" in said and "Traceback" not in said, said[-2000:]


def test_a_scheduler_takes_two_processes_back(tmp_path):
    "One of them hears it, and torchrun, which was started deaf to it, as advised."
    config = replace(RUN, max_steps=5000, save_steps=5000, output_dir=str(tmp_path / "out"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    deaf = f"trap '' USR1; exec {shlex.join([*torchrun, *script(config)[1:]])}"
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    both = subprocess.Popen(["bash", "-c", deaf], env=environment(), **pipes)
    alive, said = lambda: both.poll() is None, lambda: both.communicate()[1]
    wait_for(tmp_path / "out/log.jsonl", alive, said)
    second, = (p for p in psutil.Process(both.pid).children() if p.environ().get("RANK") == "1")
    for process in (both, second): process.send_signal(signal.SIGUSR1)
    said = both.communicate(timeout=120)[1]
    kept, = checkpoints(tmp_path / "out")
    assert f"{kept} is whole" in said and "Exit code 75 asks" in said, said[-2000:]
    assert "exitcode  : 75" in said, said[-2000:]  # torchrun's report of the ranks


class Signal(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2: os.kill(os.getpid(), signal.SIGUSR1)


def test_a_scheduler_is_asked_to_try_again(tmp_path, monkeypatch, capsys):
    "By exit code 75; the next run goes on, and ends with 0."
    config = replace(RUN, max_steps=4, output_dir=str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["finetune.py", *config.to_flags()])
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        monkeypatch.setattr(command, "finetune", lambda config: finetune(config, [Signal()]))
        with pytest.raises(SystemExit) as ended: command.main()
        said = capsys.readouterr()
        monkeypatch.undo()
        monkeypatch.setattr(sys, "argv", ["finetune.py", *config.to_flags()])
        command.main()
        with pytest.raises(SystemExit) as early: os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        for number, handler in before.items(): signal.signal(number, handler)
    assert (ended.value.code, early.value.code) == (75, 75)
    assert "stopped after step 2 of 4" in said.err and "Exit code 75 asks" in said.err
    told = capsys.readouterr().out
    assert "goes on from" in told and "2 of 4 steps are done, in epoch 1" in told


def test_a_truncated_checkpoint_is_passed_over(tmp_path):
    "With one warning; the run goes on from the one before, and the broken one takes no whole one's place."
    config = replace(RUN, save_steps=1, save_total_limit=2, output_dir=str(tmp_path / "out"))
    once = [row["loss"] for row in finetune(config).log]
    weights = tmp_path / "out/checkpoint-3/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.warns(UserWarning, match="checkpoint-3 .model.safetensors has 1,000 of") as told:
        again = finetune(config)
    assert len([w for w in told if "passed over" in str(w.message)]) == 1
    assert [row["loss"] for row in again.log] == once and weights.read_bytes() == whole
    names = sorted(p.name for p in (tmp_path / "out").glob("*checkpoint-*"))
    assert names == ["broken-checkpoint-3", "checkpoint-2", "checkpoint-3"]


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for child in multiprocessing.active_children(): os.kill(child.pid, signal.SIGKILL)


def test_a_killed_loader_process(tmp_path):
    config = replace(RUN, dataloader_num_workers=1, max_steps=50, save_steps=1)
    with pytest.raises(InputError, match="A loader process has died.*Killed.*checkpoint-.*whole"):
        finetune(replace(config, output_dir=str(tmp_path / "out")), [Kill()])
    assert checkpoints(tmp_path / "out")


def test_a_fault_in_a_loader_process_comes_without_its_traceback(tmp_path):
    shown = SAMPLE / "videos/chunk-000/observation.images.wrist/episode_000002.mp4"
    six = [*range(3, 40)]
    data = tmp_path / "data"
    subprocess.run(["cp", "-r", SAMPLE, data], check=True)
    (data / shown.relative_to(SAMPLE)).write_bytes(b"no video")
    config = replace(RUN, dataset_path=str(data), exclude_episodes=six, max_steps=60)
    config = replace(config, dataloader_num_workers=1, output_dir=str(tmp_path / "out"))
    with pytest.raises(InputError) as refused: finetune(config)
    assert "episode_000002.mp4" in str(refused.value)
    assert "Traceback" not in str(refused.value)


def mount(folder: str | Path, size: str):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


def small_shm(size: str):
    "From now on /dev/shm is small, for this process and its children alone."
    if ctypes.CDLL(None).unshare(0x00020000): raise OSError("no mount namespace")  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    mount("/dev/shm", size)


@pytest.fixture
def disk(tmp_path) -> Path:
    "A folder with room for 600 kB."
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "600k")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("later", [False, True], ids=["before", "after its beginning"])
def test_a_disk_is_full(tmp_path, disk, later):
    "A run that cannot write one checkpoint does not begin; where others fill the disk, it ends in a sentence."
    (tmp_path / "train.py").write_text(KILLER)
    config = replace(RUN, output_dir=str(disk / "out"))
    out = python(tmp_path / "train.py", *config.to_flags(), **dict(FILLED_LATER="1") if later else {})
    assert out.returncode == 2 and "Traceback" not in out.stderr, out.stderr[-2000:]
    told = "The disk is full" if later else "write to another disk (--output-dir), or make room"
    assert told in out.stderr.splitlines()[-1]
    assert (disk / "out/log.jsonl").exists() == later


EIGHT = replace(RUN, global_batch_size=8)


@pytest.fixture(scope="module")
def without_loaders(tmp_path_factory) -> list[float]:
    "The losses of a run that loads in its own process."
    result = finetune(replace(EIGHT, output_dir=str(tmp_path_factory.mktemp("without"))))
    return [row["loss"] for row in result.log]


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small /dev/shm")
@pytest.mark.parametrize("size, said", [("8k", "no room for the queues"), ("300k", "--shm-size")])
def test_a_small_shared_memory_costs_time_alone(tmp_path, without_loaders, size, said):
    """No room for the loaders' queues, or for their batches (pytorch#5040, and every container with Docker's
    64 MB of /dev/shm): the losses are those of a run without loaders."""
    small = replace(EIGHT, dataloader_num_workers=2, output_dir=str(tmp_path / "small"))
    out = python(*script(small)[1:], first=partial(small_shm, size))
    assert out.returncode == 0 and "Traceback" not in out.stderr, out.stderr[-2000:]
    assert said in out.stderr, out.stderr[-2000:]
    assert [row["loss"] for row in read_jsonl(tmp_path / "small/log.jsonl")] == without_loaders


def test_too_many_open_files(tmp_path):
    config = replace(RUN, dataloader_num_workers=1, max_steps=40, output_dir=str(tmp_path / "out"))
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (40, 40))
    out = python(*script(config)[1:], first=few)
    assert out.returncode == 2 and "ulimit -n" in out.stderr.splitlines()[-1], out.stderr[-2000:]


KILLER = """
import multiprocessing, os, signal, time
from functools import partial
from transformers import Trainer, TrainerCallback
import gr00t_nb.training.finetune as kit

def kill():
    for child in multiprocessing.active_children(): os.kill(child.pid, signal.SIGKILL)

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step < 2 or args.process_index != int(os.environ["KILLED"]): return
        if "AS_IT_SAVES" in os.environ: Trainer._save_checkpoint = lambda *_: (kill(), time.sleep(600))
        else: kill()

if __name__ == "__main__":
    if "FILLED_LATER" in os.environ: kit.warn_of_disk = lambda *asked: None  # it had room when it looked
    if "KILLED" in os.environ: kit.finetune = partial(kit.finetune, callbacks=[Kill()])
    kit.main()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="mounts small disks")
@pytest.mark.parametrize("fault", ["disk", "loader 0", "loader 1", "shm"])
def test_of_two_processes_both_end_in_a_sentence(tmp_path, disk, fault):
    "The second one's loader dies when the first one is about to make the folder of a checkpoint."
    output = (disk if fault == "disk" else tmp_path) / "out"
    config = replace(RUN, dataloader_num_workers=1, save_steps=1, output_dir=str(output))
    config = replace(config, max_steps=2 if fault in ("disk", "shm") else 100)
    (tmp_path / "train.py").write_text(KILLER)
    kind, _, rank = fault.partition(" ")
    killed = dict(KILLED=rank, AS_IT_SAVES="1" if rank == "1" else None)
    how = dict(shm=dict(first=partial(small_shm, "100k")), disk=dict(FILLED_LATER="1"), loader=killed)
    command = [tmp_path / "train.py", *config.to_flags()]
    said = python(*command, processes=2, **how.get(kind, {})).stderr
    assert "Traceback" not in said, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if kind == "shm":
        assert not errors and "--shm-size" in said and checkpoints(config.output_dir)
        return
    cause = "The disk is full" if kind == "disk" else "A loader process has died"
    assert cause in "".join(errors) and len(errors) == 2, said


def test_no_home_that_can_be_written_to(tmp_path):
    home = tmp_path / "no_folder"
    home.touch()
    ask = "from gr00t_nb.files import cache_dir; print(cache_dir())"
    none = dict(GR00T_NB_CACHE=None, XDG_CACHE_HOME=None)
    out = run([sys.executable, "-c", ask], HOME=str(home), TMPDIR=str(tmp_path), **none)
    assert out.stdout.strip() == str(tmp_path / f"gr00t_nb-{os.getuid()}"), out.stderr


def test_wandb_without_a_key(tmp_path):
    config = replace(RUN, use_wandb=True, output_dir=str(tmp_path / "out"))
    keep = os.environ.get("GR00T_NB_CACHE") or str(Path.home() / ".cache/gr00t_nb")
    private = dict(HOME=str(tmp_path), GR00T_NB_CACHE=keep)
    out = python(*script(config)[1:], WANDB_API_KEY=None, WANDB_MODE=None, **private)
    assert out.returncode == 2 and "Traceback" not in out.stderr, out.stderr[-2000:]
    assert "WANDB_API_KEY" in out.stderr and "--use-wandb" in out.stderr


def into_a_closed_pipe():
    "From now on what is said goes to a pipe that nobody reads any more."
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def nobody_reads(*words) -> tuple[int, str]:  # exit code, standard error
    "A command that nobody reads from; its interpreter's end is part of it."
    out = python(*words, first=into_a_closed_pipe, ends=True)
    return out.returncode, out.stderr


def test_an_interpreters_end_is_part_of_a_fork(tmp_path):
    "What is flushed only then fails, with the exit code and the last word of a process of its own."
    says = tmp_path / "says.py"
    says.write_text("import sys\nsys.stdout.write('never read')\n")
    how = dict(env=environment(PYTHONUNBUFFERED=None), stderr=subprocess.PIPE, text=True)
    alone = subprocess.run([sys.executable, says], preexec_fn=into_a_closed_pipe, **how)
    code, said = nobody_reads(says)
    assert code == alone.returncode == 120
    assert said.splitlines()[-1] == alone.stderr.splitlines()[-1] == "BrokenPipeError: [Errno 32] Broken pipe"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    "A run that nobody read from: it trains and saves all the same."
    output = tmp_path_factory.mktemp("piped") / "out"
    code, said = nobody_reads(*script(replace(RUN, save_steps=1, output_dir=str(output)))[1:])
    assert code == 141 and "Traceback" not in said and "BrokenPipe" not in said, said
    return output


def test_a_closed_pipe_does_not_stop_a_run(trained):
    assert [c.name for c in checkpoints(trained)] == [f"checkpoint-{i}" for i in (1, 2, 3)]
    assert (trained / "model.safetensors").exists()


def test_head_reads_one_line_of_a_run(tmp_path):
    "Of a process of its own: an interpreter's end is part of it."
    train = shlex.join(script(replace(RUN, output_dir=str(tmp_path / "out"))))
    out = run(["bash", "-c", f"{train} | head -n 1; echo ${{PIPESTATUS[0]}}"])
    assert out.stdout.splitlines() == ["model    GR00T N1.6 from tiny, as new_embodiment", "141"]
    assert "Traceback" not in out.stderr and "BrokenPipe" not in out.stderr, out.stderr
    assert checkpoints(tmp_path / "out")


ASK = ["--dataset-path", SAMPLE, "--traj-ids", "0", "--steps", "8"]


@pytest.fixture(scope="module")
def two_episodes(tmp_path_factory) -> Path:
    few = LeRobotDataset(SAMPLE, exclude_episodes=range(2, 40))
    return to_v3(few, tmp_path_factory.mktemp("few") / "v3", progress=False).path


@pytest.mark.parametrize("module, arguments", [
    ("checkup.checkup", ["DATA", "--json"]),
    ("checkup.checkup", ["--help"]),
    ("conversion.convert", ["v2", "DATA", "OUT"]),
    ("evaluation.diagnostics", ["--model-path", "TRAINED", *ASK, "--questions", "1", "--json"]),
])
def test_a_closed_pipe_ends_a_command_without_a_word(tmp_path, trained, two_episodes, module, arguments):
    stands = dict(TRAINED=trained, DATA=two_episodes, OUT=tmp_path / "out")
    code, said = nobody_reads("-m", f"gr00t_nb.{module}", *(stands.get(a, a) for a in arguments))
    assert "Traceback" not in said and "BrokenPipe" not in said, said
    assert code == 141, said


def test_ipython_shows_the_sentence_alone():
    raises = "from gr00t_nb.errors import InputError\nraise InputError('Give --output-dir.')"
    out = run([sys.executable, "-m", "IPython", "--colors=NoColor", "-c", raises])
    said = (out.stdout + out.stderr).strip().splitlines()
    assert said == ["InputError: Give --output-dir (output_dir)."]


def test_another_learning_rate_as_advised(tmp_path):
    "Two steps on top of a run of one: refused with advice that is followed here."
    config = replace(RUN, max_steps=1, output_dir=str(tmp_path / "one"))
    finetune(config)
    other = replace(config, learning_rate=1e-5, max_steps=2)
    with pytest.raises(InputError) as refused: finetune(other)
    base = str(refused.value).partition("add --base-model-path ")[2].split()[0]
    assert len(finetune(replace(other, base_model_path=base, output_dir=str(tmp_path / "more"))).log) == 2


def test_a_second_configuration_for_a_tag(tmp_path):
    "From code it is refused, with advice that works; a file of another folder wins at once."
    load_modality_config(ROBOT)
    robot = MODALITY_CONFIGS["new_embodiment"]
    with pytest.raises(InputError, match="replace=True"): register_modality_config(robot)
    register_modality_config(robot, replace=True)
    other = tmp_path / "other.py"
    other.write_text(ROBOT.read_text().replace("range(16)", "range(5)"))
    with pytest.warns(UserWarning, match="takes the place of"): load_modality_config(other)
    assert len(MODALITY_CONFIGS["new_embodiment"]["action"].delta_indices) == 5
    with pytest.warns(UserWarning, match="other.py"): load_modality_config(ROBOT)
    assert len(MODALITY_CONFIGS["new_embodiment"]["action"].delta_indices) == 16
