"""HDF5 recordings to LeRobot 2.1, interrupted and resumed; conversions between versions; the command line.

Sources stay as they are.
"""
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preloaded import CONTEXT, begin, python

from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.conversion import aloha, lerobot_v3, writer
from gr00t_nb.conversion.aloha import from_hdf5, read_hdf5
from gr00t_nb.conversion.convert import main
from gr00t_nb.conversion.lerobot_v2 import to_v2
from gr00t_nb.conversion.lerobot_v3 import to_v3
from gr00t_nb.data.language import read_instruction
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError

SAMPLE = Path(__file__).resolve().parents[1] / "data_samples" / "cube_to_bowl"


def picture(seed, n=8):
    "Frames that a codec keeps: smooth, coloured, different in every step."
    y, x = np.mgrid[0:48, 0:64]
    frames = [
        np.stack([x * 2 + 9 * i, y * 3 + 20 * seed, np.full_like(x, 30 * seed + 5 * i)], -1)
        for i in range(n)
    ]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def error(seen, truth):
    "Mean difference of two stacks of pictures, in levels of 255."
    return np.abs(seen.astype(int) - truth).mean()


def episode_files(ds, e):
    "The table and the video of an episode."
    return ds.layout.rows(e).path, ds.layout.frames(e, "observation.images.top").path


def record(path, seed, n=8, jpeg=None, dims=14, texts=None, drop=(), **attributes):
    "An HDF5 file in ALOHA's layout; its columns as float32."
    h5py = pytest.importorskip("h5py")
    rng, frames = np.random.default_rng(seed), picture(seed, n)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("action", "observations/qpos", "observations/qvel")
    numbers = {k: rng.normal(size=(n, dims)) for k in names}
    with h5py.File(path, "w") as f:
        f.attrs.update(attributes)
        for k, v in {**numbers, **(texts or {})}.items():
            if k not in drop: f[k] = v
        write_camera(f, "observations/images/top", frames, jpeg)
    return {k: v.astype(np.float32) for k, v in numbers.items()}


def write_camera(f, name, frames, jpeg):
    "Raw frames, or JPEGs padded to one length, or JPEGs in rows of different lengths."
    if not jpeg:
        f[name] = frames
        return
    import cv2
    import h5py
    quality = [cv2.IMWRITE_JPEG_QUALITY, 97]
    coded = [cv2.imencode(".jpg", x[..., ::-1], quality)[1].ravel() for x in frames]
    if jpeg == "padded":
        longest = max(map(len, coded))
        f[name] = np.stack([np.pad(c, (0, longest - len(c))) for c in coded])
        return
    rows = f.create_dataset(name, (len(frames),), dtype=h5py.vlen_dtype(np.uint8))
    for i, c in enumerate(coded): rows[i] = c


def digest(folder):
    "Content and time of every file of a folder."
    found = {}
    for p in sorted(folder.rglob("*")):
        if not p.is_file(): continue
        content = hashlib.sha256(p.read_bytes()).hexdigest()
        found[str(p.relative_to(folder))] = content, p.stat().st_mtime_ns
    return found


def texts_of(ds):
    "The instruction of the first step of every episode."
    return [read_instruction(ds, i, 0, "annotation.human.task_description") for i in range(len(ds))]


# ---------------------------------------------------------------------------------------- HDF5
@pytest.fixture
def three(tmp_path):
    "Recordings with raw, padded and ragged pictures, each with its instruction in another place; their columns."
    padded = dict(jpeg="padded", texts={"language_raw": [b"press"]})
    ragged = dict(jpeg="ragged", language_instruction=b"open it")
    return [
        record(tmp_path / "in/episode_2.hdf5", 0, fps=25, task="fold"),
        record(tmp_path / "in/episode_10.hdf5", 1, **padded),
        record(tmp_path / "in/episode_11.h5", 2, n=11, **ragged),
    ]


def test_every_form_of_pictures_and_instructions(three, tmp_path):
    before = digest(tmp_path / "in")
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    assert digest(tmp_path / "in") == before
    assert ds.version == "2.1" and ds.fps == 25 and [e.length for e in ds.episodes] == [8, 8, 11]
    assert texts_of(ds) == ["fold", "press", "open it"] and not ds.proposed
    assert list(ds.modality["state"])[:3] == ["left_waist", "left_arm", "left_gripper"]
    for i, n in enumerate((8, 8, 11)):
        assert error(ds.frames(i, "top", range(n)), picture(i, n)) < 3


