"HDF5 recordings to LeRobot 2.1, interrupted and resumed; conversions between versions; the command line; sources stay as they are."
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr00t_nb.conversion import convert
from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.conversion.convert import from_hdf5, main, read_hdf5, to_v2, to_v3
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError

SAMPLE = Path(__file__).resolve().parents[1] / "data_samples" / "cube_to_bowl"


def picture(seed, n=8):
    "Frames that a codec keeps: smooth, coloured, different in every step."
    y, x = np.mgrid[0:48, 0:64]
    return (
        np.stack([
            np.stack([x * 2 + 9 * i, y * 3 + 20 * seed, np.full_like(x, 30 * seed + 5 * i)], -1)
            for i in range(n)
        ])
        .clip(0, 255)
        .astype(np.uint8)
    )


def record(path, seed, n=8, jpeg=None, dims=14, texts=None, drop=(), **attributes):
    "An HDF5 file in ALOHA's layout."
    import cv2
    h5py = pytest.importorskip("h5py")
    rng, frames = np.random.default_rng(seed), picture(seed, n)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        f.attrs.update(attributes)
        content = {
            "action": rng.normal(size=(n, dims)),
            "observations/qpos": rng.normal(size=(n, dims)),
            "observations/qvel": rng.normal(size=(n, dims)),
            **(texts or {}),
        }
        for k, v in content.items():
            if k not in drop: f[k] = v
        coded = (
            [
                cv2.imencode(".jpg", x[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 97])[1].ravel()
                for x in frames
            ]
            if jpeg
            else None
        )
        if jpeg == "padded":
            f["observations/images/top"] = np.stack(
                [np.pad(c, (0, max(map(len, coded)) - len(c))) for c in coded]
            )
        elif jpeg == "ragged":
            d = f.create_dataset("observations/images/top", (n,), dtype=h5py.vlen_dtype(np.uint8))
            for i, c in enumerate(coded):
                d[i] = c
        else:
            f["observations/images/top"] = frames
    return {
        k: np.asarray(v, np.float32)
        for k, v in content.items()
        if k in ("action", "observations/qpos", "observations/qvel")
    }


