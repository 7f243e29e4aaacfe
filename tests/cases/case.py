"What every case begins with: a small data set from the sample, the commands of the kit, a verdict."
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import gr00t_nb
from gr00t_nb.data.video import decode_frames, write_video

ROOT = Path(gr00t_nb.__file__).resolve().parents[1]
SAMPLE, CONFIG = ROOT / "data_samples/cube_to_bowl", ROOT / "data_samples/cube_to_bowl_config.py"
TMP = Path(tempfile.mkdtemp(prefix="gr00t_case_"))
os.environ.setdefault("GR00T_NB_CACHE", str(Path(tempfile.gettempdir()) / "gr00t_case_cache"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore")
def read(p): return json.loads(Path(p).read_text())
def write(p, o): Path(p).write_text(json.dumps(o, indent=2))
def sample(n=3, name="ds"):
    "First n episodes of the sample data set (v2.1)."
    d = TMP / name
    (d / "meta").mkdir(parents=True)
    info = read(SAMPLE / "meta/info.json")
    for f in ("episodes.jsonl", "episodes_stats.jsonl"):
        (d / "meta" / f).write_text(
            "\n".join((SAMPLE / "meta" / f).read_text().splitlines()[:n]) + "\n"
        )
    for f in ("tasks.jsonl", "modality.json"): shutil.copy(SAMPLE / "meta" / f, d / "meta" / f)
    for e in range(n):
        for r in [f"data/chunk-000/episode_{e:06d}.parquet"] + [
            f"videos/chunk-000/observation.images.{c}/episode_{e:06d}.mp4"
            for c in ("front", "wrist")
        ]:
            (d / r).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SAMPLE / r, d / r)
    eps = [json.loads(l) for l in (d / "meta/episodes.jsonl").read_text().splitlines()]
    info.update(
        total_episodes=n,
        total_frames=sum(e["length"] for e in eps),
        total_videos=2 * n,
        splits={"train": f"0:{n}"},
    )
    write(d / "meta/info.json", info)
    return d
def tables(d, f):
    for p in sorted(d.rglob("data/**/*.parquet")): pq.write_table(f(pq.read_table(p)), p)
def run(*a, timeout=400, env=None):
    "A command of the kit: (exit code, stdout, stderr)."
    try:
        r = subprocess.run(
            [sys.executable, *map(str, a)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        )
    except subprocess.TimeoutExpired as e:
        return (
            "hang",
            (e.stdout or b"").decode(errors="replace"),
            (e.stderr or b"").decode(errors="replace"),
        )
    return r.returncode, r.stdout, r.stderr
def checkup(d, *a): return run("-m", "gr00t_nb.checkup.checkup", d, *a)
def finetune(d, out, *a, config=CONFIG, env=None, timeout=400):
    return run(
        ROOT / "scripts/finetune.py",
        "--base-model-path",
        "tiny",
        "--dataset-path",
        d,
        "--embodiment-tag",
        "NEW_EMBODIMENT",
        "--modality-config-path",
        config,
        "--max-steps",
        2,
        "--global-batch-size",
        4,
        "--dataloader-num-workers",
        0,
        "--logging-steps",
        1,
        "--output-dir",
        out,
        *a,
        env=env,
        timeout=timeout
    )
def last(s): return (s.strip().splitlines() or [""])[-1][:300]
def end(ok, said):
    print(("right: " if ok else "WRONG: ") + " ".join(str(said).split())[:400])
    shutil.rmtree(TMP, ignore_errors=True)
    sys.exit(0 if ok else 1)



def v3_metadata(d2, d):
    "meta/ of version 3.0, but for its episodes; the rows of those, by number."
    (d / "meta/episodes/chunk-000").mkdir(parents=True)
    shutil.copy(d2 / "meta/modality.json", d / "meta")
    i = read(d2 / "meta/info.json")
    i.update(
        codebase_version="v3.0",
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    write(d / "meta/info.json", i)
    tasks = [json.loads(line) for line in (d2 / "meta/tasks.jsonl").read_text().splitlines()]
    columns = {"task_index": [t["task_index"] for t in tasks]}
    columns["__index_level_0__"] = [t["task"] for t in tasks]
    pq.write_table(pa.table(columns), d / "meta/tasks.parquet")
    episodes = map(json.loads, (d2 / "meta/episodes.jsonl").read_text().splitlines())
    kept = ("episode_index", "length", "tasks")
    return {e["episode_index"]: {k: e[k] for k in kept} for e in episodes}


def v3_tables(d2, d, rows, data_files):
    "The tables, and where in them each episode lies."
    (d / "data/chunk-000").mkdir(parents=True)
    at = 0
    for f, eps in enumerate(data_files):
        parts = [pq.read_table(d2 / f"data/chunk-000/episode_{e:06d}.parquet") for e in eps]
        pq.write_table(pa.concat_tables(parts), d / f"data/chunk-000/file-{f:03d}.parquet")
        for e in eps:
            n = rows[e]["length"]
            rows[e] |= {"data/chunk_index": 0, "data/file_index": f}
            rows[e] |= {"dataset_from_index": at, "dataset_to_index": at + n}
            at += n


def v3_videos(d2, d, rows, camera, files):
    "The videos of a camera, and where in them each episode lies."
    key = f"observation.images.{camera}"
    for f, eps in enumerate(files):
        own = [d2 / f"videos/chunk-000/{key}/episode_{e:06d}.mp4" for e in eps]
        frames = np.concatenate([decode_frames(path) for path in own])
        write_video(d / f"videos/{key}/chunk-000/file-{f:03d}.mp4", frames, 20)
        t = 0.0
        for e in eps:
            n = rows[e]["length"] / 20
            place = dict(chunk_index=0, file_index=f, from_timestamp=t, to_timestamp=t + n)
            rows[e] |= {f"videos/{key}/{k}": v for k, v in place.items()}
            t += n


def v3(d2, data_files, video_files, change=None):
    """v3.0 of a v2.1 data set: which episodes lie in which table, and in which video of each camera;
    `change` edits the rows of meta/episodes."""
    d = TMP / "v3"
    rows = v3_metadata(d2, d)
    v3_tables(d2, d, rows, data_files)
    for camera, files in video_files.items(): v3_videos(d2, d, rows, camera, files)
    R = list(rows.values())
    if change: change(R)
    pq.write_table(pa.Table.from_pylist(R), d / "meta/episodes/chunk-000/file-000.parquet")
    return d


def look_the_same(a, d, views=("front", "wrist")):
    "Whether the frames of d are those of a, but for the encoder's noise."
    return all(
        np.abs(
            a.frames(e, v, [0, 9, a.length(e) - 1]).astype(int)
            - d.frames(e, v, [0, 9, a.length(e) - 1])
        ).mean()
        < 6
        for e in range(len(a))
        for v in views
    )
