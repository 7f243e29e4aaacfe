"Every kind of problem is made on a copy of four episodes, and named with its file, episode and row."
import hashlib, json, shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preloaded import python

from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.checkup.problems import grouped
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.video import decode_frames, write_video
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig
from gr00t_nb.errors import InputError

SAMPLE = Path(__file__).parents[1] / "data_samples/cube_to_bowl"
CONFIG = dict(
    video=ModalityConfig([0], ["front", "wrist"]),
    state=ModalityConfig([0], ["single_arm", "gripper"]),
    action=ModalityConfig(
        range(16),
        ["single_arm", "gripper"],
        action_configs=[ActionConfig("RELATIVE"), ActionConfig("ABSOLUTE")],
    ),
    language=ModalityConfig([0], ["annotation.human.task_description"]),
)
FRONT, WRIST = "observation.images.front", "observation.images.wrist"


def subset(folder, n=4):
    "The first `n` episodes of the sample, as a whole and healthy data set without statistics of all."
    for p in SAMPLE.rglob("*"):
        if p.is_file() and p.name != "stats.json" and (p.parent.name == "meta" or int(p.stem[-6:]) < n):
            to = folder / p.relative_to(SAMPLE)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, to)
    for name in ("episodes.jsonl", "episodes_stats.jsonl"):
        file = folder / "meta" / name
        file.write_text("".join(file.read_text().splitlines(True)[:n]))
    lengths = [
        json.loads(line)["length"]
        for line in (folder / "meta/episodes.jsonl").read_text().splitlines()
    ]
    edit_json(
        folder,
        "info",
        lambda i: i | dict(total_episodes=n, total_frames=sum(lengths), total_videos=2 * n),
    )
    return folder


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    "Four episodes at half the resolution, so that a check takes a fraction of a second."
    folder = subset(tmp_path_factory.mktemp("checkup") / "healthy")
    for episode in range(4):
        for camera in (FRONT, WRIST):
            frames(folder, episode, lambda x: x[:, ::2, ::2], camera=camera)
    edit_json(
        folder,
        "info",
        lambda i: i | {
            "features": {
                c: f | {"shape": [120, 160, 3]} if f["dtype"] == "video" else f
                for c, f in i["features"].items()
            }
        },
    )
    return folder


@pytest.fixture
def folder(healthy, tmp_path):
    return Path(shutil.copytree(healthy, tmp_path / "arm"))


def check(folder, config=None, **options):
    return check_dataset(folder, config=config, progress=False, workers=1, **options)


def edit_json(folder, name, edit):
    file = folder / f"meta/{name}.json"
    file.write_text(json.dumps(edit(json.loads(file.read_text()))))


def edit_lines(folder, name, edit):
    file = folder / f"meta/{name}.jsonl"
    file.write_text(
        "".join(json.dumps(edit(json.loads(line))) + "\n" for line in file.read_text().splitlines())
    )


def table_of(episode): return f"data/chunk-000/episode_{episode:06d}.parquet"
def video_of(episode, camera=WRIST): return f"videos/chunk-000/{camera}/episode_{episode:06d}.mp4"


def edit_table(folder, episode, edit):
    table = edit(pq.read_table(folder / table_of(episode)))
    pq.write_table(table, folder / table_of(episode))


def column(name, edit, type_=None):
    "An edit of a table: the column as an array, changed."
    def change(table):
        x = edit(np.array(table[name].to_pylist()))
        return table.set_column(
            table.column_names.index(name),
            name,
            pa.array(x if isinstance(x, list) else x.tolist(), type_ or table[name].type),
        )
    return change


def at(rows, dims, value, add=False):
    def edit(x):
        x = x.copy()
        x[rows, dims] = x[rows, dims] + value if add else value
        return x
    return edit


def rest(table, rows=40):
    "The same recording after a rest; numbered and timed as it should be."
    out = pa.concat_tables([table.slice(0, 1)] * rows + [table])
    n = np.arange(len(out))
    for name, x in (
        ("frame_index", n),
        ("timestamp", n / 20),
        ("index", n + table["index"][0].as_py()),
    ):
        out = out.set_column(out.column_names.index(name), name, pa.array(x, table[name].type))
    return out


def frames(folder, episode, edit, fps=20, camera=WRIST):
    file = folder / video_of(episode, camera)
    write_video(file, edit(decode_frames(file)), fps=fps)


