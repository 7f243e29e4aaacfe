"""What asking over the network costs beside asking in the process, and how soon a ping is answered.

    python benchmarks/serving.py --json serving.json

Server and client run in two processes of this machine and talk over loopback. The frames are noise. A policy
that computes nothing shows the way alone; one that computes for 20 ms shows that the way stays what it
is. The overhead is the client's median minus the median of the bare policy, asked by turns, so that a
loaded machine slows both. Pings are sent while the policy computes for 200 ms at a time: arithmetic, as
networks are, and pure Python, which shares the interpreter with the thread that listens.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gr00t_nb.files import write_json
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.serving.client import PolicyClient
from gr00t_nb.serving.server import PolicyServer

CAMERAS = {"one 256x256": [(256, 256)], "three 640x480": [(480, 640)] * 3}


class Busy:
    "Computes for so many seconds: arithmetic, which lets other threads run, or Python, which does not."

    def __init__(self, cameras: int, seconds: float = 0.0, kind: str = "arithmetic"):
        self.cameras, self.seconds, self.kind = cameras, seconds, kind
        self.matrix = np.ones((512, 512), np.float32)

    def get_modality_config(self):
        return dict(
            video=ModalityConfig([0], [f"camera_{k}" for k in range(self.cameras)]),
            state=ModalityConfig([0], ["arm"]),
            action=ModalityConfig(range(16), ["arm"]),
            language=ModalityConfig([0], ["task"]),
        )

    def get_action(self, observation, options=None):
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until: self.matrix @ self.matrix if self.kind == "arithmetic" else sum(range(1000))
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


def serve(cameras: str, seconds: str, kind: str):
    "In the other process: until its input is closed."
    with PolicyServer(Busy(int(cameras), float(seconds), kind), port=0) as server:
        print(server.port, flush=True)
        sys.stdin.read()


class Other:
    "A server in a process of its own."

    def __init__(self, *words):
        command = [sys.executable, __file__, "--serve", *map(str, words)]
        self.job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.job.stdout.readline())

    def __enter__(self): return self

    def __exit__(self, *error):
        self.job.stdin.close()
        self.job.wait()


def milliseconds(act) -> float:
    start = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - start)


def shares(ms: list[float]) -> dict:
    return {f"p{s}": round(float(np.percentile(ms, s)), 3) for s in (50, 95, 99)}


def overhead(sizes, seconds: float, questions: int, dialect: str, jpeg: int | None = None) -> dict:
    "The way beside the bare policy, asked by turns."
    bare, asked = Busy(len(sizes), seconds), question(sizes)
    with Other(len(sizes), seconds, "arithmetic") as other, PolicyClient(port=other.port, dialect=dialect, jpeg=jpeg) as client:
        client.get_action(asked)
        pairs = [
            (milliseconds(lambda: bare.get_action(asked)), milliseconds(lambda: client.get_action(asked)))
            for _ in range(questions)
        ]
    alone, over = zip(*pairs)
    extra = statistics.median(over) - statistics.median(alone)
    return dict(bare=shares(alone), served=shares(over), overhead_p50=round(extra, 3))


def pings(kind: str, count: int) -> dict:
    "While the policy computes, one question after the other."
    asked, sent, over = question(CAMERAS["three 640x480"]), [], threading.Event()
    with Other(3, 0.2, kind) as other, PolicyClient(port=other.port) as client:
        def ask():
            with PolicyClient(port=other.port, timeout=60) as slow:
                while not over.is_set(): slow.get_action(asked)
        asking = threading.Thread(target=ask)
        asking.start()
        while client.health()["busy_s"] is None: pass
        for _ in range(count):
            sent.append(milliseconds(client.ping))
            time.sleep(0.005)
        over.set()
        asking.join()
    return shares(sent) | dict(max=round(max(sent), 3))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=300, help="for each row")
    parser.add_argument("--times", type=int, default=3, help="each row so often; the best is printed")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def best(times: int, measure, *args, **named) -> dict:
    "Of several measurements the one with the least median."
    found = [measure(*args, **named) for _ in range(times)]
    return min(found, key=lambda f: f.get("overhead_p50", f.get("p50")))


def main():
    args = arguments()
    if args.serve: return serve(*args.serve)
    found = dict(overhead={}, ping={})
    print("| cameras | policy | frames | bare p50, ms | served p50 | p95 | overhead p50 |\n|---|---|---|---|---|---|---|")
    rows = [(c, s, d, None) for c in CAMERAS for s in (0.0, 0.02) for d in ("stream", "buffer")]
    for cameras, seconds, dialect, jpeg in [*rows, *((c, 0.0, "stream", 95) for c in CAMERAS)]:
        row = best(args.times, overhead, CAMERAS[cameras], seconds, args.questions, dialect, jpeg=jpeg)
        frames, policy = "JPEG 95" if jpeg else f"arrays, {dialect}", f"{1000 * seconds:.0f} ms"
        found["overhead"][f"{cameras}, {policy}, {frames}"] = row
        figures = f"{row['bare']['p50']:.2f} | {row['served']['p50']:.2f} | {row['served']['p95']:.2f}"
        print(f"| {cameras} | {policy} | {frames} | {figures} | {row['overhead_p50']:.2f} |", flush=True)
    print("\n| the policy computes | ping p50, ms | p95 | p99 | slowest |\n|---|---|---|---|---|")
    for kind in ("arithmetic", "Python"):
        row = found["ping"][kind] = best(args.times, pings, kind, args.questions)
        print(f"| {kind} | {' | '.join(f'{v:.2f}' for v in row.values())} |", flush=True)
    machine = dict(cores=os.cpu_count(), processor=platform.processor() or platform.machine(), load=os.getloadavg())
    if args.json: write_json(args.json, found | dict(machine=machine))


if __name__ == "__main__": main()
