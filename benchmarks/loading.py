"""How fast samples come from files to collated batches, and how much memory that takes.

    python benchmarks/loading.py --gr1 PATH/TO/gr1.PickNPlace --json loading.json

Three data sets: the committed sample; NVIDIA's demo set gr1.PickNPlace, if `--gr1` says where it
is; and a generated one with 100 episodes of 1,000 frames of two cameras, 640x480, H.264 with a
key frame every 250 frames (two recordings a camera are encoded; the episodes are links to them).
Each over the whole path: order, tables, video, augmentation, resizing, normalization, prompt,
collation; images are uint8 in the batch. "direct" decodes every frame it needs; "cached" reads
prepared frames from a `FrameCache` that was built, and verified, before; "first epoch" begins
with an empty cache and fills it on the way. Augmentation is that of FinetuneConfig's defaults
with a released processor: a random crop. "fast" rows use `fast_resize`. Then: seconds for
statistics, and for opening data sets of 10,000 episodes.

Workers 0 means: all in this process, which makes images in as many threads as it has cores
(`--threads` changes that).
"""
import argparse
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader

from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.video import write_video
from gr00t_nb.embodiments import MODALITY_CONFIGS
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig
from gr00t_nb.files import write_json
from gr00t_nb.loading.frames import FrameCache
from gr00t_nb.loading.order import DataSource, GlobalBatches
from gr00t_nb.loading.samples import StepDataset
from gr00t_nb.processing.images import loading_threads
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.prompts import train_tokenizer
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics
from gr00t_nb.processing.statistics import relative_statistics

HERE = Path(__file__).resolve().parent
RELEASED = dict(
    shortest_image_edge=256,
    crop_fraction=0.95,
    use_albumentations=True,
    max_state_dim=128,
    max_action_dim=128,
    max_action_horizon=50,
    apply_sincos_state_encoding=True,
    use_relative_action=True,
)  # as the released 3B processor
SHAKEN = dict(
    random_rotation_angle=5,
    color_jitter_params=dict(brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08),
)


# ---------------------------------------------------------------------------------------- data sets
def arm_config(views) -> dict[str, ModalityConfig]:
    groups = ["single_arm", "gripper"]
    actions = [ActionConfig("RELATIVE"), ActionConfig("ABSOLUTE")]
    return dict(
        video=ModalityConfig([0], views),
        state=ModalityConfig([0], groups),
        action=ModalityConfig(range(16), groups, action_configs=actions),
        language=ModalityConfig([0], ["annotation.human.task_description"]),
    )


def make_long(root: Path, episodes=100, length=1000, size=(480, 640), gop=250, recordings=2):
    "A data set of long episodes; an unfinished one is made anew."
    if (root / "meta/info.json").exists(): return
    shutil.rmtree(root, ignore_errors=True)
    rng, views = np.random.default_rng(0), ("front", "wrist")
    for view in views:
        for r in range(recordings):
            frames = make_recording(rng, length, size, r)
            write_video(root / f"recordings/{view}_{r}.mp4", frames, 30, crf=23, gop=gop)
            del frames
    for e in range(episodes):
        write_long_table(root / f"data/chunk-000/episode_{e:06d}.parquet", e, length)
        for view in views:
            place = root / f"videos/chunk-000/observation.images.{view}/episode_{e:06d}.mp4"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(root / f"recordings/{view}_{e % recordings}.mp4", place)
    tasks = [f"move disc {i} to the corner" for i in range(5)]
    vector = dict(dtype="float32", shape=[7], names=[f"joint_{i}" for i in range(6)] + ["gripper"])
    features = {f"observation.images.{v}": dict(dtype="video", shape=[*size, 3]) for v in views}
    features |= {"observation.state": vector, "action": vector}
    features["task_index"] = dict(dtype="int64", shape=[1])
    parts = dict(single_arm=dict(start=0, end=6), gripper=dict(start=6, end=7))
    modality = dict(
        state=parts,
        action=parts,
        video={v: {} for v in views},
        annotation={"human.task_description": dict(original_key="task_index")},
    )
    write_metadata(root, features, modality, episodes, length, tasks)


