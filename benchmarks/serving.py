"""What asking over the network costs beside asking in the process, and how soon a ping is answered.

    python benchmarks/serving.py --json serving.json

Server and client run in two processes of this machine and talk over loopback. The frames are noise. A policy
that computes nothing shows the way alone: of each question the time of the bare policy, asked just before,
is taken off. Pings are sent while the policy computes for 200 ms at a time: arithmetic, as
networks are, and pure Python, which shares the interpreter with the thread that listens.
"""
import argparse
import os
import platform
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gr00t_nb.files import write_json
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.serving.client import PolicyClient
from gr00t_nb.serving.fair_queue import quick_turns
from gr00t_nb.serving.server import PolicyServer

CAMERAS = {"one 256x256": [(256, 256)], "three 640x480": [(480, 640)] * 3}


class Busy:
    "Computes for as long as it is told: arithmetic, which lets other threads run, or Python, which does not."

    def __init__(self): self.matrix = np.ones((512, 512), np.float32)

    def get_modality_config(self):
        return dict(
            video=ModalityConfig([0], ["camera_0"]),
            state=ModalityConfig([0], ["arm"]),
            action=ModalityConfig(range(16), ["arm"]),
            language=ModalityConfig([0], ["task"]),
        )

    def get_action(self, observation, options=None):
        options = options or {}
        until = time.perf_counter() + options.get("seconds", 0)
        while time.perf_counter() < until:
            self.matrix @ self.matrix if options["kind"] == "arithmetic" else sum(range(1000))
        return dict(arm=np.repeat(observation["state"]["arm"], 16, 1)), {}

    def reset(self, options=None): return {}


def question(sizes) -> dict:
    rng = np.random.default_rng(0)
    frame = lambda size: rng.integers(0, 255, (1, 1, *size, 3), dtype=np.uint8)
    return dict(
        video={f"camera_{k}": frame(s) for k, s in enumerate(sizes)},
        state=dict(arm=np.ones((1, 1, 7), np.float32)),
        language=dict(task=[["put the red cube in the bowl"]]),
    )


def serve(turns: float):
    "In the other process, as the command serves: until its input is closed."
    with quick_turns(turns), PolicyServer(Busy(), port=0) as server:
        print(server.port, flush=True)
        sys.stdin.read()


@contextmanager
def other_process(turns: float):
    "A server in a process of its own; gives its port."
    command = [sys.executable, __file__, "--serve", "--turns", str(turns)]
    job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try: yield int(job.stdout.readline())
    finally:
        job.stdin.close()
        job.wait()


def milliseconds(act) -> float:
    start = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - start)


def shares(ms: list[float]) -> dict:
    kept = {f"p{s}": round(float(np.percentile(ms, s)), 3) for s in (50, 95, 99)}
    return dict(least=round(min(ms), 3)) | kept | dict(most=round(max(ms), 3))


def overhead(port: int, sizes, questions: int, dialect: str, jpeg: int | None) -> dict:
    "The way beside the bare policy, asked by turns."
    bare, asked = Busy(), question(sizes)
    with PolicyClient(port=port, dialect=dialect, jpeg=jpeg, timeout=60) as client:
        client.get_action(asked)
        pairs = [
            (milliseconds(lambda: bare.get_action(asked)), milliseconds(lambda: client.get_action(asked)))
            for _ in range(questions)
        ]
    alone, over = zip(*pairs)
    return shares([b - a for a, b in pairs]) | dict(bare_p50=round(float(np.median(alone)), 3))


def pings(port: int, kind: str, count: int) -> dict:
    "While the policy computes, one question after the other."
    asked, sent, over = question(CAMERAS["three 640x480"]), [], threading.Event()
    def ask():
        with PolicyClient(port=port, timeout=60) as slow:
            while not over.is_set(): slow.get_action(asked, dict(seconds=0.2, kind=kind))
    asking = threading.Thread(target=ask)
    asking.start()
    with PolicyClient(port=port, timeout=60) as client:
        while client.health()["busy_s"] is None: pass
        for _ in range(count):
            sent.append(milliseconds(client.ping))
            time.sleep(0.005)
    over.set()
    asking.join()
    return shares(sent)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=300, help="for each row")
    parser.add_argument("--times", type=int, default=3, help="each row so often; the best is printed")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--only", choices=["overhead", "ping"])
    parser.add_argument("--turns", type=float, default=1e-3, help="seconds, see quick_turns; Python's own are 0.005")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def best(times: int, measure, *args) -> dict:
    "Of several measurements the one with the least median."
    return min((measure(*args) for _ in range(times)), key=lambda found: found["p50"])


def show(name: str, row: dict):
    figures = " | ".join(f"{row[k]:.2f}" for k in ("least", "p50", "p95", "p99", "most"))
    print(f"| {name} | {figures} |", flush=True)


def main():
    args = arguments()
    if args.serve: return serve(args.turns)
    found, head = dict(overhead={}, ping={}), "least | p50 | p95 | p99 | most |\n|---|---|---|---|---|---|"
    with other_process(args.turns) as port:
        if args.only != "ping": print(f"| overhead, ms | {head}")
        for cameras, sizes in CAMERAS.items() if args.only != "ping" else ():
            for dialect, jpeg in (("stream", None), ("buffer", None), ("stream", 95)):
                name = f"{cameras}, {'JPEG 95' if jpeg else dialect}"
                row = best(args.times, overhead, port, sizes, args.questions, dialect, jpeg)
                found["overhead"][name] = row
                show(name, row)
        if args.only != "overhead": print(f"\n| ping while the policy computes, ms | {head}")
        for kind in ("arithmetic", "Python") if args.only != "overhead" else ():
            row = found["ping"][kind] = best(args.times, pings, port, kind, args.questions)
            show(kind, row)
    machine = dict(cores=os.cpu_count(), processor=platform.processor() or platform.machine())
    if args.json: write_json(args.json, found | dict(machine=machine, load=os.getloadavg()))


if __name__ == "__main__": main()
