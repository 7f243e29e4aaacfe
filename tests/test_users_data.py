"""What users met in data sets: each fault by its kind, on inputs that no case of `cases/` uses."""
import contextlib
import io
import json
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr00t_nb.checkup import checkup
from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.checkup.problems import grouped
from gr00t_nb.conversion.lerobot_v3 import to_v3
from gr00t_nb.data.language import read_instruction
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.video import decode_frames
from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.errors import InputError
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics
from gr00t_nb.processing.rotation import quaternion_pose, quaternion_to_matrix
from gr00t_nb.processing.statistics import dataset_statistics, relative_statistics
from gr00t_nb.training.prepare import require_sound

SAMPLE = Path(__file__).resolve().parents[1] / "data_samples" / "cube_to_bowl"
FRONT = "observation.images.front"


@pytest.fixture
def folder(tmp_path):
    "The first four episodes of the sample, version 2.1, without the statistics of all."
    out = tmp_path / "arm"
    for file in sorted(SAMPLE.rglob("*")):
        if file.name == "stats.json": continue
        if not file.is_file() or not (file.parent.name == "meta" or int(file.stem[-6:]) < 4):
            continue
        (out / file.relative_to(SAMPLE)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, out / file.relative_to(SAMPLE))
    for name in ("episodes", "episodes_stats"):
        file = out / f"meta/{name}.jsonl"
        file.write_text("".join(file.read_text().splitlines(True)[:4]))
    lengths = [e.length for e in LeRobotDataset(out).episodes]
    edit(out / "meta/info.json", lambda i: i.update(total_episodes=4, total_frames=sum(lengths)))
    return out


@pytest.fixture
def joined(folder, tmp_path):
    "The same in version 3.0, with several tables and videos."
    with contextlib.redirect_stdout(io.StringIO()):
        return to_v3(LeRobotDataset(folder), tmp_path / "v3", 0.02, 0.2, progress=False).path


@pytest.fixture
def robot():
    "The sample's modality configuration."
    load_modality_config(SAMPLE.parent / "cube_to_bowl_config.py")
    return MODALITY_CONFIGS["new_embodiment"]


def edit(file, change):
    "Changes a JSON file in place."
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def tables(folder, change):
    "Changes all tables of a data set."
    for file in sorted((folder / "data").rglob("*.parquet")):
        pq.write_table(change(pq.read_table(file)), file)


def offsets(folder, change):
    "Changes the rows of meta/episodes of version 3.0."
    (file,) = folder.glob("meta/episodes/*/*.parquet")
    rows = pq.read_table(file).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), file)


def report(folder, **options): return check_dataset(folder, progress=False, workers=1, **options)
def kinds(folder): return {(p.kind, p.episode) for p in report(folder).problems}


def add_column(folder, name, values, dtype, shape=(1,)):
    "Adds a column; `values` makes it from a table."
    tables(folder, lambda t: t.append_column(name, values(t)))
    edit(folder / "meta/info.json", lambda i: i["features"].update(
        {name: {"dtype": dtype, "shape": list(shape), "names": None}}))


# ------------------------------------------------------------------------------ arithmetic
@pytest.mark.parametrize("dtype", ["int8", "uint16", "bool", "float16"])
def test_differences_are_never_taken_in_the_type_of_the_file(folder, dtype):
    scale = {"int8": 120, "uint16": 60_000, "bool": 1.5, "float16": 60_000}[dtype]
    def hand(column):
        def values(t):
            x = np.array(t[column].to_pylist())[:, :2] * scale
            return pa.array(list(x.astype(dtype)))
        return values
    for kind, column in (("state", "observation.state"), ("action", "action")):
        add_column(folder, f"{column}.hand", hand(column), dtype, (2,))
        entry = {"hand": {"start": 0, "end": 2, "original_key": f"{column}.hand"}}
        edit(folder / "meta/modality.json", lambda m: m[kind].update(entry))
    ds = LeRobotDataset(folder)
    config = dict(
        state=ModalityConfig([0], ["hand"]),
        action=ModalityConfig([0, 7], ["hand"], action_configs=[ActionConfig("RELATIVE")]),
    )
    got = relative_statistics(ds, config)["hand"]
    both = [(ds.action(e)["hand"].astype(float), ds.state(e)["hand"]) for e in range(4)]
    for h, k in enumerate((0, 7)):
        d = np.concatenate([a[k : len(a) - 7 + k] - s[: len(s) - 7] for a, s in both])
        assert np.allclose(got["min"][h], d.min(0)) and np.allclose(got["max"][h], d.max(0))
        assert np.allclose(got["mean"][h], d.mean(0), rtol=1e-4, atol=1e-4)
    absolute = dataset_statistics(ds, ["action.hand"])["action.hand"]
    every = np.concatenate([a for a, _ in both])
    assert np.allclose(absolute["std"], every.std(0), rtol=1e-3)


