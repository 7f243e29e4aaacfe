"""Whether loading has become slower since another commit, on a machine that has other things to do.

    git worktree add /tmp/old f5523ae
    python benchmarks/compare.py /tmp/old

Two processes, one for each checkout, make the same batches of the sample by turns. What is compared
is the processor time of each pair, and the batches themselves, which must be equal to the bit. The
paths are those of `loading.py`, without workers.
"""
import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

ROOT, BATCH, FIRST = Path(__file__).resolve().parents[1], 64, 2
PATHS = {  # threads, and what the processor is told
    "direct": (1, {}),
    "cached": (1, {}),
    "cached, two threads": (2, {}),
    "cached, fast": (1, dict(fast=True)),
    "cached, with rotation and colours": (1, dict(shaken=True)),
}


def batches(checkout: Path, path: str, cached: Path):
    "A function: number -> batch, as the loader of a checkout makes it."
    file = checkout / "benchmarks/loading.py"
    spec = importlib.util.spec_from_file_location("loading", file)
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    kit.torch.set_num_threads(1)
    kit.cv2.setNumThreads(1)
    ds = kit.LeRobotDataset(ROOT / "data_samples/cube_to_bowl")
    config, tag, (threads, how) = kit.arm_config(list(ds.modality["video"])), "arm", PATHS[path]
    statistics = {tag: kit.embodiment_statistics(ds, config)}
    settings = kit.RELEASED | (kit.SHAKEN if how.get("shaken") else {})
    settings |= dict(tokenizer=kit.train_tokenizer(ds.tasks.values(), 600))
    processor = kit.Gr00tProcessor({tag: config}, statistics, {tag: 0}, **settings)
    processor.fast_resize = how.get("fast", False)
    cache = None
    if path != "direct":
        cache = kit.FrameCache(folder=cached, **processor.image_settings)
        cache.build(ds, progress=False)
    source = kit.DataSource(ds, tag, config)
    data = kit.StepDataset([source], processor, cache=cache, threads=threads)
    def batch(k): return data.collate(data.__getitems__(range(k * BATCH, (k + 1) * BATCH)))
    return batch


def digest(batch: dict) -> str:
    parts = [batch[k].numpy().tobytes() for k in sorted(batch) if hasattr(batch[k], "numpy")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def serve(*given):
    "Makes the batches whose numbers come in; says how many seconds of the processor each took."
    warnings.simplefilter("ignore")
    batch = batches(Path(given[0]), given[1], Path(given[2]))
    for k in range(FIRST): batch(k)  # files are opened
    for line in sys.stdin:
        start = time.process_time()
        made = batch(int(line))
        print(time.process_time() - start, digest(made), flush=True)


def asked(process: subprocess.Popen, k: int) -> tuple[float, str]:
    print(k, file=process.stdin, flush=True)
    seconds, made = process.stdout.readline().split()
    return float(seconds), made


def compare(old: Path, path: str, pairs: int, cached: Path) -> np.ndarray:
    "Processor time of each batch, (pairs, 2): of the old checkout, of this one."
    def start(checkout):
        env = os.environ | dict(PYTHONPATH=str(checkout))
        command = [sys.executable, __file__, "--serve", checkout, path, cached]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return subprocess.Popen(list(map(str, command)), env=env, **pipes)
    both, seconds = [start(old), start(ROOT)], np.empty((pairs, 2))
    for k in range(pairs):
        made = {}
        for i in (0, 1) if k % 2 else (1, 0): seconds[k, i], made[i] = asked(both[i], FIRST + k)
        if made[0] != made[1]: raise SystemExit(f"{path}: batch {FIRST + k} is another one")
    for process in both: process.communicate()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="another checkout")
    parser.add_argument("--pairs", type=int, default=24, help="batches of each path")
    args = parser.parse_args()
    print("| path | old, ms a sample | new | new / old |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cached:
        for path in PATHS:
            seconds = compare(args.old.resolve(), path, args.pairs, Path(cached))
            old, new = 1000 / BATCH * np.median(seconds, 0)
            ratio = np.median(seconds[:, 1] / seconds[:, 0])
            print(f"| {path} | {old:.2f} | {new:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__": serve(*sys.argv[2:]) if sys.argv[1:2] == ["--serve"] else main()
