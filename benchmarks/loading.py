"""How fast samples come from files to collated batches, and how much memory that takes.

    python benchmarks/loading.py --gr1 PATH/TO/gr1.PickNPlace --json loading.json

Three data sets: the committed sample; NVIDIA's demo set gr1.PickNPlace, if `--gr1` says where it is; and a generated one with 100 episodes
of 1,000 frames of two cameras, 640x480, H.264 with a key frame every 250 frames (two recordings a camera are encoded; the episodes are
links to them). Each over the whole path: order, tables, video, augmentation, resizing, normalization, prompt, collation; images are uint8
in the batch. "direct" decodes every frame it needs; "cached" reads prepared frames from a `FrameCache` that was built, and verified, before;
"first epoch" begins with an empty cache and fills it on the way. Augmentation is that of FinetuneConfig's defaults with a released processor:
a random crop. "fast" rows use `fast_resize`. Then: seconds for statistics, and for opening data sets of 10,000 episodes.

Workers 0 means: all in this process, which makes images in as many threads as it has cores (`--threads` changes that).
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

from gr00t_nb.loading.frames import FrameCache
from gr00t_nb.processing.images import loading_threads
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.prompts import train_tokenizer
from gr00t_nb.loading.order import DataSource, GlobalBatches
from gr00t_nb.loading.samples import StepDataset
from gr00t_nb.processing.statistics import embodiment_statistics, relative_statistics
from gr00t_nb.data.video import decode_frames, write_video
from gr00t_nb.embodiments import MODALITY_CONFIGS, ActionConfig, ModalityConfig
from gr00t_nb.files import write_json

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


# ---------------------------------------------------------------------------------------------------------------- data sets
def arm_config(views) -> dict[str, ModalityConfig]:
    groups, actions = ["single_arm", "gripper"], [
        ActionConfig("RELATIVE"),
        ActionConfig("ABSOLUTE"),
    ]
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
    rows, columns = np.mgrid[:size[0], :size[1]].astype(np.float32)
    for view in views:
        for r in range(recordings):
            background = cv2.GaussianBlur(
                rng.integers(0, 255, (*size, 3), dtype=np.uint8), (31, 31), 0
            )
            background = cv2.normalize(background, None, 20, 220, cv2.NORM_MINMAX)
            frames = np.repeat(background[None], length, 0)
            for t, frame in enumerate(frames):  # two discs wander over the table
                for k in range(2):
                    y, x = size[0] * (0.5 + 0.35 * np.sin(t / (37 + 9 * k) + r)), size[1] * (
                        0.5 + 0.35 * np.cos(t / (53 - 7 * k))
                    )
                    cv2.circle(frame, (int(x), int(y)), 40, (220, 60 + 100 * k, 40), -1)
            write_video(root / f"recordings/{view}_{r}.mp4", frames, 30, crf=23, gop=gop)
            del frames
    for e in range(episodes):
        t = np.arange(length) / 30
        arm = np.stack(
            [np.sin(t * (0.5 + 0.1 * j) + e) for j in range(6)]
            + [(np.sin(t + e) > 0).astype(float)],
            1,
        ).astype(np.float32)
        ids = dict(
            frame_index=np.arange(length),
            episode_index=np.full(length, e),
            index=np.arange(length) + e * length,
            task_index=np.full(length, e % 5),
        )
        (root / "data/chunk-000").mkdir(parents=True, exist_ok=True)
        vectors = {"observation.state": arm, "action": np.roll(arm, -3, 0)}
        pq.write_table(
            pa.table({
                **{
                    k: pa.FixedSizeListArray.from_arrays(v.reshape(-1), 7)
                    for k, v in vectors.items()
                },
                "timestamp": t,
                **ids,
            }),
            root / f"data/chunk-000/episode_{e:06d}.parquet",
        )
        for view in views:
            place = root / f"videos/chunk-000/observation.images.{view}/episode_{e:06d}.mp4"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(root / f"recordings/{view}_{e % recordings}.mp4", place)
    vector = dict(dtype="float32", shape=[7], names=[f"joint_{i}" for i in range(6)] + ["gripper"])
    info = dict(
        codebase_version="v2.1",
        robot_type="arm",
        fps=30,
        total_episodes=episodes,
        total_frames=episodes * length,
        chunks_size=1000,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        features={
            "observation.state": vector,
            "action": vector,
            "task_index": dict(dtype="int64", shape=[1]),
            **{f"observation.images.{v}": dict(dtype="video", shape=[*size, 3]) for v in views},
        },
    )
    parts = dict(single_arm=dict(start=0, end=6), gripper=dict(start=6, end=7))
    write_json(
        root / "meta/modality.json",
        dict(
            state=parts,
            action=parts,
            video={v: {} for v in views},
            annotation={"human.task_description": dict(original_key="task_index")},
        ),
    )
    lines = lambda rows: "".join(json.dumps(r) + "\n" for r in rows)
    (root / "meta/tasks.jsonl").write_text(
        lines(dict(task_index=i, task=f"move disc {i} to the corner") for i in range(5))
    )
    (root / "meta/episodes.jsonl").write_text(
        lines(
            dict(episode_index=e, tasks=[f"move disc {e % 5} to the corner"], length=length)
            for e in range(episodes)
        )
    )
    write_json(root / "meta/info.json", info)  # last: its presence says that the rest is there


# ---------------------------------------------------------------------------------------------------------------- measuring
def memory() -> float:
    "MB of this process and its children, each shared page counted once."
    def of(pid):
        try:
            return (
                sum(
                    int(line.split()[1])
                    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    if line.startswith("Pss:")
                )
                / 1024
            )
        except (OSError, ValueError):
            return 0.0
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


def measure(
    name: str,
    ds: LeRobotDataset,
    tag: str,
    config: dict,
    folder: Path,
    args,
    cached_episodes=None,
    batch=64,
) -> dict:
    "All rows of one data set."
    processor = Gr00tProcessor(
        {tag: config},
        {tag: embodiment_statistics(ds, config)},
        tokenizer=train_tokenizer(ds.tasks.values(), 600),
        **RELEASED
    )
    source = DataSource(ds, tag, config)
    cache = FrameCache(folder=folder / "frames", **processor.image_settings)
    episodes = range(len(ds)) if cached_episodes is None else range(min(cached_episodes, len(ds)))
    start = time.perf_counter()
    report = cache.build(ds, episodes, config["video"].modality_keys)
    result = dict(
        data=name,
        decode=decode_rate(ds, config["video"].modality_keys[0]),
        rows=[],
        build=dict(
            gib=round(cache.estimate(ds, episodes, config["video"].modality_keys) / 2**30, 2),
            seconds=round(time.perf_counter() - start, 1),
            made=report.made,
        ),
    )
    cached_source = DataSource(ds, tag, config, episodes=list(episodes))
    for workers in args.workers:
        direct = StepDataset([source], processor, threads=args.threads)
        # one pass over the cached part first, so that every frame has been compared with its checksum
        cached = StepDataset([cached_source], processor, cache=cache, threads=args.threads)
        if workers == args.workers[0]:
            for e in episodes:
                for v in config["video"].modality_keys:
                    for i in range(0, ds.length(e), 64):
                        cache.frames(ds, e, v, range(i, min(i + 64, ds.length(e))))
        small = batch if cached_episodes is None else 4  # a sample takes hundreds of decoded frames
        result["rows"].append(
            dict(
                workers=workers,
                path="direct",
                **speed(direct, workers, args.seconds, small, 2 if cached_episodes is None else 1)
            )
        )
        result["rows"].append(
            dict(workers=workers, path="cached", **speed(cached, workers, args.seconds, batch, 3))
        )
    first = (
        dict(
            workers=0,
            path="first epoch, the cache being made",
            **first_epoch(source, processor, folder / "first", batch)
        )
        if cached_episodes is None
        else None
    )
    if first: result["rows"].insert(0, first)
    fast = Gr00tProcessor(
        {tag: config}, processor.statistics, tokenizer=processor.tokenizer, **RELEASED
    )
    fast.fast_resize = True
    for threads in dict.fromkeys((args.threads or loading_threads(), 1)):
        path = f"cached, fast, {threads} thread{'s' * (threads > 1)}"
        result["rows"].append(
            dict(
                workers=0,
                path=path,
                **speed(
                    StepDataset([cached_source], fast, cache=cache, threads=threads),
                    0,
                    args.seconds,
                    batch,
                    3,
                )
            )
        )
    shaken = Gr00tProcessor(
        {tag: config}, processor.statistics, tokenizer=processor.tokenizer, **RELEASED, **SHAKEN
    )
    result["rows"].append(
        dict(
            workers=0,
            path="cached, with rotation and colours",
            **speed(
                StepDataset([cached_source], shaken, cache=cache, threads=args.threads),
                0,
                args.seconds,
                batch,
                3,
            )
        )
    )
    one = StepDataset([cached_source], processor, cache=cache, threads=1)
    result["rows"].append(
        dict(workers=0, path="cached, one thread", **speed(one, 0, args.seconds, batch, 3))
    )
    result["memory"] = slope(
        StepDataset([cached_source], processor, cache=cache, threads=args.threads),
        args.memory_samples,
    )
    return result


def measured(part: str, args) -> dict:
    "All rows of 'sample', 'gr1' or 'long'."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if part == "gr1":
        return measure(
            "gr1.PickNPlace (1 camera, 256x256)",
            LeRobotDataset(args.gr1),
            "gr1",
            MODALITY_CONFIGS["gr1"],
            args.folder,
            args,
        )
    if part == "long": make_long(args.folder / "long")
    ds = LeRobotDataset(
        args.folder / "long" if part == "long" else HERE.parent / "data_samples/cube_to_bowl"
    )
    name = (
        "generated (2 cameras, 640x480, key frame every 250)"
        if part == "long"
        else "cube_to_bowl (2 cameras, 320x240)"
    )
    return measure(
        name,
        ds,
        "new_embodiment",
        arm_config(list(ds.modality["video"])),
        args.folder,
        args,
        cached_episodes=args.long_episodes if part == "long" else None,
    )


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
        embodiment_statistics(
            LeRobotDataset(many),
            {k: c for k, c in arm_config([]).items() if k in ("state", "action")},
            use_shipped=False,
        )
        out["thousand_episodes_seconds"] = round(time.perf_counter() - start, 2)
    return out


def opening_figures(episodes: int = 10_000) -> dict:
    "Seconds until a data set of many episodes is open: v2.1's JSON lines and v3.0's parquet. Metadata only: nothing else is read."
    out = {}
    features = {
        "observation.state": dict(dtype="float32", shape=[7]),
        "action": dict(dtype="float32", shape=[7]),
    }
    modality = dict(
        state=dict(arm=dict(start=0, end=7)),
        action=dict(arm=dict(start=0, end=7)),
        video={},
        annotation={},
    )
    for version in ("v2.1", "v3.0"):
        with tempfile.TemporaryDirectory() as tmp:
            root = Path(tmp)
            info = dict(
                codebase_version=version,
                fps=20,
                chunks_size=1000,
                total_episodes=episodes,
                total_frames=episodes * 500,
                features=features,
            )
            if version == "v2.1":
                info |= dict(
                    data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
                )
                (root / "meta").mkdir()
                (root / "meta/episodes.jsonl").write_text(
                    "".join(
                        json.dumps(dict(episode_index=e, tasks=[f"task {e % 50}"], length=500))
                        + "\n"
                        for e in range(episodes)
                    )
                )
                (root / "meta/tasks.jsonl").write_text(
                    "".join(
                        json.dumps(dict(task_index=i, task=f"task {i}")) + "\n" for i in range(50)
                    )
                )
            else:
                info |= dict(data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
                (root / "meta/episodes/chunk-000").mkdir(parents=True)
                e = np.arange(episodes)
                pq.write_table(
                    pa.table({
                        "episode_index": e,
                        "length": np.full(episodes, 500),
                        "tasks": [[f"task {i % 50}"] for i in e],
                        "data/chunk_index": e * 0,
                        "data/file_index": e // 1000,
                        "dataset_from_index": e * 500,
                        "dataset_to_index": e * 500 + 500,
                    }),
                    root / "meta/episodes/chunk-000/file-000.parquet",
                )
                pq.write_table(
                    pa.table(
                        {"task_index": np.arange(50), "task": [f"task {i}" for i in range(50)]}
                    ),
                    root / "meta/tasks.parquet",
                )
            write_json(root / "meta/info.json", info)
            write_json(root / "meta/modality.json", modality)
            times = []
            for _ in range(3):
                start = time.perf_counter()
                ds = LeRobotDataset(root)
                times.append(time.perf_counter() - start)
            assert len(ds) == episodes
            out[version] = round(min(times), 3)
    return out


def make_tables(root: Path, episodes: int, length: int):
    "Tables and metadata alone, for statistics."
    rng, vector = np.random.default_rng(0), dict(dtype="float32", shape=[7])
    (root / "data/chunk-000").mkdir(parents=True)
    for e in range(episodes):
        state = np.cumsum(rng.normal(0, 0.01, (length, 7)), 0).astype(np.float32)
        columns = {
            "observation.state": state,
            "action": state + rng.normal(0, 0.01, state.shape).astype(np.float32),
        }
        pq.write_table(
            pa.table(
                {k: pa.FixedSizeListArray.from_arrays(v.reshape(-1), 7) for k, v in columns.items()}
            ),
            root / f"data/chunk-000/episode_{e:06d}.parquet",
        )
    parts = dict(single_arm=dict(start=0, end=6), gripper=dict(start=6, end=7))
    write_json(
        root / "meta/modality.json", dict(state=parts, action=parts, video={}, annotation={})
    )
    write_json(
        root / "meta/info.json",
        dict(
            codebase_version="v2.1",
            fps=20,
            chunks_size=1000,
            total_episodes=episodes,
            total_frames=episodes * length,
            features={"observation.state": vector, "action": vector},
        ),
    )
    (root / "meta/episodes.jsonl").write_text(
        "".join(
            json.dumps(dict(episode_index=e, tasks=["t"], length=length)) + "\n"
            for e in range(episodes)
        )
    )
    (root / "meta/tasks.jsonl").write_text(json.dumps(dict(task_index=0, task="t")) + "\n")


def show(results: list[dict]):
    for r in results:
        print(
            f"\n{r['data']}: {r['decode']['in_order']} frames a second decoded in order,"
            f" {r['decode']['at_random']} at random; cache {r['build']['gib']} GiB made in"
            f" {r['build']['seconds']} s"
            + (" (present already)" if not r["build"]["made"] else "")
        )
        print("| workers | path | samples a second | memory, MB |\n|---|---|---|---|")
        for row in r["rows"]:
            print(
                f"| {row['workers']} | {row['path']} | {row['samples_per_second']:,.0f} |"
                f" {row['memory_mb']:,} |"
            )
        m = r["memory"]
        print(
            f"memory over {m['samples']:,} samples: {m['kb_per_sample']:+.2f} kB a sample, at most"
            f" {m['largest_mb']:,} MB"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gr1", type=Path, help="folder of gr1.PickNPlace")
    parser.add_argument(
        "--only",
        nargs="*",
        default=["sample", "gr1", "long", "statistics", "opening"],
        help="which parts",
    )
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--threads", type=int, default=None, help="threads of a process that loads without workers"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="for each row")
    parser.add_argument("--memory-samples", type=int, default=10_000)
    parser.add_argument(
        "--long-episodes",
        type=int,
        default=8,
        help="episodes of the long data set that are cached (0.37 GiB each)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "gr00t_nb_loading",
        help="for the generated data set and the caches; kept",
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:  # memory is each one's own
        results = list(
            pool.map(
                measured,
                [
                    p
                    for p in ("sample", "gr1", "long")
                    if p in args.only and (p != "gr1" or args.gr1)
                ],
                itertools.repeat(args),
            )
        )
    show(results)
    out = dict(
        machine=dict(
            cores=os.cpu_count(),
            processor=platform.processor() or platform.machine(),
            torch=torch.__version__,
            threads=args.threads or loading_threads(),
        ),
        loading=results,
    )
    if "statistics" in args.only:
        out["statistics"] = statistics_figures(args)
        print("\nstatistics:", out["statistics"])
    if "opening" in args.only:
        out["opening_10000_episodes_seconds"] = opening_figures()
        print("\nopening 10,000 episodes, seconds:", out["opening_10000_episodes_seconds"])
    if args.json: write_json(args.json, out)
    else: print(json.dumps(out))


if __name__ == "__main__": main()
