"""Python commands as forks of one process that has imported the kit.

A new interpreter computes for seven seconds until torch, transformers and the kit are imported; a
fork has them. A test about an interpreter's own beginning (other packages, other users, what torchrun
starts) starts one with `subprocess`; a fork can end as an interpreter ends.
"""
import ctypes
import gc
import multiprocessing
import os
import random
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
KIT = ("training.finetune", "evaluation.diagnostics", "conversion.convert")
FIXED = dict(OMP_NUM_THREADS="1", MPLBACKEND="agg", HF_HUB_OFFLINE="1")  # read by imports
PLACE = dict(PYTHONPATH=str(ROOT))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"gr00t_nb.{m}" for m in KIT] + ["preloaded"])
with suppress(ImportError, RuntimeError): import_module("torchcodec.decoders")  # the kit does so late
gc.freeze()  # in the server comes last: no fork looks through what it was given for garbage


def begin():
    "Starts the process that is forked, unless it runs: with its own path and settings."
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with patch.dict(os.environ, FIXED | dict(PYTHONPATH=path)): ensure_running()


def _command(
    words: list[str],
    cwd: Path,
    env: dict,
    streams: tuple[Path, Path],
    first: Callable,
    ends: bool = False,
):
    "In the fork: what `python WORDS` does."
    multiprocessing.set_start_method(None, force=True)  # the usual one, not the server's
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for stream, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    first()
    # the streams of the server, which imported modules may hold, begin anew
    for number, stream in enumerate((sys.stdout, sys.stderr), 1):
        bytes_of = open(number, "wb", closefd=False)
        stream.__init__(bytes_of, env.get("PYTHONIOENCODING"), line_buffering=number == 2)
    if ends: _to_the_end(words, cwd)
    else: _run(words, cwd)


def _run(words: list[str], cwd: Path):
    if words[0] == "-m":
        sys.argv = ["-m", *words[2:]]
        sys.path.insert(0, str(cwd))
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str((cwd / words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _to_the_end(words: list[str], cwd: Path):
    "As the interpreter does it: what was registered for its end is called, its streams are flushed."
    code = 0
    try: _run(words, cwd)
    except SystemExit as e: code = e.code or 0  # the kit's are numbers
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    ctypes.pythonapi.Py_Exit(code)


def free_port() -> int:
    "Drawn below those that the system gives away by itself, and may give away before this one is used."
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def _rank(rank: int, size: int, port: int) -> dict[str, str]:
    "What torchrun tells a process."
    numbers = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    return {k: str(v) for k, v in numbers.items()} | dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


class Running:
    "A command that has been started; its words reach neither terminal nor log."

    def __init__(
        self,
        *words,  # as after `python`: a script or -m and a module, and its arguments
        cwd: Path = ROOT,
        processes: int = 1,  # so many, as torchrun starts them
        first: Callable = int,  # what each process does before it begins; int: nothing
        ends: bool = False,  # as an interpreter ends; a fork's end is sudden
        **env,  # variables that differ; None: one that is not there
    ):
        begin()
        known = {k: str(v) for k, v in (os.environ | PLACE | FIXED | env).items() if v is not None}
        ranks = [_rank(r, processes, p) for p in [free_port()] for r in range(processes)]
        self.words, self.folder = [str(w) for w in words], tempfile.TemporaryDirectory()
        self.files = Path(self.folder.name, "out"), Path(self.folder.name, "err")
        for f in self.files: f.touch()
        told = [known | (r if processes > 1 else {}) for r in ranks]
        each = [(self.words, cwd, t, self.files, first, ends) for t in told]
        self.jobs = [CONTEXT.Process(target=_command, args=args) for args in each]
        for job in self.jobs: job.start()

    def said(self) -> list[str]:
        "What it has said up to now, on standard output and on standard error."
        return [f.read_text() for f in self.files]

    def end(self, timeout: float = 600) -> CompletedProcess:
        "Waits for its end; the exit status is the first that is not 0."
        for job in self.jobs: job.join(timeout)
        late = [job for job in self.jobs if job.is_alive()]
        for job in late: job.kill()
        said = self.said()
        self.folder.cleanup()
        if late: raise TimeoutExpired(self.words, timeout, *said)
        codes = [job.exitcode for job in self.jobs]
        return CompletedProcess(self.words, next(filter(None, codes), 0), *said)


def python(*words, timeout: float = 600, **how) -> CompletedProcess:
    "Runs a command to its end, at most so many seconds."
    return Running(*words, **how).end(timeout)