def hang(x):
    x = x.copy()
    x[30:60] = x[30]
    return x


def stats(folder, edit=lambda s: s):
    "Ships a meta/stats.json that fits, but for an edit."
    out = {}
    for name in ("observation.state", "action"):
        x = np.concatenate(
            [np.array(pq.read_table(folder / table_of(e))[name].to_pylist()) for e in range(4)]
        )
        out[name] = dict(
            mean=x.mean(0).tolist(),
            std=x.std(0).tolist(),
            min=x.min(0).tolist(),
            max=x.max(0).tolist(),
            q01=np.quantile(x, 0.01, axis=0).tolist(),
            q99=np.quantile(x, 0.99, axis=0).tolist(),
        )
    (folder / "meta/stats.json").write_text(json.dumps(edit(out)))


def wider(name, entry, factor):
    return lambda s: s | {name: s[name] | {entry: [v * factor for v in s[name][entry]]}}
def groups(**kinds):
    return lambda m: m | {
        k: {g: {"start": a, "end": b} for g, (a, b) in v.items()} for k, v in kinds.items()
    }
def all_tables(edit): return lambda d: [edit_table(d, e, edit) for e in range(4)]
def both(*edits): return lambda d: [e(d) for e in edits]
def append(name, line): return lambda d: (d / "meta" / name).open("a").write(line)


def pictures(folder, edit=lambda cells, episode: cells):
    "Puts the pictures of the front camera into the tables, as data sets recorded without video have them."
    edit_json(
        folder,
        "info",
        lambda i: i | {
            "features": (
                i["features"] | {
                    FRONT: {
                        "dtype": "image",
                        "shape": [120, 160, 3],
                        "names": ["height", "width", "channels"],
                    }
                }
            )
        },
    )
    for e in range(4):
        cells = [
            {"bytes": cv2.imencode(".jpg", f[..., ::-1])[1].tobytes(), "path": f"{i}.jpg"}
            for i, f in enumerate(decode_frames(folder / video_of(e, FRONT)))
        ]
        (folder / video_of(e, FRONT)).unlink()
        edit_table(folder, e, lambda t: t.append_column(FRONT, pa.array(edit(cells, e))))


