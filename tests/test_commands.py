"Commands as notebooks start them while they are tested: what comes back is what an interpreter would give."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest

RANK = "import os, sys\nprint(os.environ['RANK'], *sys.argv[1:], 'torch' in sys.modules, flush=True)\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Where `python` and `torchrun` stand."
    folder, interpreter = tmp_path_factory.mktemp("bin"), sys.executable
    job = commands.answer_commands(folder)
    sys.executable = interpreter
    yield folder
    job.terminate()
    job.join()


def ask(*words, **how) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, **how)


def test_words_and_exit_codes(place, tmp_path):
    "The kit's commands; everything else gets an interpreter."
    costs = {**os.environ, commands.COSTS: str(tmp_path / "costs")}
    done = ask(place / "python", "-m", "gr00t_nb.checkup.checkup", "no/such", env=costs)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: There is no")
    assert float((tmp_path / "costs").read_text()) > 0
    done = ask(place / "python", "-c", "import sys; print('torch' in sys.modules); sys.exit(3)")
    assert (done.returncode, done.stdout) == (3, "False\n")


def test_torchrun(place, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    done = ask(place / "torchrun", "--standalone", "--nproc_per_node=2", script, "x")
    assert sorted(done.stdout.splitlines()) == ["0 x True", "1 x True"], done.stderr


def test_signals_reach_the_command(place, tmp_path):
    "One that asks to end, and one that kills: the command ends, and so does whoever asked."
    script, told = tmp_path / "waits.py", tmp_path / "told"
    script.write_text(f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    env = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}  # as a rank, so that the script is a fork
    for number in (signal.SIGTERM, signal.SIGKILL):
        told.unlink(missing_ok=True)
        job = subprocess.Popen([place / "python", script], env=env)
        while not (told.exists() and told.read_text()): time.sleep(0.02)
        job.send_signal(number)
        assert job.wait(60) == -number
        status = Path(f"/proc/{told.read_text()}/status")
        while status.exists() and "State:\tZ" not in status.read_text(): time.sleep(0.02)