def test_every_row_of_a_recording(three, tmp_path):
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    index = 0
    for i, wrote in enumerate(three):
        assert np.array_equal(ds.column(i, "action"), wrote["action"])
        assert np.array_equal(ds.column(i, "observation.state"), wrote["observations/qpos"])
        assert np.array_equal(ds.column(i, "observation.qvel"), wrote["observations/qvel"])
        n = ds.length(i)
        assert np.ravel(ds.column(i, "index")).tolist() == list(range(index, index + n))
        assert np.allclose(np.ravel(ds.column(i, "timestamp")), np.arange(n) / 25)
        index += n
    lines = (ds.path / "meta/episodes_stats.jsonl").read_text().splitlines()
    stats = [json.loads(line)["stats"]["action"] for line in lines]
    assert stats[1]["max"] == three[1]["action"].max(0).astype(float).tolist()
    assert stats[2]["count"] == [11]


def test_given_task_rate_and_colour_order_win(tmp_path):
    record(tmp_path / "in/a.hdf5", 3, fps=25, task="fold")
    given = dict(task="unfold", fps=10, bgr=True)
    ds = from_hdf5(tmp_path / "in/a.hdf5", tmp_path / "out", **given, progress=False)
    assert ds.fps == 10 and set(ds.tasks.values()) == {"unfold"}
    assert error(ds.frames(0, "top", range(8)), picture(3)[..., ::-1]) < 3


def interrupted(monkeypatch, source, out):
    "A conversion that ends while it reads the third of four recordings; the names that are read from then on."
    real, calls = aloha.read_hdf5, []

    def failing(path, *rest):
        calls.append(path.name)
        if len(calls) == 4: raise KeyboardInterrupt  # the first one is looked at for its rate
        return real(path, *rest)
    monkeypatch.setattr(aloha, "read_hdf5", failing)
    with pytest.raises(KeyboardInterrupt): from_hdf5(source, out, progress=False)
    calls[:] = [""] * 10
    return calls


def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch):
    for i in range(4): record(tmp_path / f"in/episode_{i}.hdf5", i, fps=10, task=f"task {i % 2}")
    calls = interrupted(monkeypatch, tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError): LeRobotDataset(tmp_path / "out")  # not taken for a data set
    kept = digest(tmp_path / "out/videos")
    journal = tmp_path / "out/meta/conversion.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"episode": 2, "orig')  # as if the plug had been pulled
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    assert calls[10:] == ["episode_0.hdf5", "episode_2.hdf5", "episode_3.hdf5"]
    assert kept.items() <= digest(tmp_path / "out/videos").items()
    straight = from_hdf5(tmp_path / "in", tmp_path / "straight", progress=False)
    same_files(ds, straight)


def same_files(a, b):
    "Two conversions of one source: tables and metadata byte for byte, videos by what is seen."
    tables = [{k: v[0] for k, v in digest(ds.path / "data").items()} for ds in (a, b)]
    assert tables[0] == tables[1]
    assert digest(a.path / "videos").keys() == digest(b.path / "videos").keys()
    for e in range(len(a)):  # once in a great while x264 writes other bytes for the same frames
        seen, truth = (ds.frames(e, "top", range(ds.length(e))) for ds in (a, b))
        assert seen.shape == truth.shape and error(seen, truth.astype(int)) < 1
    listings = ("episodes.jsonl", "tasks.jsonl", "episodes_stats.jsonl")
    for name in ("info.json", "stats.json", "modality.json", *listings):
        assert (a.path / "meta" / name).read_text() == (b.path / "meta" / name).read_text(), name


def stopping(source, out, video: int, bgr: bool, told):
    "A conversion that says when it is in the middle of a video, by its number, and waits there."
    write, calls = writer.write_video, []
    def slow(path, *rest, **more):
        calls.append(path)
        if len(calls) == video:
            with writer.replacing(path) as half:
                half.write_bytes(b"half")
                told.send("now")
                time.sleep(600)
        return write(path, *rest, **more)
    writer.write_video = slow
    from_hdf5(source, out, bgr=bgr, progress=False)