def make_recording(rng, length: int, size: tuple[int, int], number: int) -> np.ndarray:
    "Two discs that wander over a table, uint8 (length, *size, 3)."
    background = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    background = cv2.GaussianBlur(background, (31, 31), 0)
    background = cv2.normalize(background, None, 20, 220, cv2.NORM_MINMAX)
    frames = np.repeat(background[None], length, 0)
    for t, frame in enumerate(frames):
        for k in range(2):
            y = size[0] * (0.5 + 0.35 * np.sin(t / (37 + 9 * k) + number))
            x = size[1] * (0.5 + 0.35 * np.cos(t / (53 - 7 * k)))
            cv2.circle(frame, (int(x), int(y)), 40, (220, 60 + 100 * k, 40), -1)
    return frames


def write_long_table(file: Path, e: int, length: int):
    "The rows of one episode: six joints that swing, a gripper, and one of five tasks."
    t = np.arange(length) / 30
    joints = [np.sin(t * (0.5 + 0.1 * j) + e) for j in range(6)]
    arm = np.stack([*joints, (np.sin(t + e) > 0).astype(float)], 1).astype(np.float32)
    columns = vector_columns({"observation.state": arm, "action": np.roll(arm, -3, 0)})
    columns |= {"timestamp": t, "frame_index": np.arange(length)}
    columns |= {"episode_index": np.full(length, e), "index": np.arange(length) + e * length}
    columns["task_index"] = np.full(length, e % 5)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def vector_columns(arrays: dict[str, np.ndarray]) -> dict:
    "Arrays (L, D) as columns of lists."
    columns = {}
    for name, a in arrays.items():
        columns[name] = pa.FixedSizeListArray.from_arrays(a.reshape(-1), a.shape[1])
    return columns


def write_metadata(
    root: Path, features: dict, modality: dict, episodes: int, length: int, tasks: list[str], fps=30
):
    "meta/ of version 2.1, episodes of equal length; info.json last: its presence says that the rest is there."
    info = dict(
        codebase_version="v2.1",
        robot_type="arm",
        fps=fps,
        total_episodes=episodes,
        total_frames=episodes * length,
        chunks_size=1000,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        features=features,
    )
    write_json(root / "meta/modality.json", modality)
    rows = [dict(task_index=i, task=task) for i, task in enumerate(tasks)]
    write_lines(root / "meta/tasks.jsonl", rows)
    told = [[tasks[e % len(tasks)]] for e in range(episodes)]
    rows = [dict(episode_index=e, tasks=t, length=length) for e, t in enumerate(told)]
    write_lines(root / "meta/episodes.jsonl", rows)
    write_json(root / "meta/info.json", info)


def write_lines(file: Path, rows: list[dict]):
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))


# ---------------------------------------------------------------------------------------- measuring
def memory() -> float:
    "MB of this process and its children, each shared page counted once."
    def of(pid):
        try: lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError: return 0.0
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    try: children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError: children = []
    return sum(map(of, ["self", *children]))


def loader(dataset: StepDataset, workers: int, batch: int) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=GlobalBatches(batch),
        num_workers=workers,
        collate_fn=dataset.collate,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=one_thread,
    )


def one_thread(_): cv2.setNumThreads(1)


def speed(dataset: StepDataset, workers: int, seconds: float, batch: int, ahead: int) -> dict:
    "Samples a second, and the largest memory seen."
    batches = iter(loader(dataset, workers, batch))
    for _ in range(ahead + 2 * workers):
        next(batches)  # workers start, files are opened, what was fetched ahead is used up
    start, n, top = time.perf_counter(), 0, 0.0
    while (took := time.perf_counter() - start) < seconds or n < 2 + workers:
        next(batches)
        n += 1
    top = memory()
    del batches
    return dict(samples_per_second=round(n * batch / took, 1), memory_mb=round(top))