# ---------------------------------------------------------------------- a picture of its moment
def ffmpeg(*args):
    subprocess.run(["ffmpeg", "-y", "-loglevel", "error", *map(str, args)], check=True)


def as_played(file):
    "The frames that a player shows, (n, 240, 320, 3)."
    command = ["ffmpeg", "-loglevel", "error", "-i", file, "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = subprocess.run([*command, "-fps_mode", "passthrough", "-"], capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, 240, 320, 3).astype(int)


needs_ffmpeg = pytest.mark.skipif(
    not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed"
)


@needs_ffmpeg
def test_a_cut_head_is_refused_and_the_advice_helps(folder):
    whole = folder / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    source, new = whole.rename(folder.parent / "source.mp4"), folder.parent / "new.mp4"
    ffmpeg("-ss", 0.65, "-i", source, "-c", "copy", whole)
    with pytest.raises(InputError, match="Episode 1, video 'front'.*head was cut off") as e:
        LeRobotDataset(folder).frames(1, "front", [3])
    assert "damaged" not in str(e.value) and "ffmpeg -i OLD -c:v libx264 -g 2 -bf 0 NEW" in str(
        e.value
    )
    assert ("video_trimmed", 1) in kinds(folder)
    assert not {("video_undecodable", 1), ("video_truncated", 1)} & kinds(folder)
    seen = as_played(whole)
    ffmpeg("-i", whole, "-c:v", "libx264", "-g", 2, "-bf", 0, new)
    written = decode_frames(new).astype(int)
    assert len(written) == len(seen) and np.abs(written - seen).mean((1, 2, 3)).max() < 3


@needs_ffmpeg
@pytest.mark.parametrize("how", ["at a key frame", "tail", "frames that refer to later ones"])
def test_other_edit_lists_are_read_rightly(folder, how):
    source, made = folder / f"videos/chunk-000/{FRONT}/episode_000000.mp4", folder / "made.mp4"
    if how == "at a key frame": ffmpeg("-ss", 0.5, "-i", source, "-c", "copy", made)
    elif how == "tail": ffmpeg("-i", source, "-t", 2.33, "-c", "copy", made)
    else: ffmpeg("-i", source, "-c:v", "libx264", "-bf", 3, "-g", 30, made)
    seen = as_played(made)
    for i in (0, 5, 17, len(seen) - 1):
        assert np.abs(decode_frames(made, [i])[0].astype(int) - seen[i]).mean() < 0.5


def test_moved_offsets_name_every_episode(joined):
    key = f"videos/{FRONT}"
    def move(rows):
        last = max(r[f"{key}/file_index"] for r in rows)
        moved = [r for r in rows if r[f"{key}/file_index"] == last]
        for r in moved:
            r[f"{key}/from_timestamp"] += 1.5
            r[f"{key}/to_timestamp"] += 1.5
        told.extend(r["episode_index"] for r in moved)
    told = []
    offsets(joined, move)
    ds = LeRobotDataset(joined)
    assert 0 < len(told) < 4
    for e in range(4):
        if e not in told:
            assert ds.frames(e, "front", [0]).shape[0] == 1
        else:
            with pytest.raises(InputError, match=f"Episode {e}, video 'front'"):
                ds.frames(e, "front", [0])
    errors = {p.episode for p in report(joined).of("error")}
    assert errors == {*told}


def test_moved_offsets_of_a_video_with_several_episodes(folder, tmp_path):
    "Only the last episode runs over the end, but all of them would show other moments."
    with contextlib.redirect_stdout(io.StringIO()):
        one = to_v3(LeRobotDataset(folder), tmp_path / "one", progress=False).path
    def move(rows):
        for r in rows:
            for t in ("from_timestamp", "to_timestamp"): r[f"videos/{FRONT}/{t}"] += 0.5
    offsets(one, move)
    ds = LeRobotDataset(one)
    for e in range(3):
        with pytest.raises(InputError, match="the offsets of all of them are moved"):
            ds.frames(e, "front", [0])
    assert {p.episode for p in report(one).of("error")} == {0, 1, 2, 3}


def test_times_of_the_last_frame_in_a_joined_video(folder, tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        one = to_v3(LeRobotDataset(folder), tmp_path / "one", progress=False)
    right = [one.frames(e, "front", [0, one.length(e) - 1]) for e in range(4)]
    def last_frame(rows):
        for r in rows:
            for k in [k for k in r if k.endswith("to_timestamp")]: r[k] -= 1 / 20
    offsets(one.path, last_frame)
    with pytest.warns(UserWarning, match="time of the last frame"): ds = LeRobotDataset(one.path)
    for e in range(4): assert np.array_equal(ds.frames(e, "front", [0, ds.length(e) - 1]), right[e])
    checked = report(one.path)
    assert not checked.problems and any("time of the last frame" in n for n in checked.notes)


@pytest.mark.parametrize("how", ["restart", "other table"])
def test_rows_are_found_by_their_number(joined, folder, how):
    right = [LeRobotDataset(folder).state(e, ["single_arm"])["single_arm"] for e in range(4)]
    def early(rows):
        if how == "other table": rows[-1]["data/file_index"] = rows[0]["data/file_index"]
        else:
            for r in rows[2:]: r["data/file_index"] = rows[1]["data/file_index"]
            n = rows[3]["length"]
            rows[3].update(dataset_from_index=0, dataset_to_index=n)
    offsets(joined, early)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = LeRobotDataset(joined)
        for e in range(4):
            assert np.array_equal(ds.state(e, ["single_arm"])["single_arm"], right[e])
    assert sum("found by their episode_index" in str(w.message) for w in caught) == 1
    checked = report(joined)
    assert checked.ok and any("found by their episode_index" in n for n in checked.notes)


# ---------------------------------------------------------------------------------- words
def test_subtasks_of_version_2(folder):
    add_column(folder, "subtask_index", lambda t: pa.array([1] * len(t)), "int64")
    entry = {"original_key": "subtask_index"}
    edit(folder / "meta/modality.json", lambda m: m["annotation"].update({"human.subtask": entry}))
    ask = lambda: read_instruction(LeRobotDataset(folder), 0, 0, "annotation.human.subtask")
    with pytest.raises(
        InputError, match="says subtask 1, but .*subtasks.jsonl holds no subtasks.*no such file"
    ):
        ask()
    assert ("task_unknown", 0) in kinds(folder)
    lines = [{"subtask_index": i, "subtask": t} for i, t in enumerate(("reach", "lift"))]
    (folder / "meta/subtasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert ask() == "lift"
    assert (
        read_instruction(LeRobotDataset(folder), 0, 0, "annotation.human.task_description")
        != "lift"
    )
    assert not {k for k, _ in kinds(folder)} & {"task_unknown", "episode_tasks"}


# ----------------------------------------------------------------------------- causes by name
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 48213\n"


def test_pointers_in_the_metadata_of_version_3(joined):
    (file,) = joined.glob("meta/episodes/*/*.parquet")
    file.write_text(POINTER)
    with pytest.raises(InputError, match="git lfs pull"): LeRobotDataset(joined)
    with pytest.raises(InputError, match="git lfs pull"): report(joined)


def test_empty_tables_and_videos(folder):
    (folder / "data/chunk-000/episode_000001.parquet").write_bytes(b"")
    (folder / f"videos/chunk-000/{FRONT}/episode_000002.mp4").write_bytes(b"")
    ds = LeRobotDataset(folder)
    with pytest.raises(InputError, match=r"Episode 1: the table .* is empty \(0 bytes\)"):
        ds.state(1)
    with pytest.raises(InputError, match=r"Episode 2, video 'front': .* is empty \(0 bytes\)"):
        ds.frames(2, "front", [0])
    assert {("table_unreadable", 1), ("video_empty", 2)} <= kinds(folder)


@pytest.mark.parametrize("key, pattern", [
    ("data_path", "data/chunk-{episode_chunk:03d}/ep_{episode_index:06d}.parquet"),
    ("data_path", "data/chunk-{chunk}/episode_{episode_index:06d}.parquet"),
    ("video_path", "video/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
])
def test_a_wrong_field_in_a_pattern(folder, key, pattern):
    info = folder / "meta/info.json"
    right = json.loads(info.read_text())[key]
    edit(info, lambda i: i.update({key: pattern}))
    with pytest.raises(InputError, match=key) as e:
        ds = LeRobotDataset(folder)
        ds.state(0)
        ds.frames(0, "front", [0])
    assert right in str(e.value)
    told = [p for p in report(folder).of("error") if p.file == "meta/info.json"]
    assert any(key in p.found and right in p.expected for p in told)
    edit(info, lambda i: i.update({key: right}))
    assert report(folder).ok


def json_of(folder, capsys):
    "Exit code and problems of the command."
    with pytest.raises(SystemExit) as end: checkup.main([str(folder), "--json", "--workers", "1"])
    return end.value.code, json.loads(capsys.readouterr().out)["problems"]


@pytest.mark.parametrize("spoil, said", [
    (lambda f: f.unlink(), "holds no meta/info.json"),
    (lambda f: f.write_text('{"fps": 20,'), "is not valid JSON"),
    (lambda f: f.write_text("[]"), "has no 'features'"),
    (lambda f: edit(f, lambda i: i.pop("codebase_version")), "has no codebase_version"),
])
def test_json_comes_out_whatever_info_json_is(folder, capsys, spoil, said):
    spoil(folder / "meta/info.json")
    code, (problem,) = json_of(folder, capsys)
    assert code == 2 and problem["severity"] == "error" and said in problem["found"]


def test_a_version_that_is_missing_can_be_written(folder, joined):
    for path, version in ((folder, "v2.1"), (joined, "v3.0")):
        edit(path / "meta/info.json", lambda i: i.pop("codebase_version"))
        with pytest.raises(InputError, match=f'write "codebase_version": "{version}"'):
            LeRobotDataset(path)
        edit(path / "meta/info.json", lambda i: i.update(codebase_version=version))
        assert len(LeRobotDataset(path)) == 4


# --------------------------------------------------------------------------- published names
def test_a_state_that_nobody_recognizes_is_said(folder):
    (folder / "meta/modality.json").unlink()
    (folder / "meta/episodes_stats.jsonl").unlink()
    tables(
        folder,
        lambda t: t.rename_columns(
            [{"observation.state": "readings"}.get(c, c) for c in t.column_names]
        ),
    )
    def rename(i): i["features"]["readings"] = i["features"].pop("observation.state")
    edit(folder / "meta/info.json", rename)
    with pytest.warns(UserWarning, match="No column looks like the state"): LeRobotDataset(folder)
    (problem,) = [p for p in report(folder).problems if p.about == "state"]
    assert "no state" in problem.found and "readings" in problem.fix


def test_nested_names_and_two_arms(folder):
    (folder / "meta/modality.json").unlink()
    arms = {side: ["shoulder", "elbow", "wrist"] for side in ("left_arm", "right_arm")}
    def named(i): i["features"]["observation.state"]["names"] = {**arms, "gripper": ["open"]}
    edit(folder / "meta/info.json", named)
    with pytest.warns(UserWarning): ds = LeRobotDataset(folder)
    assert [(g, x.width) for g, x in ds.groups("state").items()] == [
        ("left_arm", 3),
        ("right_arm", 3),
        ("gripper", 1),
    ]
    assert ds.labels("state")[0] == "left_arm.left_arm.shoulder"


def test_quaternions_are_refused_and_can_be_converted(folder):
    modality = dict(start=0, end=7)
    edit(
        folder / "meta/modality.json",
        lambda m: m.update(state={"eef": modality}, action={"eef": modality}),
    )
    config = dict(
        video=ModalityConfig([0], ["front"]),
        language=ModalityConfig([0], ["annotation.human.task_description"]),
        state=ModalityConfig([0], ["eef"]),
        action=ModalityConfig(
            [0, 5], ["eef"], action_configs=[ActionConfig("RELATIVE", "EEF", "XYZ_ROT6D")]
        ),
    )
    with pytest.raises(InputError, match="'eef' .* has 7 numbers.*quaternion.*quaternion_pose"):
        relative_statistics(LeRobotDataset(folder), config)
    (problem,) = [p for p in report(folder, config=config).of("error") if p.kind == "pose_size"]
    assert "'eef'" in problem.found and "quaternion_pose" in problem.fix
    def converted(t):
        for c in ("observation.state", "action"):
            poses = quaternion_pose(np.array(t[c].to_pylist())).astype(np.float32)
            t = t.set_column(t.column_names.index(c), c, pa.array(list(poses)))
        return t
    tables(folder, converted)
    def nine(i):
        for c in ("observation.state", "action"): i["features"][c].update(shape=[9], names=None)
    edit(folder / "meta/info.json", nine)
    for kind in ("state", "action"):
        edit(folder / "meta/modality.json", lambda m: m[kind]["eef"].update(end=9))
    got = relative_statistics(LeRobotDataset(folder), config)["eef"]
    assert np.shape(got["mean"]) == (2, 9)
    table = pq.read_table(SAMPLE / "data/chunk-000/episode_000000.parquet")
    turn = quaternion_to_matrix(table["action"][0].as_py()[3:])
    first = LeRobotDataset(folder).action(0)["eef"][0]
    assert np.allclose(first[3:], turn[:2].reshape(-1), atol=1e-6)


# ------------------------------------------------------------------- one reader, no false alarm
def test_a_vector_in_a_list_is_read_and_checked_alike(folder):
    right = LeRobotDataset(folder).action(0)["single_arm"]
    nested = pa.list_(pa.list_(pa.float32()))
    def wrap(t):
        i = t.column_names.index("action")
        return t.set_column(i, "action", pa.array([[x] for x in t["action"].to_pylist()], nested))
    tables(folder, wrap)
    edit(folder / "meta/info.json", lambda i: i["features"]["action"].update(shape=[1, 7]))
    assert np.array_equal(LeRobotDataset(folder).action(0)["single_arm"], right)
    assert report(folder).problems == []


@pytest.mark.parametrize(
    "cell", [[{"role": "user", "content": "x"}], {"text": "x"}, [["a"], ["b", "c"]]]
)
def test_language_columns_that_nobody_trains_on(folder, cell):
    add_column(folder, "language_events", lambda t: pa.array([cell] * len(t)), "language")
    assert report(folder).problems == []


def test_an_episode_without_rows_is_a_finding(folder):
    file = folder / "data/chunk-000/episode_000002.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert ("rows_missing", 2) in kinds(folder)
    file = folder / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[2]["length"] = 0
    file.write_text("\n".join(map(json.dumps, lines)))
    assert ("episode_short", 2) in kinds(folder)


# ---------------------------------------------------------------------- what is found is told
def test_statistics_that_stayed_behind_are_told(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path / "cache"))
    ds = LeRobotDataset(folder)
    config = dict(state=ModalityConfig([0], ["single_arm"]))
    true = dataset_statistics(ds)
    def ship(factor):
        scaled = {c: {k: [factor * v for v in x] for k, x in s.items()} for c, s in true.items()}
        (folder / "meta/stats.json").write_text(json.dumps(scaled))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            embodiment_statistics(LeRobotDataset(folder), config)
        return [str(w.message) for w in caught], [
            p for p in report(folder).problems if p.file == "meta/stats.json"
        ]
    assert ship(1) == ([], [])
    for factor in (1000, 0.001):  # from millimetres to metres, and the other way round
        (said,), found = ship(factor)
        assert (
            "stats.json does not fit the data in 7 of 7 dimensions of 'observation.state'" in said
        )
        assert {p.severity for p in found} == {"warning"}


def test_many_alike_findings_are_one_line(folder):
    names = [f"extra_{i}" for i in range(12)]
    for name in names: add_column(folder, name, lambda t: pa.array([1.0] * len(t)), "float32")
    checked = report(folder)
    assert len([p for p in checked.problems if p.kind == "dtype"]) == 48
    (line,) = [g for g in grouped(checked.problems) if g.problems[0].kind == "dtype"]
    assert (
        "(12 in all)" in line.where
        and "episodes 0-3" in line.where
        and "11 more like it" in line.says
    )


# ------------------------------------------------------------------------------ frames that are no rows
def at_other_rate(folder, fps):
    "All front videos, of the same length in seconds."
    for file in sorted((folder / "videos").rglob(f"{FRONT}/**/*.mp4")):
        kept = file.rename(file.with_suffix(".old"))
        subprocess.run(["ffmpeg", "-v", "error", "-i", kept, "-r", str(fps), file], check=True)
        kept.unlink()


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the program ffmpeg")
@pytest.mark.parametrize("fps, where", [(30, "early"), (10, "late")])
def test_a_video_of_another_rate_is_refused_and_mended(folder, fps, where, robot):
    at_other_rate(folder, fps)
    found = [p for p in report(folder).of("error") if p.kind == "rate_video"]
    assert {p.episode for p in found} == {0, 1, 2, 3}
    ds = LeRobotDataset(folder)
    rows = ds.length(0)
    shift = (rows - 1) / 20 - (rows - 1) / 30 if fps == 30 else ((rows + 1) // 2 - 1) * 0.05
    told = float(found[0].found.partition("up to ")[2].split()[0])
    assert abs(told - shift) < 0.1 and where in found[0].found
    for skip_broken in (False, True):  # nothing fails where these frames are read: they are never skipped
        with pytest.raises(InputError, match="pictures come up to"):
            require_sound(ds, robot, progress=False, skip_broken=skip_broken)
    for p in found:
        file = folder / p.file
        words = p.fix.partition("rate of the rows: ")[2].split()
        made = file.with_suffix(".new.mp4")
        place = {"OLD": str(file), "NEW": str(made)}
        subprocess.run([place.get(w, w) for w in words] + ["-v", "error"], check=True)
        made.replace(file)
    assert not report(folder).of("error")
    shown, there = (decode_frames(d / found[0].file).astype(float) for d in (folder, SAMPLE))
    for row in range(0, rows, 12) if fps == 30 else ():  # the picture of the row, or of the one beside it
        near = np.abs(there - shown[row]).mean((1, 2, 3)).argmin()
        assert abs(near - row) <= 1, (near, row)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the program ffmpeg")
def test_a_shared_video_of_another_rate_is_refused(joined):
    "In version 3.0 frames are found by seconds and the fps of info.json."
    assert not report(joined).of("error")
    at_other_rate(joined, 30)
    assert "rate_video" in {p.kind for p in report(joined).of("error")}


def test_metadata_with_a_mark_in_front_are_read(folder):
    "Windows' editors write one, and its line ends."
    for name in ("info.json", "modality.json", "episodes.jsonl", "tasks.jsonl"):
        file = folder / "meta" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert not report(folder).of("error") and len(LeRobotDataset(folder)) == 4