def killed(source, out, video: int, bgr: bool = False):
    "A conversion in another process, which is killed while it writes a video."
    begin()
    here, told = CONTEXT.Pipe()
    process = CONTEXT.Process(target=stopping, args=(source, out, video, bgr, told))
    process.start()
    told.close()
    assert here.recv() == "now"
    process.kill()
    process.join()


def finished(source, out, n=3, **options):
    "The next conversion ends well, and its folder holds the files of its episodes and no others."
    ds = from_hdf5(source, out, progress=False, **options)
    files = {p for kind in ("data", "videos") for p in (out / kind).rglob("*") if p.is_file()}
    assert len(ds) == n and files == {p for e in ds.episodes for p in episode_files(ds, e)}


def test_killed_at_any_time(tmp_path):
    "A process that is killed while it writes leaves nothing behind that stops the next one, or stays in its data set."
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(3): record(source / f"episode_{i}.hdf5", i, fps=10, task="go")
    killed(source, out, 1)
    finished(source, out)
    shutil.rmtree(out)
    killed(source, out, 2)
    finished(source, out)
    # made anew with other parameters: half of it is no data set any more
    killed(source, out, 2, bgr=True)
    with pytest.raises(InputError): LeRobotDataset(out)
    finished(source, out, bgr=True)
    (source / "episode_2.hdf5").unlink()
    finished(source, out, 2, bgr=True)


def test_odd_pictures_and_line_separators(tmp_path):
    h5py = pytest.importorskip("h5py")
    wrote = picture(1, 20)[:, :47, :63]
    record(tmp_path / "in/a.hdf5", 1, 20, fps=10, task="lift\u2028it")
    with h5py.File(tmp_path / "in/a.hdf5", "a") as f:
        del f["observations/images/top"]
        f["observations/images/top"] = wrote
    for _ in range(2):  # the second time its own files are read
        ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    seen = ds.frames(0, "top", range(20))
    assert seen.shape == wrote.shape and error(seen, wrote) < 3
    assert read_instruction(ds, 0, 0, "task") == "lift\u2028it"
    assert not check_dataset(ds.path, progress=False).of("error")


@pytest.mark.parametrize("damage", ["short video", "no video", "short table", "changed source"])
def test_a_broken_episode_is_made_again(tmp_path, damage):
    for i in range(3): record(tmp_path / f"in/episode_{i}.hdf5", i, fps=10, task="go")
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    before = digest(ds.path / "videos")
    table, video = episode_files(ds, ds.episodes[1])
    if damage == "short video": video.write_bytes(video.read_bytes()[:-50])
    elif damage == "no video": video.unlink()
    elif damage == "short table": table.write_bytes(table.read_bytes()[:-50])
    else: record(tmp_path / "in/episode_1.hdf5", 7, n=9, fps=10, task="stop")
    again = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    after = digest(ds.path / "videos")
    changed = {k for k in after if before[k] != after[k]}
    seed, remade, n = 1, {"episode_000001"}, again.length(1)
    if damage == "changed source":
        # an episode of another length moves the ones after it, whose rows are counted on
        seed, remade = 7, {"episode_000001", "episode_000002"}
        assert read_instruction(again, 1, 0, "task") == "stop"
        assert np.ravel(again.column(2, "index"))[0] == 17
    assert {Path(k).stem for k in changed} == remade
    assert error(again.frames(1, "top", range(n)), picture(seed, n)) < 3


def test_missing_parts(tmp_path):
    record(tmp_path / "in/a.hdf5", 0, fps=10, task="go", drop=("observations/qpos",))
    with pytest.raises(InputError, match="expected ALOHA's layout") as e:
        from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    assert str(tmp_path / "in/a.hdf5") in str(e.value)
    assert not (tmp_path / "out/meta/info.json").exists()


