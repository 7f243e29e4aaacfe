"""Chunks in real time: what the seam costs, and whether the loop keeps its rate.

    python benchmarks/rollout.py --model-path outputs/demo                     # both tables
    python benchmarks/rollout.py --model-path outputs/demo --only seam --episodes 4
"""
import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.evaluation.asking import episodes_to_ask
from gr00t_nb.policy.chunks import Chunking
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.policy.seams import SEAM_WAYS, seam_figures, seams_along
from gr00t_nb.robots.limits import propose_limits
from gr00t_nb.robots.robot import WallClock
from gr00t_nb.robots.stand_ins import RecordedRobot
from gr00t_nb.robots.watch import WatchSettings
from gr00t_nb.rollout.loop import run_episode

SAMPLE = "data_samples/cube_to_bowl"


def seam_table(
    policy: Gr00tPolicy, dataset: LeRobotDataset, episodes: list[int], length: int, delay: int, drawn: bool
):
    "Disagreement at the seam and error of what is executed, for each way to continue a chunk."
    rhythm = dict(execution_length=length, asynchronous=True, first_delay=delay)
    noises, zero = (1, 2, 3) if drawn else (0,), 0 * policy.draw_noise(0, 1)
    kind = "three noises" if drawn else "zero noise"
    print(f"\nseam: {len(episodes)} held-out episodes, {kind}, s {length}, d {delay}\n")
    print("| continuation | seam, mrad | of none | executed error, mrad | of none |\n|---|---|---|---|---|")
    first = None
    for name, way in SEAM_WAYS.items():
        seeded = lambda e, n: lambda tick: dict(seed=100_000 * n + 1000 * e + tick)  # the same for all ways
        noise = lambda e, n: seeded(e, n) if drawn else lambda tick: dict(noise=zero)
        told = [(e, Chunking(**rhythm, **way), delay, noise(e, n)) for e in episodes for n in noises]
        traces = [seams_along(policy, dataset, *t) for t in told]
        gap, error = seam_figures(traces, "single_arm")
        first = first or (gap, error)
        shares = f"{gap / first[0]:.2f} | {1000 * error:.1f} | {error / first[1]:.3f}"
        print(f"| {name} | {1000 * gap:.1f} | {shares} |", flush=True)


class Unlooked(RecordedRobot):
    "A recording whose pictures were decoded before: a camera's driver costs the loop nothing."
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        steps = range(len(self))
        self.decoded = {v: self.dataset.frames(self.episode, v, steps) for v in self.views}
        frames = self.decoded
        self.dataset = type("Frames", (), dict(frames=lambda self, e, v, s: frames[v][s]))()


def rate_table(policy: Gr00tPolicy, dataset: LeRobotDataset, seconds: float, tries: int):
    "Periods of 30 Hz while the policy computes in its thread."
    limits, patient = propose_limits(dataset), WatchSettings(heartbeat=60, late_after=60, frozen_after=1e9)
    print(f"\n30 Hz, the policy in its thread, {seconds:g} s, best of {tries}\n")
    print("| periods | within 10 % | longest, ms | answers took, ticks (median, longest) | late |")
    print("|---|---|---|---|---|")
    found = []
    for _ in range(tries):
        robot = Unlooked(dataset, 3, limits=limits, clock=WallClock())
        robot.rate = 30.0
        chunks = Chunking(6, asynchronous=True, first_delay=4, continuation="guidance")
        steps = int(seconds * robot.rate)
        result = run_episode(policy, robot, "put the blue cube in the bowl", chunks=chunks, limits=limits,
                             watch=patient, max_steps=steps)
        # the first answer is waited for; from the first action on every period counts
        moving = [p.time for p in result.periods if p.kind in ("policy", "late")]
        lengths = np.diff(moving)
        share = float((np.abs(lengths * robot.rate - 1) <= 0.1).mean())
        found.append((share, lengths, result))
    share, lengths, result = max(found, key=lambda f: f[0])
    took = result.delays[1:]
    print(f"| {len(lengths)} | {share:.1%} | {1000 * lengths.max():.1f} | {statistics.median(took):g}, {max(took)} |"
          f" {result.count('late')} |")
    print("\nall tries:", ", ".join(f"{s:.1%}" for s, _, _ in found))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model-path", default="outputs/demo")
    p.add_argument("--only", choices=["seam", "rate"])
    p.add_argument("--episodes", type=int, default=4)
    p.add_argument("--zero-noise", action="store_true", help="as rollout.evaluate starts; else drawn three times")
    p.add_argument("--seconds", type=float, default=20)
    p.add_argument("--tries", type=int, default=3)
    a = p.parse_args()
    began, load = time.time(), os.getloadavg()[0]
    policy, dataset = Gr00tPolicy("NEW_EMBODIMENT", a.model_path, device="cpu"), LeRobotDataset(SAMPLE)
    episodes = episodes_to_ask(a.model_path, dataset)[: a.episodes]
    if a.only != "rate": seam_table(policy, dataset, episodes, length=8, delay=4, drawn=not a.zero_noise)
    if a.only != "seam": rate_table(policy, dataset, a.seconds, a.tries)
    print(f"\nload of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after, {time.time() - began:.0f} s")


if __name__ == "__main__": main()