def digest(folder):
    return {
        str(p.relative_to(folder)): (
            hashlib.sha256(p.read_bytes()).hexdigest(),
            p.stat().st_mtime_ns,
        )
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# ------------------------------------------------------------------------------------------------------------ HDF5
def test_every_form_of_pictures_and_instructions(tmp_path):
    wrote = [
        record(tmp_path / "in/episode_2.hdf5", 0, fps=25, task="fold"),
        record(
            tmp_path / "in/episode_10.hdf5", 1, jpeg="padded", texts={"language_raw": [b"press"]}
        ),
        record(
            tmp_path / "in/episode_11.h5", 2, n=11, jpeg="ragged", language_instruction=b"open it"
        ),
    ]
    before = digest(tmp_path / "in")
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    assert digest(tmp_path / "in") == before
    assert ds.version == "2.1" and ds.fps == 25 and [e.length for e in ds.episodes] == [8, 8, 11]
    assert [ds.instruction(i, 0, "annotation.human.task_description") for i in range(3)] == [
        "fold",
        "press",
        "open it",
    ]
    assert (
        list(ds.modality["state"])[:3] == ["left_waist", "left_arm", "left_gripper"]
        and not ds.proposed
    )
    index = 0
    for i, w in enumerate(wrote):
        for column, name in (
            ("action", "action"),
            ("observation.state", "observations/qpos"),
            ("observation.qvel", "observations/qvel"),
        ):
            assert np.array_equal(ds.column(i, column), w[name])
        n = ds.length(i)
        assert np.ravel(ds.column(i, "index")).tolist() == list(range(index, index + n))
        assert np.allclose(np.ravel(ds.column(i, "timestamp")), np.arange(n) / 25)
        index += n
        assert np.abs(ds.frames(i, "top", range(n)).astype(int) - picture(i, n)).mean() < 3
    stats = [
        json.loads(s) for s in (ds.path / "meta/episodes_stats.jsonl").read_text().splitlines()
    ]
    assert stats[1]["stats"]["action"]["max"] == wrote[1]["action"].max(0).astype(
        float
    ).tolist() and stats[2]["stats"]["action"]["count"] == [11]


def test_given_task_rate_and_colour_order_win(tmp_path):
    record(tmp_path / "in/a.hdf5", 3, fps=25, task="fold")
    ds = from_hdf5(
        tmp_path / "in/a.hdf5", tmp_path / "out", task="unfold", fps=10, bgr=True, progress=False
    )
    assert ds.fps == 10 and set(ds.tasks.values()) == {"unfold"}
    assert np.abs(ds.frames(0, "top", range(8)).astype(int) - picture(3)[..., ::-1]).mean() < 3


def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch):
    for i in range(4): record(tmp_path / f"in/episode_{i}.hdf5", i, fps=10, task=f"task {i % 2}")
    real, calls = convert.read_hdf5, []

    def failing(path, *rest):
        calls.append(path.name)
        if len(calls) == 4: raise KeyboardInterrupt
        return real(path, *rest)
    monkeypatch.setattr(convert, "read_hdf5", failing)
    with pytest.raises(KeyboardInterrupt):
        from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    with pytest.raises(InputError): LeRobotDataset(tmp_path / "out")  # not taken for a data set
    kept = digest(tmp_path / "out/videos")
    journal = tmp_path / "out/meta/conversion.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"episode": 2, "orig')  # as if the plug had been pulled
    calls.clear()
    calls.extend([""] * 10)
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    assert calls[10:] == [
        "episode_0.hdf5",
        "episode_2.hdf5",
        "episode_3.hdf5",
    ]  # the first one is looked at for its rate
    assert kept.items() <= digest(tmp_path / "out/videos").items()
    straight = from_hdf5(tmp_path / "in", tmp_path / "straight", progress=False)
    assert {k: v[0] for k, v in digest(ds.path / "data").items()} == {
        k: v[0] for k, v in digest(straight.path / "data").items()
    }
    assert digest(ds.path / "videos").keys() == digest(straight.path / "videos").keys()
    for e in range(4):  # by what is seen: once in a great while x264 writes other bytes for the same frames
        a, b = (d.frames(e, "top", range(d.length(e))).astype(int) for d in (ds, straight))
        assert a.shape == b.shape and np.abs(a - b).mean() < 1
    for name in (
        "info.json",
        "episodes.jsonl",
        "tasks.jsonl",
        "stats.json",
        "modality.json",
        "episodes_stats.jsonl",
    ):
        assert (ds.path / "meta" / name).read_text() == (
            straight.path / "meta" / name
        ).read_text(), name


def test_killed_at_any_time(tmp_path):
    "A process that is killed while it writes leaves nothing behind that stops the next one, or stays in its data set."
    for i in range(3): record(tmp_path / f"in/episode_{i}.hdf5", i, fps=10, task="go")
    script = """
import sys, time
from pathlib import Path
import gr00t_nb.conversion.convert as c
real, calls = c.write_video, []
def slow(path, *rest, **more):
    calls.append(path)
    if len(calls) == int(sys.argv[3]):
        with c.replacing(path) as half:
            half.write_bytes(b"half")
            print("now", flush=True)
            time.sleep(600)
    return real(path, *rest, **more)
c.write_video = slow
c.from_hdf5(Path(sys.argv[1]), Path(sys.argv[2]), bgr=len(sys.argv) > 4, progress=False)
"""
    def killed(*arguments):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "out"), *arguments],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout.readline() == b"now\n"
            process.kill()
    def finished(n=3, **options):
        ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False, **options)
        files = {
            str(p.relative_to(ds.path))
            for folder in ("data", "videos")
            for p in (ds.path / folder).rglob("*")
            if p.is_file()
        }
        assert len(ds) == n and files == {
            str(p.path.relative_to(ds.path))
            for e in ds.episodes
            for p in (ds.layout.rows(e), ds.layout.frames(e, "observation.images.top"))
        }
    killed("1")
    finished()
    shutil.rmtree(tmp_path / "out")
    killed("2")
    finished()
    killed("2", "other colours")  # made anew with other parameters: half of it is no data set any more
    with pytest.raises(InputError): LeRobotDataset(tmp_path / "out")
    finished(bgr=True)
    (tmp_path / "in/episode_2.hdf5").unlink()
    finished(2, bgr=True)