def test_sentences_about_recordings(tmp_path):
    h5py = pytest.importorskip("h5py")
    record(tmp_path / "in/a.hdf5", 0)
    with pytest.raises(InputError, match="no instruction: give one with --task"):
        from_hdf5(tmp_path / "in", tmp_path / "out", fps=10, progress=False)
    with pytest.raises(InputError, match="--fps"):
        from_hdf5(tmp_path / "in", tmp_path / "out", task="go", progress=False)
    with pytest.raises(InputError, match="no .hdf5 or .h5 files"):
        from_hdf5(SAMPLE, tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="never written to"):
        from_hdf5(tmp_path / "in", tmp_path / "in/out", task="go", fps=10, progress=False)
    with h5py.File(tmp_path / "in/a.hdf5", "a") as f:
        short = f["observations/images/top"][:5]
        del f["observations/images/top"]
        f["observations/images/top"] = short
    with pytest.raises(InputError, match="has 5 frames, but observations/qpos has 8 rows") as e:
        read_hdf5(tmp_path / "in/a.hdf5", "go")
    assert str(tmp_path / "in/a.hdf5") in str(e.value)
    (tmp_path / "in/a.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="cannot be opened as HDF5"):
        read_hdf5(tmp_path / "in/a.hdf5", "go")


def test_recordings_that_differ(tmp_path):
    record(tmp_path / "in/a.hdf5", 0, fps=10, task="go")
    record(tmp_path / "in/b.hdf5", 1, fps=10, task="go", dims=7)
    with pytest.raises(InputError, match="Episode 1 differs from episode 0 in .*action"):
        from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)


# ------------------------------------------------------------------------ FluxVLA's recordings
def of_fingers(values):
    "Fourteen numbers of sixteen, row by row, as FluxVLA's documentation has it."
    out = np.zeros((len(values), 14), values.dtype)
    for i, v in enumerate(values):
        out[i, 0:6], out[i, 7:13] = v[0:6], v[8:14]
        out[i, 6], out[i, 13] = (v[6] - v[7]) * (0.1 / 0.07), (v[14] - v[15]) * (0.1 / 0.07)
    return out


def fluxvla(folder, numbers=3, n=12, dtype=np.float64, action=False, drop=()):
    "Recordings with fingers, hands and depth, their pictures as JPEGs; the states of each."
    h5py, cameras = pytest.importorskip("h5py"), ("cam_high", "cam_left_wrist", "cam_right_wrist")
    folder.mkdir(parents=True, exist_ok=True)
    states = []
    for i in range(numbers):
        rng = np.random.default_rng(i)
        states.append(rng.normal(size=(n, 16)).astype(dtype))
        with h5py.File(folder / f"episode_{i}.hdf5", "w") as f:
            f["observations/qpos"] = states[-1]
            if action: f["action"] = states[-1] + 1
            if i not in drop: f["observations/eepose"] = rng.normal(size=(n, 14))
            for c in cameras:
                write_camera(f, f"observations/images/{c}", picture(i, n), "ragged")
                f[f"observations/images_depth/{c}_depth"] = np.full((n, 4, 4), 900, np.uint16)
    return states


def mark(path, **ranges):
    "Annotations: recording -> (first, one behind the last, label) of each range."
    said = {
        name: [dict(start_frame=a, end_frame=b, label=label) for a, b, label in those]
        for name, those in ranges.items()
    }
    path.write_text(json.dumps(said))
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fingers_become_grippers_in_the_files_own_type(tmp_path, capsys, dtype):
    states = fluxvla(tmp_path / "in", 2, n=20, dtype=dtype, action=True)
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", "fold", 30, progress=False)
    for e, wrote in enumerate(states):
        assert np.array_equal(ds.column(e, "observation.state"), of_fingers(wrote).astype(np.float32))
        assert np.array_equal(ds.column(e, "action"), of_fingers(wrote + 1).astype(np.float32))
        assert error(ds.frames(e, "cam_left_wrist", range(20)), picture(e, 20)) < 3
    place = "observations/images_depth/cam_"
    depth = ", ".join(f"{place}{c}_depth" for c in ("high", "left_wrist", "right_wrist"))
    said = f"left out: {depth}; GR00T sees colours"
    assert said in capsys.readouterr().out
    assert not [k for k in ds.info["features"] if "depth" in k]
    for column in ("observation.state", "action"):
        names = ds.info["features"][column]["names"]
        assert names[0] == "left_waist" and names[6::7] == ["left_gripper", "right_gripper"]
    assert ds.info["features"]["observation.eepose"]["names"][7:9] == ["right_x", "right_y"]
    assert not check_dataset(ds.path, progress=False).of("error")