def first_epoch(source: DataSource, processor, folder: Path, batch: int) -> dict:
    "One epoch of a data set whose frames nobody has decoded before."
    shutil.rmtree(folder, ignore_errors=True)
    dataset = StepDataset(
        [source], processor, cache=FrameCache(folder=folder, **processor.image_settings)
    )
    batches, n = iter(loader(dataset, 0, batch)), len(dataset) // batch
    start = time.perf_counter()
    for _ in range(n): next(batches)
    took = time.perf_counter() - start
    shutil.rmtree(folder)
    return dict(samples_per_second=round(n * batch / took, 1), memory_mb=round(memory()))


def slope(dataset: StepDataset, samples: int, batch: int = 64) -> dict:
    "How memory grows over many samples in one process: a line fitted to the second half of the readings."
    batches, readings = iter(loader(dataset, 0, batch)), []
    for i in range(samples // batch):
        next(batches)
        if i % 5 == 0: readings.append(((i + 1) * batch, memory()))
    n, mb = np.array(readings[len(readings) // 4:]).T
    return dict(
        samples=samples // batch * batch,
        kb_per_sample=round(float(np.polyfit(n, mb, 1)[0]) * 1024, 3),
        largest_mb=round(max(m for _, m in readings)),
    )


def decode_rate(ds: LeRobotDataset, view: str, n: int = 300) -> dict:
    "Frames a second of one core: a video in order, and single frames at random places of several."
    ds.frames(0, view, [0])  # torchcodec is loaded, the file is opened
    start = time.perf_counter()
    got = len(ds.frames(0, view, range(min(n, ds.length(0)))))
    in_order = got / (time.perf_counter() - start)
    rng, start, done = np.random.default_rng(0), time.perf_counter(), 0
    while done < 40 or (time.perf_counter() - start < 1 and done < n):
        e = int(rng.integers(min(5, len(ds))))
        ds.frames(e, view, [int(rng.integers(ds.length(e)))])
        done += 1
    return dict(in_order=round(in_order), at_random=round(done / (time.perf_counter() - start)))


def verify(cache: FrameCache, ds: LeRobotDataset, episodes: range, views: list[str], piece=64):
    "One pass over the cache, so that every frame has been compared with its checksum."
    for e, view in itertools.product(episodes, views):
        for i in range(0, ds.length(e), piece):
            cache.frames(ds, e, view, range(i, min(i + piece, ds.length(e))))


def measure(
    name: str,
    ds: LeRobotDataset,
    tag: str,
    config: dict,
    args,
    cached_episodes: int | None = None,  # of a data set that is too large for the cache; None: all
    batch: int = 64,
) -> dict:
    "All rows of one data set."
    statistics = {tag: embodiment_statistics(ds, config)}
    tokenizer = train_tokenizer(ds.tasks.values(), 600)
    def released(**more):
        settings = RELEASED | more
        return Gr00tProcessor({tag: config}, statistics, tokenizer=tokenizer, **settings)
    views, processor, rows = config["video"].modality_keys, released(), []
    cache = FrameCache(folder=args.folder / "frames", **processor.image_settings)
    episodes = range(len(ds) if cached_episodes is None else min(cached_episodes, len(ds)))
    start = time.perf_counter()
    report = cache.build(ds, episodes, views)
    seconds = round(time.perf_counter() - start, 1)
    gib = round(cache.estimate(ds, episodes, views) / 2**30, 2)
    result = dict(data=name, decode=decode_rate(ds, views[0]), rows=rows)
    result["build"] = dict(gib=gib, seconds=seconds, made=report.made)
    whole, part = DataSource(ds, tag, config), DataSource(ds, tag, config, episodes=list(episodes))
    def row(path, workers=0, made_by=processor, threads=args.threads):
        data = StepDataset([part], made_by, cache=cache, threads=threads)
        figures = speed(data, workers, args.seconds, batch, 3)
        rows.append(dict(workers=workers, path=path, **figures))
    verify(cache, ds, episodes, views)
    # in a data set that is not cached whole, a sample takes hundreds of decoded frames
    small, ahead = (batch, 2) if cached_episodes is None else (4, 1)
    for workers in args.workers:
        direct = StepDataset([whole], processor, threads=args.threads)
        figures = speed(direct, workers, args.seconds, small, ahead)
        rows.append(dict(workers=workers, path="direct", **figures))
        row("cached", workers)
    if cached_episodes is None:
        figures = first_epoch(whole, processor, args.folder / "first", batch)
        rows.insert(0, dict(workers=0, path="first epoch, the cache being made", **figures))
    fast = released()
    fast.fast_resize = True
    for threads in dict.fromkeys((args.threads or loading_threads(), 1)):
        row(f"cached, fast, {threads} thread{'s' * (threads > 1)}", made_by=fast, threads=threads)
    row("cached, with rotation and colours", made_by=released(**SHAKEN))
    row("cached, one thread", threads=1)
    data = StepDataset([part], processor, cache=cache, threads=args.threads)
    result["memory"] = slope(data, args.memory_samples)
    return result


def measured(part: str, args) -> dict:
    "All rows of 'sample', 'gr1' or 'long'."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if part == "gr1":
        ds, name = LeRobotDataset(args.gr1), "gr1.PickNPlace (1 camera, 256x256)"
        return measure(name, ds, "gr1", MODALITY_CONFIGS["gr1"], args)
    if part == "long":
        folder, cached = args.folder / "long", args.long_episodes
        name = "generated (2 cameras, 640x480, key frame every 250)"
        make_long(folder)
    else:
        folder, cached = HERE.parent / "data_samples/cube_to_bowl", None
        name = "cube_to_bowl (2 cameras, 320x240)"
    ds = LeRobotDataset(folder)
    config = arm_config(list(ds.modality["video"]))
    return measure(name, ds, "new_embodiment", config, args, cached_episodes=cached)


def statistics_figures(args) -> dict:
    "Seconds for relative statistics of gr1.PickNPlace, and of 1,000 episodes of 500 steps."
    out = {}
    if args.gr1:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            relative_statistics(LeRobotDataset(args.gr1), MODALITY_CONFIGS["gr1"])
            times.append(time.perf_counter() - start)
        out["gr1_relative_seconds"] = round(min(times), 3)
    with tempfile.TemporaryDirectory() as tmp:
        many = Path(tmp) / "many"
        make_tables(many, 1000, 500)
        start = time.perf_counter()
        numbers = {k: c for k, c in arm_config([]).items() if k in ("state", "action")}
        embodiment_statistics(LeRobotDataset(many), numbers, use_shipped=False)
        out["thousand_episodes_seconds"] = round(time.perf_counter() - start, 2)
    return out


def opening_figures(episodes: int = 10_000) -> dict:
    "Seconds until a data set of many episodes is open, in versions 2.1 and 3.0. Metadata only."
    out = {}
    for version, write in (("v2.1", write_many_v2), ("v3.0", write_many_v3)):
        with tempfile.TemporaryDirectory() as tmp:
            write(Path(tmp), episodes)
            times = []
            for _ in range(3):
                start = time.perf_counter()
                ds = LeRobotDataset(tmp)
                times.append(time.perf_counter() - start)
            assert len(ds) == episodes
            out[version] = round(min(times), 3)
    return out


VECTOR = dict(dtype="float32", shape=[7])
VECTORS = {"observation.state": VECTOR, "action": VECTOR}
ARM = dict(arm=dict(start=0, end=7))


def write_many_v2(root: Path, episodes: int):
    "Metadata in JSON lines."
    modality = dict(state=ARM, action=ARM, video={}, annotation={})
    tasks = [f"task {i}" for i in range(50)]
    write_metadata(root, VECTORS, modality, episodes, 500, tasks, fps=20)


def write_many_v3(root: Path, episodes: int):
    "Metadata in parquet files."
    e = np.arange(episodes)
    table = {
        "episode_index": e,
        "length": np.full(episodes, 500),
        "tasks": [[f"task {i % 50}"] for i in e],
        "data/chunk_index": e * 0,
        "data/file_index": e // 1000,
        "dataset_from_index": e * 500,
        "dataset_to_index": e * 500 + 500,
    }
    info = dict(
        codebase_version="v3.0",
        fps=20,
        chunks_size=1000,
        total_episodes=episodes,
        total_frames=episodes * 500,
        features=VECTORS,
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    )
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(table), root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = {"task_index": np.arange(50), "task": [f"task {i}" for i in range(50)]}
    pq.write_table(pa.table(tasks), root / "meta/tasks.parquet")
    write_json(root / "meta/modality.json", dict(state=ARM, action=ARM, video={}, annotation={}))
    write_json(root / "meta/info.json", info)


def make_tables(root: Path, episodes: int, length: int):
    "Tables and metadata alone, for statistics."
    rng = np.random.default_rng(0)
    (root / "data/chunk-000").mkdir(parents=True)
    for e in range(episodes):
        state = np.cumsum(rng.normal(0, 0.01, (length, 7)), 0).astype(np.float32)
        action = state + rng.normal(0, 0.01, state.shape).astype(np.float32)
        columns = vector_columns({"observation.state": state, "action": action})
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{e:06d}.parquet")
    parts = dict(single_arm=dict(start=0, end=6), gripper=dict(start=6, end=7))
    modality = dict(state=parts, action=parts, video={}, annotation={})
    write_metadata(root, VECTORS, modality, episodes, length, ["t"], fps=20)


def show(results: list[dict]):
    for r in results:
        decode, build, memory = r["decode"], r["build"], r["memory"]
        present = "" if build["made"] else " (present already)"
        print(
            f"\n{r['data']}: {decode['in_order']} frames a second decoded in order,"
            f" {decode['at_random']} at random; cache {build['gib']} GiB made in"
            f" {build['seconds']} s{present}"
        )
        print("| workers | path | samples a second | memory, MB |\n|---|---|---|---|")
        for row in r["rows"]:
            figures = f"{row['samples_per_second']:,.0f} | {row['memory_mb']:,}"
            print(f"| {row['workers']} | {row['path']} | {figures} |")
        print(
            f"memory over {memory['samples']:,} samples: {memory['kb_per_sample']:+.2f} kB a"
            f" sample, at most {memory['largest_mb']:,} MB"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, here = parser.add_argument, Path(tempfile.gettempdir()) / "gr00t_nb_loading"
    parts = ["sample", "gr1", "long", "statistics", "opening"]
    add("--gr1", type=Path, help="folder of gr1.PickNPlace")
    add("--only", nargs="*", default=parts, help="which parts")
    add("--workers", nargs="*", type=int, default=[0, 1, 2])
    add("--threads", type=int, help="threads of a process that loads without workers")
    add("--seconds", type=float, default=6.0, help="for each row")
    add("--memory-samples", type=int, default=10_000)
    cached = "episodes of the long data set that are cached (0.37 GiB each)"
    add("--long-episodes", type=int, default=8, help=cached)
    kept = "for the generated data set and the caches; kept"
    add("--folder", type=Path, default=here, help=kept)
    add("--json", type=Path, help="file for the results")
    return parser.parse_args()


def main():
    args = arguments()
    parts = [p for p in ("sample", "gr1", "long") if p in args.only and (p != "gr1" or args.gr1)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:  # memory is each one's own
        results = list(pool.map(measured, parts, itertools.repeat(args)))
    show(results)
    machine = dict(
        cores=os.cpu_count(),
        processor=platform.processor() or platform.machine(),
        torch=torch.__version__,
        threads=args.threads or loading_threads(),
    )
    out = dict(machine=machine, loading=results)
    if "statistics" in args.only:
        out["statistics"] = statistics_figures(args)
        print("\nstatistics:", out["statistics"])
    if "opening" in args.only:
        out["opening_10000_episodes_seconds"] = opening_figures()
        print("\nopening 10,000 episodes, seconds:", out["opening_10000_episodes_seconds"])
    if args.json: write_json(args.json, out)
    else: print(json.dumps(out))


if __name__ == "__main__": main()