def test_odd_pictures_and_line_separators(tmp_path):
    h5py = pytest.importorskip("h5py")
    wrote = picture(1, 20)[:, :47, :63]
    record(tmp_path / "in/a.hdf5", 1, 20, fps=10, task="lift\u2028it")
    with h5py.File(tmp_path / "in/a.hdf5", "a") as f:
        del f["observations/images/top"]
        f["observations/images/top"] = wrote
    for _ in range(2):
        ds = from_hdf5(
            tmp_path / "in", tmp_path / "out", progress=False
        )  # the second time its own files are read
    assert (
        ds.frames(0, "top", range(20)).shape == wrote.shape
        and np.abs(ds.frames(0, "top", range(20)).astype(int) - wrote).mean() < 3
    )
    assert ds.instruction(0, 0, "task") == "lift\u2028it" and not check_dataset(
        ds.path, progress=False
    ).of("error")


@pytest.mark.parametrize("damage", ["short video", "no video", "short table", "changed source"])
def test_a_broken_episode_is_made_again(tmp_path, damage):
    for i in range(3): record(tmp_path / f"in/episode_{i}.hdf5", i, fps=10, task="go")
    ds = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    before = digest(ds.path / "videos")
    video, table = (
        ds.layout.frames(ds.episodes[1], "observation.images.top").path,
        ds.layout.rows(ds.episodes[1]).path,
    )
    if damage == "short video": video.write_bytes(video.read_bytes()[:-50])
    elif damage == "no video": video.unlink()
    elif damage == "short table": table.write_bytes(table.read_bytes()[:-50])
    else: record(tmp_path / "in/episode_1.hdf5", 7, n=9, fps=10, task="stop")
    again = from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    after = digest(ds.path / "videos")
    changed = {k for k in after if before[k] != after[k]}
    # an episode of another length moves the ones after it, whose rows are counted on
    assert {Path(k).stem for k in changed} == (
        {"episode_000001", "episode_000002"} if damage == "changed source" else {"episode_000001"}
    )
    seed = 7 if damage == "changed source" else 1
    assert (
        np.abs(
            again.frames(1, "top", range(again.length(1))).astype(int)
            - picture(seed, again.length(1))
        ).mean()
        < 3
    )
    if damage == "changed source":
        assert (
            again.instruction(1, 0, "task") == "stop"
            and np.ravel(again.column(2, "index"))[0] == 17
        )


@pytest.mark.parametrize(
    "drop, said",
    [("action", "expected ALOHA's layout"), ("observations/qpos", "expected ALOHA's layout")],
)
def test_missing_parts(tmp_path, drop, said):
    record(tmp_path / "in/a.hdf5", 0, fps=10, task="go", drop=(drop,))
    with pytest.raises(InputError, match=said) as e:
        from_hdf5(tmp_path / "in", tmp_path / "out", progress=False)
    assert (
        str(tmp_path / "in/a.hdf5") in str(e.value)
        and not (tmp_path / "out/meta/info.json").exists()
    )


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
    with pytest.raises(InputError, match="has 5 frames, but action has 8 rows") as e:
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


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="pip install h5py"): from_hdf5(tmp_path, tmp_path / "out")


def test_command_line(tmp_path, capsys):
    record(tmp_path / "in/a.hdf5", 0)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gr00t_nb.conversion.convert",
            "hdf5",
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            "--task",
            "go",
            "--fps",
            "12.5",
            "--no-progress",
        ],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and "1 episodes written" in done.stdout
        and "task_single" in done.stdout
    ), done.stderr  # with the check-up at its end
    assert LeRobotDataset(tmp_path / "out").fps == 12.5
    shown = subprocess.run(
        [sys.executable, "-m", "gr00t_nb.conversion.convert", "v3", "--help"],
        capture_output=True,
        text=True,
    ).stdout
    assert "size at which a new table is begun" in shown
    with pytest.raises(SystemExit) as end: main(["v2", str(SAMPLE), str(tmp_path / "in")])
    assert (
        end.value.code == 2 and "exists and was not made by a conversion" in capsys.readouterr().err
    )


# ------------------------------------------------------------------------------------------------------------ between versions
@pytest.fixture
def few():
    ds = LeRobotDataset(SAMPLE)
    ds.episodes = ds.episodes[:3]
    return ds


