"""Make `cube_to_bowl`, the sample data set of this kit: a simulated arm puts a red or a blue cube into a bowl.

    python data_samples/make_cube_to_bowl.py --out data_samples/cube_to_bowl      # the committed one, minutes
    python data_samples/make_cube_to_bowl.py --out /tmp/c --episodes 2 --no-render      # no OpenGL, seconds

What happens in an episode: MuJoCo simulates the arm at a table with two cubes and a bowl at random
places (`gr00t_nb.simulators.cube_to_bowl`). A scripted expert (`gr00t_nb.simulators.expert`) plans
a path of the gripper with the small irregularities of a person, and position servos follow it.
Friction alone holds the cube. An episode is kept if the cube named by the task ends up in the bowl,
otherwise the next draw is tried.

The output is a LeRobot v2.1 data set with the `meta/modality.json` and `meta/stats.json` that
NVIDIA's code expects (this kit needs only the first). It is written as lerobot writes it: all at
once, without the journal of `gr00t_nb.conversion.writer`, with statistics of the pictures, and with
the schema that Hugging Face `datasets` reads. One seed gives one data set: parquet files repeat byte
for byte on one machine; pixels depend on the OpenGL driver. Needs `pip install mujoco`.
"""
import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from gr00t_nb.conversion.writer import Recording, arrow_column, column_statistics
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import command
from gr00t_nb.files import write_json, write_text
from gr00t_nb.processing.statistics import dataset_statistics
from gr00t_nb.simulators.arm_scene import CAMERAS, FPS, HEIGHT, JOINTS, WIDTH
from gr00t_nb.simulators.cube_to_bowl import TASKS, CubeToBowl
from gr00t_nb.simulators.expert import record_success

SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def all_columns(r: Recording, episode: int, first: int) -> dict[str, np.ndarray]:
    "The columns of an episode in lerobot's order; `first` is its first row in the data set."
    steps = np.arange(len(r))
    return r.columns | {
        "timestamp": (steps / FPS).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(len(r), episode),
        "index": first + steps,
        "task_index": np.full(len(r), TASKS.index(r.tasks[0])),
    }


