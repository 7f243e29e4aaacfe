"""The kit's commands that notebooks start, as forks of one process that has imported the kit.

A notebook asks `sys.executable` or its neighbour `torchrun` for them. While notebooks are tested both
stand in a folder of their own and are the few lines below: they hand words, variables, folder and
streams to that process, pass signals on, and end as the command ends. Anything else that a notebook
starts, such as `python -c`, is an interpreter's own beginning, and gets one.
"""
import json
import os
import resource
import signal
import socket
import sys
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

import preloaded

COSTS = "GR00T_NB_COSTS"  # names the file into which a command writes its seconds of a core
FORK = get_context("fork")
ASKING = """#!{python} -IS
import json, os, signal, socket, sys
words = ["-m", "torch.distributed.run"] * sys.argv[0].endswith("torchrun") + sys.argv[1:]
if words[:1] == ["-u"]: del words[0]
known = words[:1] == ["-m"] and words[1].startswith(("torch.distributed.run", "gr00t_nb."))
known = known or os.path.realpath(words[0] if words else "") == "{root}/scripts/finetune.py"
if not (known or "TORCHELASTIC_RUN_ID" in os.environ):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
told = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
    s.connect("{place}/socket")
    socket.send_fds(s, [told], [0, 1, 2])
    for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(n, lambda n, frame: s.send(bytes([n])))
    code = json.loads(s.recv(16) or b"1")
if code >= 0: os._exit(code)
if -code != signal.SIGKILL: signal.signal(-code, signal.SIG_DFL)
os.kill(os.getpid(), -code)
"""


def _run(words: list[str], cwd: str, env: dict, streams: list[int]):
    "In the fork: what the command does."
    os.dup2(streams[0], 0)
    out, err = (Path(f"/proc/self/fd/{n}") for n in streams[1:])
    preloaded._command(words, Path(cwd), env, (out, err), int)


def _answer(asked: socket.socket):
    "In a process for each command: starts it, passes signals on, and says how it ended."
    told, streams, *_ = socket.recv_fds(asked, 2**20, 3)
    words, cwd, env = json.loads(told)
    job = FORK.Process(target=_run, args=(words, cwd, env, streams))
    job.start()
    for n in streams: os.close(n)
    while job.sentinel not in wait([job.sentinel, asked]):
        try: sent = asked.recv(1)
        except OSError: sent = b""
        os.kill(job.pid, sent[0] if sent else signal.SIGKILL)  # nothing: whoever asked is gone
        if not sent: break
    job.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(env.get(COSTS, os.devnull), "a") as f: f.write(f"{used.ru_utime + used.ru_stime}\n")
    try: asked.send(json.dumps(job.exitcode).encode())
    except OSError: pass


def _serve(server: socket.socket):
    while True:
        asked, _ = server.accept()
        FORK.Process(target=_answer, args=(asked,)).start()  # reaps those that have ended
        asked.close()


def answer_commands(folder: Path) -> FORK.Process:  # to be ended
    "Puts `python` and `torchrun` into a folder, and starts the process that answers them."
    # what starts interpreters itself keeps this one's name
    for m in ("multiprocessing.spawn", "torch.distributed.run"): import_module(m)
    for m in preloaded.KIT: import_module(f"gr00t_nb.{m}")
    place = folder.resolve()
    for name in ("python", "torchrun"):
        text = ASKING.format(python=sys.executable, root=preloaded.ROOT, place=place)
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    for other in Path(sys.executable).parent.iterdir():
        if not (place / other.name).exists(): (place / other.name).symlink_to(other)
    sys.executable = str(place / "python")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(f"{place}/socket")
    server.listen()
    job = FORK.Process(target=_serve, args=(server,))
    job.start()
    return job
