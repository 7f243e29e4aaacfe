"""How many steps a second `EpisodeViewer` shows, and how much memory it takes.

    python benchmarks/viewer.py [--kernel] [--data FOLDER ...] [--long]

For an episode of each data set: `viewer.step.value = i` over all its steps, which decodes, scales
and encodes the frames of all cameras, moves the cursors, and hands everything to the widgets.
Forward with nothing prepared (cold), forward with everything kept (warm), backward, and in random
order, cold. The thread that looks ahead is on, as for a user; "first" is the longest single step of
the cold walk. Then as many episodes as there are (at most 20) in random order with a store of
`--megabytes`, to see whether memory stays where it is.

By itself this measures the kernel's part without a browser. With `--kernel` it runs in a Jupyter
kernel, where the widgets also send what they are given, to a client that reads nothing. `--long`
adds a generated data set: 640x480, two cameras, a key frame every 250 frames.
"""
import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

HERE = Path(__file__).resolve().parent


def rates(viewer, steps) -> tuple[float, float]:  # steps a second, longest step in milliseconds
    "Shows some steps."
    longest, start = 0.0, time.perf_counter()
    for i in steps:
        t = time.perf_counter()
        viewer.step.value = int(i)
        longest = max(longest, time.perf_counter() - t)
    return len(steps) / (time.perf_counter() - start), 1000 * longest


def memory() -> float:
    "MB of this process."
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


def measure(ds, megabytes: int) -> dict:
    "A row of the table."
    from gr00t_nb.viz.episode_viewer import EpisodeViewer
    rng, viewer = np.random.default_rng(0), EpisodeViewer(ds)
    n = viewer.record.length
    def cold(steps):
        viewer.store.close()
        viewer.store._last.clear()
        return rates(viewer, steps)
    row = dict(data=ds.name, cameras=len(viewer.views), steps=n)
    viewer.step.value = n - 1
    row["cold"], row["first"] = cold(range(n))
    row["warm"], _ = rates(viewer, range(n - 2, -1, -1))
    viewer.step.value = n - 1
    row["backward"], _ = cold(range(n - 2, -1, -1))
    row["random"], row["jump"] = cold(rng.permutation(n)[:100])
    t = time.perf_counter()
    viewer.episode.value = 1 % len(ds)
    row["open"] = 1000 * (time.perf_counter() - t)
    viewer.close()
    return row | bound(ds, megabytes, rng)


def bound(ds, megabytes: int, rng) -> dict:
    "Memory over many episodes."
    from gr00t_nb.viz.episode_viewer import EpisodeViewer
    viewer = EpisodeViewer(ds, max_bytes=megabytes * 2**20)
    seen, largest = [], 0
    for _ in range(4):
        for e in rng.permutation(min(20, len(ds))):
            viewer.episode.value = int(e)
            for i in rng.permutation(viewer.record.length)[:60]: viewer.step.value = int(i)
            largest = max(largest, viewer.store.nbytes)
        seen.append(memory())
    viewer.close()
    return dict(kept=largest / 2**20, early=seen[0], late=seen[-1])


def run(data: list[str], megabytes: int):
    "Measures and prints the table."
    from gr00t_nb.data.lerobot import LeRobotDataset
    warnings.simplefilter("ignore")
    rows = [measure(LeRobotDataset(d), megabytes) for d in data]
    names = ("data", "cameras", "steps", "forward, cold", "longest step", "forward, warm")
    names += ("backward, cold", "random, cold", "longest jump", "open an episode")
    print(f"| {' | '.join(names)} |\n|" + "---|" * len(names))
    for r in rows:
        speeds = f"{r['cold']:.0f}/s | {r['first']:.0f} ms | {r['warm']:.0f}/s"
        jumps = f"{r['backward']:.0f}/s | {r['random']:.0f}/s | {r['jump']:.0f} ms"
        of_data, opened = f"{r['data']} | {r['cameras']} | {r['steps']}", f"{r['open']:.0f} ms"
        print(f"| {of_data} | {speeds} | {jumps} | {opened} |")
    for r in rows:
        print(
            f"{r['data']}: frames kept {r['kept']:.1f} of at most {megabytes} MiB; process"
            f" {r['early']:.0f} MB after the first round over its episodes, {r['late']:.0f} MB"
            " after the fourth"
        )


def show(message: dict):
    "Prints what a kernel says, and its errors."
    content = message["content"]
    if message["msg_type"] not in ("stream", "error"): return
    print(content.get("text") or "\n".join(content.get("traceback", [])), end="")


def in_kernel(data: list[str], megabytes: int):
    "The same in a Jupyter kernel."
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        here = f"import sys; sys.path.insert(0, {str(HERE)!r})"
        code = f"{here}\nimport viewer\nviewer.run({data!r}, {megabytes})"
        reply = client.execute_interactive(code, output_hook=show)
        if reply["content"]["status"] != "ok": sys.exit(1)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add, made = parser.add_argument, Path(tempfile.gettempdir()) / "gr00t_nb_viewer"
    add("--data", nargs="*", default=[], help="more data sets, by folder")
    add("--long", action="store_true", help="add a generated data set of long, wide videos")
    add("--kernel", action="store_true", help="in a Jupyter kernel, sending included")
    add("--megabytes", type=int, default=8, help="bound of the store in the memory part, MiB")
    add("--folder", type=Path, default=made, help="for the generated data set; kept")
    args = parser.parse_args()
    sample = str(HERE.parent / "data_samples/cube_to_bowl")
    data = [sample, *(str(Path(d).resolve()) for d in args.data)]
    if args.long:
        sys.path.insert(0, str(HERE))
        from loading import make_long
        make_long(args.folder / "long", episodes=4, length=600)
        data.append(str(args.folder / "long"))
    (in_kernel if args.kernel else run)(data, args.megabytes)


if __name__ == "__main__": main()