def write_parquet(path: Path, columns: dict[str, np.ndarray]):
    "One episode: lists of fixed size, and the metadata by which Hugging Face `datasets` knows the types."
    types = {}
    for name, x in columns.items():
        value = {"dtype": str(x.dtype), "_type": "Value"}
        vector = {"feature": value, "length": x.shape[-1], "_type": "Sequence"}
        types[name] = vector if x.ndim == 2 else value
    table = pa.table({name: arrow_column(x) for name, x in columns.items()})
    metadata = {"huggingface": json.dumps({"info": {"features": types}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def write_slow_video(path: Path, frames: np.ndarray, crf: int):
    "H.264 as small as `preset=slow` makes it, with a key frame every half second for cheap random access."
    import torch
    from torchcodec.encoders import VideoEncoder
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    options = {"g": "10", "bf": "0", "threads": "1"}  # one thread, so that bytes repeat
    VideoEncoder(pictures, frame_rate=FPS).to_file(
        str(path), codec="libx264", pixel_format="yuv420p", crf=crf, preset="slow",
        extra_options=options,
    )


def picture_statistics(frames: np.ndarray) -> dict[str, list]:
    "Per channel in [0, 1], of every tenth frame, shaped (3, 1, 1), as lerobot has them."
    sample = frames[::10].transpose(0, 3, 1, 2) / 255.0
    measures = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}
    stats = {k: f(sample, axis=(0, 2, 3), keepdims=True)[0].tolist() for k, f in measures.items()}
    return stats | {"count": [len(sample)]}


def features(cameras: tuple[str, ...]) -> dict[str, dict]:
    "The `features` of meta/info.json: everything a row of an episode has."
    vector = {"dtype": "float32", "shape": [7], "names": [*JOINTS, "gripper"]}
    video = {
        "dtype": "video",
        "shape": [HEIGHT, WIDTH, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": HEIGHT,
            "video.width": WIDTH,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": FPS,
            "video.channels": 3,
            "has_audio": False,
        },
    }
    return {
        "observation.state": vector,
        "action": vector,
        **{f"observation.images.{camera}": video for camera in cameras},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in SCALARS.items()},
    }


def modality(cameras: tuple[str, ...]) -> dict:
    "meta/modality.json: which part of the vectors is what, and where video and language lie (GR00T's addition)."
    groups = {"single_arm": {"start": 0, "end": 6}, "gripper": {"start": 6, "end": 7}}
    return {
        "state": groups,
        "action": groups,
        "video": {c: {"original_key": f"observation.images.{c}"} for c in cameras},
        "annotation": {"human.task_description": {"original_key": "task_index"}},
    }


def info(episodes: int, steps: int, cameras: tuple[str, ...]) -> dict:
    "meta/info.json."
    return {
        "codebase_version": "v2.1",
        "robot_type": "six_joint_arm",
        "total_episodes": episodes,
        "total_frames": steps,
        "total_tasks": len(TASKS),
        "total_videos": episodes * len(cameras),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA,
        "video_path": VIDEO if cameras else None,
        "features": features(cameras),
    }


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    "A folder beside `out` that takes its place if the block ends well, and is removed if it does not."
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        work.chmod(0o755)
        yield work
        if out.exists(): shutil.rmtree(out)
        os.rename(work, out)
    finally: shutil.rmtree(work, ignore_errors=True)


def write_episode(work: Path, r: Recording, episode: int, first: int, crf: int) -> dict:
    "The files of an episode; its statistics."
    columns, place = all_columns(r, episode, first), {"episode_chunk": 0, "episode_index": episode}
    write_parquet(work / DATA.format(**place), columns)
    stats = column_statistics(columns)
    for name, frames in r.videos.items():
        write_slow_video(work / VIDEO.format(video_key=name, **place), frames, crf)
        stats[name] = picture_statistics(frames)
    return stats


def make(out: Path, episodes: int = 40, seed: int = 0, render: bool = True, crf: int = 29):
    "Writes the data set into the new folder `out`; nothing is left there if anything goes wrong on the way."
    sim, cameras = CubeToBowl(render), CAMERAS if render else ()
    total, listing, stats = 0, [], []
    with whole_or_nothing(Path(out)) as work:
        for i in tqdm(range(episodes), desc="episodes", disable=None):
            r = record_success(sim, seed, i, cameras)
            of_episode = write_episode(work, r, i, total, crf)
            stats.append({"episode_index": i, "stats": of_episode})
            listing.append({"episode_index": i, "tasks": r.tasks[:1], "length": len(r)})
            total += len(r)
        meta, tasks = work / "meta", [{"task_index": i, "task": t} for i, t in enumerate(TASKS)]
        write_json(meta / "info.json", info(episodes, total, cameras))
        write_json(meta / "modality.json", modality(cameras))
        for name, rows in (("episodes", listing), ("tasks", tasks), ("episodes_stats", stats)):
            write_text(meta / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_json(meta / "stats.json", dataset_statistics(LeRobotDataset(work)), indent=4)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    quality = "H.264 quality, lower is better and larger"
    parser.add_argument("--crf", type=int, default=29, help=quality)
    numbers = "physics, parquet and meta only: no OpenGL, no videos"
    parser.add_argument("--no-render", action="store_true", help=numbers)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    args = parser.parse_args()
    if args.episodes < 1:
        parser.error(f"--episodes {args.episodes}: a data set needs at least one episode")
    if args.out.exists() and not args.overwrite:
        parser.error(f"{args.out} exists already; give another --out, or --overwrite to replace it")
    make(args.out, args.episodes, args.seed, not args.no_render, args.crf)


if __name__ == "__main__": main()