def test_tasks_of_frames(tmp_path, capsys):
    "What is marked; the rest is as said. A recording that is all empty is no episode."
    fluxvla(tmp_path / "in")
    ranges = dict(
        episode_0=[(2, 5, "static"), (8, 12, "place")],
        episode_1=[(0, 12, "empty")],
        episode_2=[(0, 3, "empty")],
    )
    told = dict(task="fold", fps=30, annotations=mark(tmp_path / "m.json", **ranges), progress=False)
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", **told)
    assert [e.index for e in ds.episodes] == [0, 1] and "episode_1.hdf5" in capsys.readouterr().out
    texts = [[ds.tasks[i] for i in np.ravel(ds.column(e, "task_index"))] for e in (0, 1)]
    assert texts[0] == ["fold"] * 2 + ["static"] * 3 + ["fold"] * 3 + ["place"] * 4
    assert texts[1] == ["empty"] * 3 + ["fold"] * 9
    before = digest(ds.path / "data")
    mark(tmp_path / "m.json", **ranges | dict(episode_2=[]))  # of one recording something else is said
    again = from_hdf5(tmp_path / "in", tmp_path / "out", **told)
    changed = {k for k, v in digest(ds.path / "data").items() if before[k] != v}
    assert changed == {"chunk-000/episode_000001.parquet"}
    assert {again.tasks[i] for i in np.ravel(again.column(1, "task_index"))} == {"fold"}


def test_every_recording_is_asked_for_what_may_be_absent(tmp_path):
    "FluxVLA asks the first one alone."
    fluxvla(tmp_path / "in", drop=(2,))
    told = dict(task="fold", fps=30, progress=False)
    with pytest.raises(InputError, match="eepose is in 2 of 3 recordings and not in .*episode_2"):
        from_hdf5(tmp_path / "in", tmp_path / "out", **told)
    assert not (tmp_path / "out").exists()
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", **told, without=("observation.eepose",))
    assert len(ds) == 3 and "observation.eepose" not in ds.info["features"]
    with pytest.raises(InputError, match="observation.state: the recordings have .* to leave out"):
        from_hdf5(tmp_path / "in", tmp_path / "o2", **told, without=("observation.state",))


def test_the_command_line_takes_fluxvlas_word(tmp_path):
    fluxvla(tmp_path / "in", 1)
    marks = mark(tmp_path / "m.json", episode_0=[(0, 4, "static")])
    words = ["--init-task", "fold", "--fps", "30", "--annotations", str(marks), "--no-progress"]
    main(["hdf5", str(tmp_path / "in"), str(tmp_path / "out"), *words])
    assert set(LeRobotDataset(tmp_path / "out").tasks.values()) == {"static", "fold"}
    beyond = mark(tmp_path / "m.json", episode_0=[(0, 13, "static")])
    with pytest.raises(InputError, match="has 12 frames, but 'static' is said of frames 0 to 12"):
        from_hdf5(tmp_path / "in", tmp_path / "o2", "fold", 30, annotations=beyond, progress=False)


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="pip install h5py"): from_hdf5(tmp_path, tmp_path / "out")


COMMAND = ["-m", "gr00t_nb.conversion.convert"]