# name: (what is done to the folder, severity, kind, file, episode, row)
CASES = {
    "video missing": (
        lambda d: (d / video_of(1)).unlink(),
        "error", "video_missing", video_of(1), 1, None,
    ),
    "video empty": (
        lambda d: (d / video_of(1)).write_bytes(b""),
        "error", "video_empty", video_of(1), 1, None,
    ),
    "video truncated": (
        lambda d: (d / video_of(1)).write_bytes((SAMPLE / video_of(1)).read_bytes()[:-2000]),
        "error", "video_truncated", video_of(1), 1, None,
    ),
    "video half": (
        lambda d: (d / video_of(1)).write_bytes((SAMPLE / video_of(1)).read_bytes()[:20_000]),
        "error", "video_truncated", video_of(1), 1, None,
    ),
    "video undecodable": (
        lambda d: (d / video_of(1)).write_bytes(b"not a video " * 500),
        "error", "video_undecodable", video_of(1), 1, None,
    ),
    "fewer frames": (
        lambda d: frames(d, 2, lambda x: x[:100]),
        "error", "video_short", video_of(2), 2, 100,
    ),
    "more frames": (
        lambda d: frames(d, 2, lambda x: np.concatenate([x, x[-3:]])),
        "warning", "video_long", video_of(2), 2, 114,
    ),
    "video fps": (
        lambda d: frames(d, 2, lambda x: x, fps=30),
        "warning", "fps_video", video_of(2), 2, None,
    ),
    "video of another rate": (
        lambda d: frames(d, 2, lambda x: x[np.arange(len(x) * 3 // 2) * 2 // 3], fps=30),
        "error", "rate_video", video_of(2), 2, 113,
    ),
    "video size": (
        lambda d: frames(d, 2, lambda x: x[:, ::2, ::2]),
        "warning", "video_size", video_of(2), 2, None,
    ),
    "video frozen": (lambda d: frames(d, 2, hang), "warning", "video_frozen", video_of(2), 2, 30),
    "video black": (
        lambda d: frames(d, 2, lambda x: x * 0),
        "warning", "video_blank", video_of(2), 2, 0,
    ),
    "declared fps": (
        lambda d: edit_json(
            d,
            "info",
            lambda i: json.loads(json.dumps(i).replace('"video.fps": 20', '"video.fps": 50')),
        ),
        "warning", "fps_declared", "meta/info.json", None, None,
    ),
    "table fps": (
        lambda d: edit_table(d, 1, column("timestamp", lambda t: t * 2)),
        "warning", "fps_table", table_of(1), 1, None,
    ),
    "fps of nothing": (
        lambda d: edit_json(d, "info", lambda i: i | {"fps": 0}),
        "error", "metadata_broken", "meta/info.json", None, None,
    ),
    "time goes back": (
        lambda d: edit_table(d, 1, column("timestamp", lambda t: at(30, ..., t[10])(t))),
        "error", "timestamp_order", table_of(1), 1, 30,
    ),
    "time drifts": (
        lambda d: edit_table(d, 1, column("timestamp", lambda t: t * 1.02)),
        "warning", "timestamp_drift", table_of(1), 1, 26,
    ),
    "time gap": (
        lambda d: edit_table(d, 1, column("timestamp", lambda t: t + (np.arange(len(t)) >= 50))),
        "warning", "timestamp_drift", table_of(1), 1, 50,
    ),
    "table missing": (
        lambda d: (d / table_of(3)).unlink(),
        "error", "table_missing", table_of(3), 3, None,
    ),
    "table broken": (
        lambda d: (d / table_of(3)).write_bytes(b"PAR1" + bytes(99)),
        "error", "table_unreadable", table_of(3), 3, None,
    ),
    "table extra": (
        lambda d: shutil.copy(d / table_of(0), d / table_of(8)),
        "warning", "table_extra", table_of(8), 8, None,
    ),
    "video extra": (
        lambda d: shutil.copy(d / video_of(0), d / video_of(8)),
        "warning", "video_extra", video_of(8), 8, None,
    ),
    "column missing": (
        lambda d: edit_table(d, 0, lambda t: t.drop_columns(["action"])),
        "error", "column_missing", table_of(0), 0, None,
    ),
    "column missing, unused": (
        lambda d: edit_table(d, 0, lambda t: t.drop_columns(["index"])),
        "warning", "column_missing", table_of(0), 0, None,
    ),
    "column extra": (
        lambda d: edit_table(d, 0, lambda t: t.append_column("mood", t["index"])),
        "info", "column_extra", table_of(0), 0, None,
    ),
    "rows missing": (
        lambda d: edit_table(d, 0, lambda t: t.slice(0, 90)),
        "error", "rows_missing", table_of(0), 0, 90,
    ),
    "rows extra": (
        lambda d: edit_table(d, 0, lambda t: pa.concat_tables([t, t.slice(0, 2)])),
        "warning", "rows_extra", table_of(0), 0, 97,
    ),
    "numbering": (
        lambda d: edit_table(d, 0, column("frame_index", at(40, ..., 2))),
        "warning", "numbering", table_of(0), 0, 40,
    ),
    "another episode's rows": (
        lambda d: shutil.copy(d / table_of(0), d / table_of(2)),
        "warning", "numbering", table_of(2), 2, 0,
    ),
    "dtype": (
        lambda d: edit_table(d, 0, column("action", lambda x: x, pa.list_(pa.float64(), 7))),
        "warning", "dtype", table_of(0), 0, None,
    ),
    "text for numbers": (
        lambda d: edit_table(d, 0, column("action", lambda x: [str(r) for r in x], pa.string())),
        "error", "dtype", table_of(0), 0, None,
    ),
    "shape": (
        lambda d: edit_table(d, 0, column("action", lambda x: x[:, :6], pa.list_(pa.float32(), 6))),
        "error", "shape", table_of(0), 0, None,
    ),
    "ragged": (
        lambda d: edit_table(
            d,
            0,
            column(
                "action",
                lambda x: [r[:5].tolist() if i == 33 else r.tolist() for i, r in enumerate(x)],
                pa.list_(pa.float32()),
            ),
        ),
        "error", "shape", table_of(0), 0, 33,
    ),
    "nan": (
        lambda d: edit_table(d, 1, column("action", at(12, 3, np.nan))),
        "error", "not_finite", table_of(1), 1, 12,
    ),
    "infinity": (
        lambda d: edit_table(d, 1, column("observation.state", at(12, 3, np.inf))),
        "error", "not_finite", table_of(1), 1, 12,
    ),
    "null": (
        lambda d: edit_table(
            d,
            1,
            column(
                "action",
                lambda x: [
                    [None if (i, j) == (17, 2) else v for j, v in enumerate(r)]
                    for i, r in enumerate(x.tolist())
                ],
            ),
        ),
        "error", "not_finite", table_of(1), 1, 17,
    ),
    "constant": (
        all_tables(column("action", at(slice(None), 5, 0.25))),
        "warning", "constant", "meta/modality.json", None, None,
    ),
    "near-constant": (
        all_tables(
            column(
                "action", lambda x: at(slice(None), 5, 0.25 + 1e-5 * np.arange(len(x)) / len(x))(x)
            )
        ),
        "warning", "near_constant", "meta/modality.json", None, None,
    ),
    "jump": (
        lambda d: edit_table(d, 3, column("observation.state", at(44, 1, 2, add=True))),
        "warning", "jump", table_of(3), 3, 44,
    ),
    "angle wraps": (
        lambda d: edit_table(d, 3, column("action", at(slice(44, None), 1, 2 * np.pi, add=True))),
        "warning", "jump", table_of(3), 3, 44,
    ),
    "idle head": (lambda d: edit_table(d, 2, rest), "warning", "idle_head", table_of(2), 2, 0),
    "idle tail": (
        lambda d: edit_table(d, 2, lambda t: pa.concat_tables([t] + [t.slice(len(t) - 1, 1)] * 40)),
        "warning", "idle_tail", table_of(2), 2, 113,
    ),
    "never moves": (
        lambda d: edit_table(d, 2, lambda t: pa.concat_tables([t.slice(0, 1)] * len(t))),
        "warning", "idle_episode", table_of(2), 2, 0,
    ),
    "action is state": (
        lambda d: edit_table(
            d,
            2,
            lambda t: t.set_column(
                t.column_names.index("action"), "action", t["observation.state"]
            ),
        ),
        "warning", "action_is_state", table_of(2), 2, 0,
    ),
    "short episode": (
        lambda d: edit_table(d, 2, lambda t: t.slice(0, 12)),
        "warning", "episode_short", table_of(2), 2, None,
    ),
    "task unknown": (
        lambda d: edit_table(d, 1, column("task_index", at(slice(20, None), ..., 9))),
        "error", "task_unknown", table_of(1), 1, 20,
    ),
    "task of another": (
        lambda d: edit_table(d, 1, column("task_index", lambda t: t * 0)),
        "warning", "episode_tasks", "meta/episodes.jsonl", 1, None,
    ),
    "one task": (
        both(
            all_tables(column("task_index", lambda t: t * 0)),
            lambda d: edit_lines(
                d, "episodes", lambda e: e | {"tasks": ["put the red cube in the bowl"]}
            ),
        ),
        "warning", "task_single", "meta/tasks.jsonl", None, None,
    ),
    "empty task": (
        lambda d: edit_lines(d, "tasks", lambda t: t | {"task": " " * t["task_index"]}),
        "warning", "task_empty", "meta/tasks.jsonl", None, None,
    ),
    "task twice": (
        append("tasks.jsonl", '{"task_index": 0, "task": "wave"}\n'),
        "error", "task_twice", "meta/tasks.jsonl", None, None,
    ),
    "no tasks": (
        lambda d: (d / "meta/tasks.jsonl").unlink(),
        "warning", "metadata_missing", "meta/tasks.jsonl", None, None,
    ),
    "stats too narrow": (
        lambda d: stats(d, wider("action", "max", 0.5)),
        "warning", "statistics_misfit", "meta/stats.json", None, None,
    ),
    "stats of more": (
        lambda d: stats(d, lambda s: wider("action", "max", 9)(wider("action", "min", 9)(s))),
        "info", "statistics_other", "meta/stats.json", None, None,
    ),
    "stats upside down": (
        lambda d: stats(d, wider("action", "max", -9)),
        "error", "statistics_broken", "meta/stats.json", None, None,
    ),
    "stats of another shape": (
        lambda d: stats(d, lambda s: s | {"action": {k: v[:3] for k, v in s["action"].items()}}),
        "warning", "statistics_broken", "meta/stats.json", None, None,
    ),
    "stats no json": (
        lambda d: (d / "meta/stats.json").write_text("{"),
        "error", "statistics_broken", "meta/stats.json", None, None,
    ),
    "relative stats of another horizon": (
        lambda d: (d / "meta/relative_stats.json").write_text(
            json.dumps({
                "single_arm": {
                    k: np.zeros((8, 6)).tolist()
                    for k in ("min", "max", "mean", "std", "q01", "q99")
                }
            })
        ),
        "warning", "statistics_broken", "meta/relative_stats.json", None, None,
    ),
    "episode stats": (
        lambda d: edit_lines(
            d,
            "episodes_stats",
            lambda e: (
                json.loads(json.dumps(e).replace('"max": [', '"max": [9', 1))
                if e["episode_index"] == 2
                else e
            ),
        ),
        "warning", "statistics_misfit", "meta/episodes_stats.jsonl", 2, None,
    ),
    "slices overlap": (
        lambda d: edit_json(
            d,
            "modality",
            groups(
                action=dict(single_arm=(0, 7), gripper=(6, 7)),
                state=dict(single_arm=(0, 7), gripper=(6, 7)),
            ),
        ),
        "warning", "modality_overlap", "meta/modality.json", None, None,
    ),
    "slices leave a gap": (
        lambda d: edit_json(
            d,
            "modality",
            groups(
                action=dict(single_arm=(0, 5), gripper=(6, 7)),
                state=dict(single_arm=(0, 5), gripper=(6, 7)),
            ),
        ),
        "warning", "modality_gap", "meta/modality.json", None, None,
    ),
    "slices run over": (
        lambda d: edit_json(d, "modality", groups(state=dict(single_arm=(0, 6), gripper=(6, 9)))),
        "error", "modality_overrun", "meta/modality.json", None, None,
    ),
    "slice of nothing": (
        lambda d: edit_json(d, "modality", groups(state=dict(single_arm=(6, 6), gripper=(6, 7)))),
        "error", "modality_broken", "meta/modality.json", None, None,
    ),
    "slice of no column": (
        lambda d: edit_json(
            d,
            "modality",
            lambda m: m | {
                "state": {"single_arm": {"start": 0, "end": 6, "original_key": "observation.stat"}}
            },
        ),
        "error", "modality_column", "meta/modality.json", None, None,
    ),
    "camera of no column": (
        lambda d: edit_json(
            d,
            "modality",
            lambda m: m | {"video": {"front": {"original_key": "observation.images.top"}}},
        ),
        "error", "modality_column", "meta/modality.json", None, None,
    ),
    "no modality": (
        lambda d: (d / "meta/modality.json").unlink(),
        "error", "modality_missing", "meta/modality.json", None, None,
    ),
    "relative to another size": (
        lambda d: edit_json(d, "modality", groups(state=dict(single_arm=(0, 4), gripper=(4, 7)))),
        "error", "relative_size", "meta/modality.json", None, None,
    ),
    "key of the configuration": (
        lambda d: edit_json(
            d, "modality", lambda m: m | {"video": {"frnt": {"original_key": FRONT}}}
        ),
        "error", "config_key", "meta/modality.json", None, None,
    ),
    "totals": (
        lambda d: edit_json(d, "info", lambda i: i | {"total_frames": 7}),
        "warning", "totals", "meta/info.json", None, None,
    ),
    "episode twice": (
        append("episodes.jsonl", '{"episode_index": 2, "tasks": [], "length": 114}\n'),
        "error", "episode_twice", "meta/episodes.jsonl", 2, None,
    ),
    "broken line": (
        append("episodes.jsonl", '{"episode_in'),
        "error", "metadata_broken", "meta/episodes.jsonl", None, None,
    ),
    "feature without shape": (
        lambda d: edit_json(
            d, "info", lambda i: i | {"features": i["features"] | {"index": {"dtype": "int64"}}}
        ),
        "error", "metadata_broken", "meta/info.json", None, None,
    ),
    "depth": (
        lambda d: edit_json(
            d,
            "info",
            lambda i: i | {
                "features": (
                    i["features"] | {
                        FRONT: i["features"][FRONT] | {"info": {"video.is_depth_map": True}}
                    }
                )
            },
        ),
        "error", "depth", "meta/modality.json", None, None,
    ),
    "picture undecodable": (
        lambda d: pictures(
            d,
            lambda cells, e: (
                cells[:-1] + [{"bytes": b"no picture", "path": ""}] if e == 2 else cells
            ),
        ),
        "error", "picture_undecodable", table_of(2), 2, 113,
    ),
    "picture column missing": (
        lambda d: (pictures(d), edit_table(d, 2, lambda t: t.drop_columns([FRONT]))),
        "error", "column_missing", table_of(2), 2, None,
    ),
    "camera without files": (
        lambda d: shutil.rmtree(d / f"videos/chunk-000/{WRIST}"),
        "error", "camera_without_files", "meta/info.json", None, None,
    ),
}


F32, F64 = pa.float32(), pa.float64()
WHOLE = lambda x: np.round(x * 100).astype(int)
# form of an action column -> how its cells are made of x (L, 7), their type, dtype and shape in info.json
FORMS = {
    "a list": (lambda x: x, pa.list_(F32), "float32", [7]),
    "a list of fixed size": (lambda x: x, pa.list_(F64, 7), "float64", [7]),
    "a large list": (lambda x: x, pa.large_list(pa.float16()), "float16", [7]),
    "whole numbers": (WHOLE, pa.list_(pa.int16()), "int16", [7]),
    "yes and no": (lambda x: x > 0, pa.list_(pa.bool_()), "bool", [7]),
    "a matrix of one row": (lambda x: x[:, None], pa.list_(pa.list_(F32)), "float32", [1, 7]),
    "a matrix of one column": (lambda x: x[..., None], pa.list_(pa.list_(F32)), "float32", [7, 1]),
    "a matrix of fixed size": (
        lambda x: x[:, None], pa.list_(pa.list_(F32, 7), 1), "float32", [1, 7],
    ),
    "rows of different lengths": (
        lambda x: [r[: 7 - (i == 50)] for i, r in enumerate(x.tolist())],
        pa.list_(F32), "float32", [7],
    ),
    "matrices of different lengths": (
        lambda x: [[r[: 7 - (i == 50)]] for i, r in enumerate(x.tolist())],
        pa.list_(pa.list_(F32)), "float32", [1, 7],
    ),
    "a row of nothing": (
        lambda x: [r if i != 50 else None for i, r in enumerate(x.tolist())],
        pa.list_(F32), "float32", [7],
    ),
    "lists of text": (lambda x: [[str(v) for v in r] for r in x], pa.list_(pa.string()), "string", [7]),
    "text": (lambda x: [str(r) for r in x], pa.string(), "string", [1]),
    "dates": (lambda x: [0] * len(x), pa.date32(), "date", [1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_accepted_can_be_read(folder, form):
    "The check-up finds no fault in an action column that training can read, and the other way round."
    make, type_, dtype, shape = FORMS[form]
    feature = dict(dtype=dtype, shape=shape)
    edit = lambda i: i["features"]["action"].update(feature) or i
    edit_json(folder, "info", edit)
    if shape == [1]:
        one = lambda m: m | {"action": {"single_arm": {"start": 0, "end": 1}}}
        edit_json(folder, "modality", one)
    before = {}
    for e in range(4):
        before[e] = np.array(pq.read_table(folder / table_of(e))["action"].to_pylist())
        edit_table(folder, e, column("action", make, type_))
    report = check(folder)
    faults = [p for p in report.problems if p.about == "action" and p.kind in ("shape", "dtype")]
    assert {p.severity for p in faults} <= {"error"}
    ds = LeRobotDataset(folder)
    try: read = np.hstack([*ds.action(2).values()])
    except InputError: read = None
    assert (read is None) == bool(faults), f"{report}"
    if read is not None:
        made = np.array(make(before[2])).reshape(len(read), 7)
        assert np.array_equal(read, made.astype(dtype).astype(np.float32))
    expected = form.split()[-1] in ("lengths", "nothing", "text", "dates")
    assert bool(faults) == expected


def test_a_column_that_is_there_twice_is_neither_accepted_nor_read(folder):
    edit_table(folder, 2, lambda t: t.append_column("action", t["action"]))
    assert "column_missing" in [p.kind for p in check(folder).of("error")]
    with pytest.raises(InputError, match="has several columns 'action'"):
        LeRobotDataset(folder).action(2)


@pytest.mark.parametrize("name", CASES)
def test_every_problem_is_named(folder, name):
    spoil, severity, kind, file, episode, row = CASES[name]
    spoil(folder)
    report = check(folder, CONFIG)
    found = [(p.severity, p.file, p.episode, p.row) for p in report.problems if p.kind == kind]
    assert (severity, file, episode, row) in found, f"{found}\n{report}"
    for p in report.problems: assert p.found and p.expected and p.fix


def test_healthy_gives_none(healthy):
    for config in (None, CONFIG):
        assert check(healthy, config).problems == [], check(healthy, config)
    assert check(healthy, CONFIG, thorough=True).problems == []
    assert check(subset_stats(healthy), CONFIG).problems == []


def subset_stats(healthy):
    "The healthy data set with statistics that fit."
    folder = Path(shutil.copytree(healthy, healthy.parent / "with_stats"))
    stats(folder)
    return folder


def test_pictures_in_tables_and_further_instructions_are_healthy(folder):
    pictures(folder)
    edit_json(
        folder,
        "info",
        lambda i: i | {
            "features": (
                i["features"] | {
                    "annotation.manner": {"dtype": "string", "shape": [1], "names": None}
                }
            )
        },
    )
    edit_json(folder, "modality", lambda m: m | {"annotation": m["annotation"] | {"manner": {}}})
    all_tables(lambda t: t.append_column("annotation.manner", pa.array(["slowly"] * len(t))))(
        folder
    )
    for config in (None, CONFIG): assert check(folder, config).problems == [], check(folder, config)


def test_the_whole_sample_is_healthy():
    assert check_dataset(SAMPLE, config=CONFIG, progress=False).problems == []


def test_declared_camera_without_files_is_a_warning_unless_used(folder):
    shutil.rmtree(folder / f"videos/chunk-000/{WRIST}")
    severity = lambda config: {
        p.severity for p in check(folder, config).problems if p.kind == "camera_without_files"
    }
    assert severity(None) == {"warning"} and severity(CONFIG) == {"error"}
    assert severity(CONFIG | {"video": ModalityConfig([0], ["front"])}) == {"warning"}


def test_what_the_configuration_leaves_out_does_not_shout(folder):
    all_tables(column("action", at(slice(None), 6, 1.0)))(folder)
    arm = CONFIG | {
        "action": ModalityConfig(
            range(16), ["single_arm"], action_configs=[ActionConfig("RELATIVE")]
        )
    }
    assert {p.severity for p in check(folder, arm).problems if p.kind == "constant"} == {"info"}
    assert {p.severity for p in check(folder, CONFIG).problems if p.kind == "constant"} == {
        "warning"
    }


@pytest.mark.parametrize("kind, most", [("state", 132), ("action", 132)])
def test_more_dimensions_than_the_model_takes(folder, kind, most):
    name = {"state": "observation.state", "action": "action"}[kind]
    for e in range(4):
        edit_table(folder, e, column(name, lambda x: np.tile(x, (1, 19)), pa.list_(pa.float32())))
    edit_json(
        folder,
        "info",
        lambda i: i | {
            "features": i["features"] | {name: {"dtype": "float32", "shape": [133], "names": None}}
        },
    )
    edit_json(folder, "modality", groups(**{kind: dict(single_arm=(0, 132), gripper=(132, 133))}))
    found = [p for p in check(folder).problems if p.kind == "too_many_dimensions"]
    assert [p.severity for p in found] == ["error"]
    assert f"at most {most}" in found[0].expected and "133" in found[0].found
    report = check(folder, limits=dict(max_state_dim=133, max_action_dim=133))
    assert not [p for p in report.problems if p.kind == "too_many_dimensions"]


def test_horizon_longer_than_the_model_takes(healthy):
    action = ModalityConfig(range(51), ["single_arm", "gripper"])
    assert [p.kind for p in check(healthy, CONFIG | {"action": action}).problems] == [
        "horizon_too_long"
    ]


def test_thorough_finds_a_short_freeze(folder):
    "A freeze between the pairs that are decoded by default."
    def short(x):
        x = x.copy()
        x[50:60] = x[50]
        return x
    frames(folder, 2, short, camera=FRONT)
    found = [p for p in check(folder, CONFIG, thorough=True).problems if p.kind == "video_frozen"]
    assert [p.episode for p in found] == [2] and 45 <= found[0].row <= 50  # a slow motion before it looks the same


def test_an_excluded_episode_is_not_looked_at(folder):
    "Neither its files nor statistics that contain it; the totals still count it."
    (folder / video_of(2)).unlink()
    edit_table(folder, 1, column("action", at(10, 3, np.nan)))
    stats(folder, lambda s: s | {"action": s["action"] | {"max": [float("nan")] * 7}})
    report = check(folder, CONFIG)
    assert {(p.kind, p.episode) for p in report.of("error")} == {
        ("video_missing", 2),
        ("not_finite", 1),
        ("statistics_broken", None),
    }
    assert report.to_exclude() == [1, 2] and "--exclude-episodes 1 2" in str(report)
    kept = check(folder, CONFIG, exclude_episodes=report.to_exclude())
    assert kept.problems == [] and list(kept.lengths) == [0, 3]
    assert any("episodes 1, 2. Not used" in n and "meta/stats.json" in n for n in kept.notes)
    one = check(folder, CONFIG, exclude_episodes=[1])
    assert one.to_exclude() == [1, 2]  # the option of the next try holds that of this one
    with pytest.raises(InputError, match="all 4 episodes"): check(folder, exclude_episodes=range(4))
    with pytest.raises(InputError, match="names episode 4, which .* numbered from 0 to 3"):
        check(folder, exclude_episodes=[4])


def test_nothing_is_written(folder):
    digest = lambda: {
        p: (hashlib.sha1(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }
    (folder / video_of(0)).write_bytes(b"x")
    (folder / "meta/modality.json").unlink()
    before = digest()
    check(folder)
    assert digest() == before


def test_many_alike_are_one_line(folder):
    for e in range(4): (folder / video_of(e, FRONT)).write_bytes(b"")
    report = check(folder)
    assert len(report.problems) == 4 and str(report).count("video_empty") == 1
    assert "episodes 0-3 (4 in all)" in grouped(report.problems)[0].where
    assert max(map(len, str(report).splitlines())) <= 120
    assert report._repr_html_().count("video_empty") == 1 and "episodes 0-3" in report._repr_html_()


@pytest.mark.parametrize("spoil, part", [
    (lambda d: shutil.rmtree(d / "meta"), "holds no meta/info.json"),
    (lambda d: (d / "meta/info.json").write_text("{"), "not valid JSON"),
    (lambda d: (d / "meta/info.json").write_text("[]"), "no 'features'"),
    (lambda d: edit_json(d, "info", lambda i: i | {"codebase_version": "v1.6"}), "'v1.6'"),
])
def test_no_data_set_is_a_sentence(folder, spoil, part):
    spoil(folder)
    with pytest.raises(InputError, match=part): check(folder)


def test_arguments_that_do_not_fit(healthy):
    with pytest.raises(InputError, match="Did you mean 'GR1'"):
        check_dataset(healthy, "GR2", progress=False)
    with pytest.raises(InputError, match="modality-config-path"):
        check_dataset(healthy, "NEW_EMBODIMENT", progress=False)
    with pytest.raises(InputError, match="workers"):
        check_dataset(healthy, workers=0, progress=False)
    with pytest.raises(InputError, match="There is no modality configuration file"):
        check_dataset(healthy, modality_config_path="none.py", progress=False)
    assert {p.kind for p in check_dataset(healthy, "GR1", progress=False).of("error")} >= {
        "config_key"
    }


def command(*argv, **environment):
    done = python("-m", "gr00t_nb.checkup.checkup", *argv, timeout=120, **environment)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_command_line(folder):
    config = SAMPLE.parent / "cube_to_bowl_config.py"
    code, out, _ = command(
        folder, "--embodiment-tag", "NEW_EMBODIMENT", "--modality-config-path", config, "--json"
    )
    assert code == 0 and json.loads(out) == {"problems": []}
    noisy = folder.parent / "noisy_config.py"
    noisy.write_text('print("a configuration that talks")\n' + config.read_text())
    code, out, _ = command(folder, "--modality-config-path", noisy, "--json")
    assert code == 0 and json.loads(out) == {"problems": []}
    (folder / video_of(1)).unlink()
    code, out, _ = command(folder, "--json", "--workers", 2)
    assert code == 1
    (problem,) = json.loads(out)["problems"]
    place = dict(severity="error", kind="video_missing", file=video_of(1), episode=1, row=None)
    assert place.items() <= problem.items()
    assert set(problem) == {*place, "found", "expected", "fix"}
    code, out, err = command(folder / "nowhere", "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error: There is no folder") and err.count("\n") == 1
    foreign = shutil.move(folder, folder.with_name("böse"))
    code, out, err = command(foreign, PYTHONIOENCODING="ascii")
    assert code == 1 and "b\\xf6se" in out and "video_missing" in out, err