def same(a, b, exact=True):
    assert [e.length for e in a.episodes] == [e.length for e in b.episodes] and a.tasks == b.tasks
    for i in range(len(a)):
        for c in a._table_columns(): assert np.array_equal(a.column(i, c), b.column(i, c)), c
        for view in a.modality["video"]:
            look = [0, a.length(i) // 2, a.length(i) - 1]
            difference = np.abs(a.frames(i, view, look).astype(int) - b.frames(i, view, look))
            assert difference.max() == 0 if exact else difference.mean() < 3


def test_without_ffmpeg(few, tmp_path, monkeypatch, capsys):
    "No programme to move frames with: 3.0 keeps a file per episode, and cutting goes through the encoder, which is said."
    joined = to_v3(few, tmp_path / "joined", progress=False)
    capsys.readouterr()
    monkeypatch.setattr("shutil.which", lambda name: None)
    apart = to_v3(few, tmp_path / "apart", progress=False)
    same(few, apart)
    assert (
        "6 copied" in capsys.readouterr().out
        and len(list(apart.path.glob("videos/*/*/*.mp4"))) == 6
    )
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
    monkeypatch.setattr(convert, "_tasks_table", lambda tasks: 1 / 0)
    with pytest.raises(ZeroDivisionError): to_v3(few, tmp_path / "half", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v2", "v3"]  # nothing half made, nothing left over


def test_declared_camera_without_files(few, tmp_path):
    few.info["features"]["observation.images.ghost"] = dict(
        few.info["features"]["observation.images.front"]
    )
    for ds in (
        to_v3(few, tmp_path / "v3", progress=False),
        to_v2(few, tmp_path / "v2", progress=False),
    ):
        assert "observation.images.ghost" not in ds.info["features"]
        same(few, ds)


@pytest.fixture
def folder(tmp_path):
    "Two episodes of the sample, to be spoilt."
    few = LeRobotDataset(SAMPLE)
    few.episodes = few.episodes[:2]
    return to_v2(few, tmp_path / "two", progress=False).path


def test_nothing_is_lost_in_silence(folder, tmp_path):
    episodes = folder / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in episodes.read_text().splitlines()]
    lines[0]["sub_tasks"] = [{"start": 0, "end": 50, "text": "reach for the cube"}]
    episodes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (
        to_v2(folder, tmp_path / "again", progress=False).instruction(0, 3, "sub_task")
        == "reach for the cube"
    )
    table = pq.read_table(file := folder / "data/chunk-000/episode_000001.parquet")
    pq.write_table(
        table.set_column(
            table.column_names.index("action"),
            "action",
            pa.array(table["action"].to_pylist(), pa.list_(pa.float64())),
        ),
        file,
    )
    with pytest.raises(InputError, match="Episode 1 differs .* columns action"):
        to_v3(folder, tmp_path / "v3", progress=False)
    pq.write_table(table, file)
    LeRobotDataset(folder).layout.frames(
        LeRobotDataset(folder).episodes[0], "observation.images.front"
    ).path.unlink()  # of the first only: the camera is no camera without files
    for f in (to_v2, to_v3):
        with pytest.raises(InputError, match="no video file .*front/episode_000000.mp4"):
            f(folder, tmp_path / f.__name__, progress=False)
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(
        json.dumps({k: v for k, v in info.items() if k != "fps"})
    )
    for f in (to_v2, to_v3):
        with pytest.raises(InputError, match="gives no fps"):
            f(folder, tmp_path / f.__name__, progress=False)


def test_tasks_parquet_has_a_pandas_index(few, tmp_path):
    "lerobot looks a task up by the text, which is the index of the table."
    table = pq.read_table(to_v3(few, tmp_path / "v3", progress=False).path / "meta/tasks.parquet")
    pandas = json.loads(table.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["__index_level_0__"] and table[
        "__index_level_0__"
    ].to_pylist() == list(few.tasks.values())


def test_written_by_lerobot(pytestconfig, tmp_path):
    "AV1 with two-frame groups of pictures, joined by lerobot."
    given = pytestconfig.getoption("reference", default=None)
    root = (
        Path(given) if given else SAMPLE.parents[2] / "shared/reference/n1d6"
    ).resolve().parent / "datasets"
    found = [
        p
        for p in sorted(root.glob("*/meta/info.json"))
        if json.loads(p.read_text())["codebase_version"].startswith("v3")
    ]
    if not found: pytest.skip(f"no data set of version 3.0 in {root}")
    for info in found:
        with (
            pytest.warns(UserWarning)
            if not (info.parent / "modality.json").exists()
            else pytest.MonkeyPatch.context()
        ):
            ds = LeRobotDataset(info.parents[1])
        back = to_v2(ds, tmp_path / info.parents[1].name, progress=False)
        same(ds, back, exact=shutil.which("ffmpeg") is not None)