def test_command_line(tmp_path, capsys):
    record(tmp_path / "in/a.hdf5", 0)
    options = ["--task", "go", "--fps", "12.5", "--no-progress"]
    done = python(*COMMAND, "hdf5", tmp_path / "in", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "1 episodes written" in done.stdout and "task_single" in done.stdout  # the check-up at its end
    assert LeRobotDataset(tmp_path / "out").fps == 12.5
    shown = python(*COMMAND, "v3", "--help").stdout
    assert "size at which a new table is begun" in shown
    with pytest.raises(SystemExit) as end: main(["v2", str(SAMPLE), str(tmp_path / "in")])
    assert end.value.code == 2
    assert "exists and was not made by a conversion" in capsys.readouterr().err


# ---------------------------------------------------------------------------- between versions
@pytest.fixture
def few():
    return LeRobotDataset(SAMPLE, exclude_episodes=range(3, 40))


def same(a, b, exact=True):
    assert [e.length for e in a.episodes] == [e.length for e in b.episodes] and a.tasks == b.tasks
    for i in range(len(a)):
        for c in a.table_columns(): assert np.array_equal(a.column(i, c), b.column(i, c)), c
        for view in a.modality["video"]:
            look = [0, a.length(i) // 2, a.length(i) - 1]
            difference = np.abs(a.frames(i, view, look).astype(int) - b.frames(i, view, look))
            assert difference.max() == 0 if exact else difference.mean() < 3


def test_without_ffmpeg(few, tmp_path, monkeypatch, capsys):
    "No program to move frames with: 3.0 keeps a file per episode; cutting goes through the encoder, and says so."
    joined = to_v3(few, tmp_path / "joined", progress=False)
    capsys.readouterr()
    monkeypatch.setattr("shutil.which", lambda name: None)
    apart = to_v3(few, tmp_path / "apart", progress=False)
    same(few, apart)
    assert "6 copied" in capsys.readouterr().out
    assert len(list(apart.path.glob("videos/*/*/*.mp4"))) == 6
    if len(list(joined.path.glob("videos/*/*/*.mp4"))) == 6:
        pytest.skip("no ffmpeg here, so nothing was joined")
    back = to_v2(joined, tmp_path / "back", progress=False)
    assert "6 encoded" in capsys.readouterr().out
    same(few, back, exact=False)
    same(few, to_v2(apart, tmp_path / "exact", progress=False))


def test_resume_and_atomic(few, tmp_path, monkeypatch):
    v3 = to_v3(few, tmp_path / "v3", progress=False)
    source = digest(v3.path)
    back = to_v2(v3, tmp_path / "v2", progress=False)
    before = digest(back.path / "videos")
    file = back.layout.rows(back.episodes[2]).path
    file.write_bytes(b"")
    again = to_v2(v3, tmp_path / "v2", progress=False)
    after = digest(back.path / "videos")
    assert {k for k in after if after[k] != before[k]} == {k for k in after if "000002" in k}
    same(few, again)
    assert digest(v3.path) == source
    with pytest.raises(InputError, match="exists"): to_v3(few, tmp_path / "v3", progress=False)
    monkeypatch.setattr(lerobot_v3, "_tasks_table", lambda tasks: 1 / 0)
    with pytest.raises(ZeroDivisionError): to_v3(few, tmp_path / "half", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v2", "v3"]  # nothing half made, nothing left over


def test_declared_camera_without_files(few, tmp_path):
    features = few.info["features"]
    features["observation.images.ghost"] = dict(features["observation.images.front"])
    for convert, version in ((to_v3, "v3"), (to_v2, "v2")):
        ds = convert(few, tmp_path / version, progress=False)
        assert "observation.images.ghost" not in ds.info["features"]
        same(few, ds)


@pytest.fixture
def folder(tmp_path):
    "Two episodes of the sample, to be spoilt."
    few = LeRobotDataset(SAMPLE, exclude_episodes=range(2, 40))
    return to_v2(few, tmp_path / "two", progress=False).path


def test_sub_tasks_go_along(folder, tmp_path):
    episodes = folder / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in episodes.read_text().splitlines()]
    lines[0]["sub_tasks"] = [{"start": 0, "end": 50, "text": "reach for the cube"}]
    episodes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = to_v2(folder, tmp_path / "again", progress=False)
    assert read_instruction(again, 0, 3, "sub_task") == "reach for the cube"


def test_a_column_of_another_type_is_told(folder, tmp_path):
    file = folder / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file)
    doubles = pa.array(table["action"].to_pylist(), pa.list_(pa.float64()))
    where = table.column_names.index("action")
    pq.write_table(table.set_column(where, "action", doubles), file)
    with pytest.raises(InputError, match="Episode 1 differs .* columns action"):
        to_v3(folder, tmp_path / "v3", progress=False)


@pytest.mark.parametrize("convert", [to_v2, to_v3])
def test_a_lost_video_is_told(folder, tmp_path, convert):
    "Of the first episode only: the camera is no camera without files."
    ds = LeRobotDataset(folder)
    ds.layout.frames(ds.episodes[0], "observation.images.front").path.unlink()
    with pytest.raises(InputError, match="no video file .*front/episode_000000.mp4"):
        convert(folder, tmp_path / "out", progress=False)


@pytest.mark.parametrize("convert", [to_v2, to_v3])
def test_a_missing_rate_is_told(folder, tmp_path, convert):
    info = json.loads((folder / "meta/info.json").read_text())
    del info["fps"]
    (folder / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="gives no fps"):
        convert(folder, tmp_path / "out", progress=False)


def test_tasks_parquet_has_a_pandas_index(few, tmp_path):
    "lerobot looks a task up by the text, which is the index of the table."
    table = pq.read_table(to_v3(few, tmp_path / "v3", progress=False).path / "meta/tasks.parquet")
    pandas = json.loads(table.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["__index_level_0__"]
    assert table["__index_level_0__"].to_pylist() == list(few.tasks.values())


def test_written_by_lerobot(pytestconfig, tmp_path):
    "AV1 with two-frame groups of pictures, joined by lerobot."
    given = pytestconfig.getoption("reference", default=None)
    reference = Path(given) if given else SAMPLE.parents[2] / "shared/reference/n1d6"
    root = reference.resolve().parent / "datasets"
    version = lambda info: json.loads(info.read_text())["codebase_version"]
    found = [p for p in sorted(root.glob("*/meta/info.json")) if version(p).startswith("v3")]
    if not found: pytest.skip(f"no data set of version 3.0 in {root}")
    for info in found:
        named = (info.parent / "modality.json").exists()
        with pytest.MonkeyPatch.context() if named else pytest.warns(UserWarning):
            ds = LeRobotDataset(info.parents[1])
        back = to_v2(ds, tmp_path / info.parents[1].name, progress=False)
        same(ds, back, exact=shutil.which("ffmpeg") is not None)


def test_what_lies_under_the_same_name_and_what_is_missing(tmp_path, capsys):
    "Depth beside colours of one name, as a group or one array; columns of no use; no camera."
    h5py = pytest.importorskip("h5py")
    record(tmp_path / "in/a.hdf5", 0, fps=25, task="fold", drop=["action"])
    with h5py.File(tmp_path / "in/a.hdf5", "a") as f:
        f["observations/images_depth/top"] = np.zeros((8, 4, 4), np.uint16)
        f["base_action"] = np.zeros((8, 2))
        f["observations/tactile"] = np.zeros((8, 2), np.int32)
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    said = capsys.readouterr().out
    assert "left out: observations/images_depth/top; GR00T sees colours, no depth" in said
    assert "left out: base_action, observations/tactile; columns are" in said
    assert list(ds.modality["video"]) == ["top"] and "no camera" not in said
    with h5py.File(tmp_path / "in/a.hdf5", "a") as f:
        del f["observations/images_depth"], f["observations/images"]
        f["observations/images_depth"] = np.zeros((8, 4, 4), np.uint16)
    from_hdf5(tmp_path / "in", tmp_path / "blind", progress=False)
    said = capsys.readouterr().out
    assert "left out: observations/images_depth; GR00T" in said and "no camera is in the data set" in said


@pytest.mark.parametrize("rate", ["-3", "0", "nan", "inf"])
def test_a_rate_that_is_none_is_a_sentence_of_the_command(tmp_path, capsys, rate):
    record(tmp_path / "in/a.hdf5", 0, task="fold")
    with pytest.raises(SystemExit) as end:
        main(["hdf5", str(tmp_path / "in"), str(tmp_path / "out"), "--fps", rate])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: --fps is ") and "a number above 0." in said
    assert not (tmp_path / "out").exists()


def test_a_given_rate_wins_over_one_that_cannot_be_read(tmp_path):
    record(tmp_path / "in/a.hdf5", 0, task="fold", fps="fast")
    with pytest.raises(InputError, match="fps is 'fast': expected frames a second"):
        from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    assert from_hdf5(tmp_path / "in", tmp_path / "out", fps=12, progress=False).fps == 12
