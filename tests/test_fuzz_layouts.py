"Whatever the metadata of version 3.0 say: the right rows and frames, or an InputError with file and episode."
import io
import math
import os
import shutil
from contextlib import redirect_stdout

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr00t_nb.conversion.writer import Recording, WriterV2
from gr00t_nb.conversion.lerobot_v3 import to_v3
from gr00t_nb.data.info import read_info
from gr00t_nb.data.layouts_v3 import open_layout
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.errors import InputError

LENGTHS = (6, 9, 5)
FEW = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    "Three short episodes in one table and one video; every frame shows episode and step by its brightness."
    root = tmp_path_factory.mktemp("fuzz")
    writer = WriterV2(root / "v2", fps=10)
    for e, n in enumerate(LENGTHS):
        frames = np.broadcast_to(
            (40 + 70 * e + 5 * np.arange(n))[:, None, None, None], (n, 32, 32, 3)
        ).astype(np.uint8)
        rows = (100. * e + np.arange(n, dtype=np.float32))[:, None]
        writer.add(
            lambda: Recording(
                {"observation.state": rows, "action": rows},
                {"observation.images.top": frames},
                ["go"] * n,
            ),
            str(e),
        )
    with redirect_stdout(io.StringIO()):
        return to_v3(writer.finish(), root / "v3", progress=False).path


def look(folder):
    "Reads every row and frame: either right, or an InputError with a file or folder and an episode in it."
    try: ds = LeRobotDataset(folder)
    except InputError as e:
        assert str(folder) in str(e) and "\n" not in str(e), e
        return 0
    read = 0
    for i, e in enumerate(ds.episodes):
        named = lambda err: f"Episode {e.index}" in str(err) and str(folder) in str(err)
        try:
            state = ds.state(i)["joints"][:, 0]
            assert e.index < len(LENGTHS) and len(state) == e.length
            assert np.array_equal(state, 100. * e.index + np.arange(len(state)))  # never those of another episode
            read += 1
        except InputError as err:
            assert named(err), err
        try:
            seen = ds.frames(i, "top", range(e.length))
            if e.length: assert seen.shape == (e.length, 32, 32, 3)
        except InputError as err:
            assert named(err), err
    return read


def collects(folder):
    "A reader that collects the faults of the metadata gives episodes, each once, or an InputError."
    faults = []
    try:
        layout = open_layout(folder, read_info(folder, faults.append), faults.append)
        layout.tasks(faults.append)
    except InputError as e:
        assert "\n" not in str(e), e
        return
    numbers = [e.index for e in layout.episodes(faults.append)]
    assert len({*numbers}) == len(numbers)
    assert all("\n" not in str(f) and f.found and f.expected and f.remedy for f in faults)
    if not any(f.stops for f in faults): LeRobotDataset(folder)  # nothing that would stop it


def with_metadata(v3, change):
    "A copy whose episode table is changed; the big files are links."
    folder = v3.parent / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(v3, folder, copy_function=os.link)
    file = next(folder.glob("meta/episodes/*/*.parquet"))
    columns = change(pq.read_table(file).to_pydict())
    file.unlink()
    try: pq.write_table(pa.table(columns), file)
    except (pa.ArrowException, TypeError, OverflowError): return None  # nothing that a file could hold
    return folder


def test_unchanged(v3):
    assert look(v3) == len(LENGTHS)
    ds = LeRobotDataset(v3)
    for e, n in enumerate(LENGTHS):
        seen = ds.frames(e, "top", range(n)).mean((1, 2, 3))
        assert np.abs(seen - (40 + 70 * e + 5 * np.arange(n))).max() < 3


values = st.one_of(
    st.none(),
    st.integers(-3, 30),
    st.sampled_from([2**31, 2**62, -(2**40)]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-1, 3),
    st.text(max_size=3),
)


@FEW
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10), values), min_size=1, max_size=3))
def test_any_value_anywhere(v3, changes):
    def change(columns):
        names = [n for n in columns if n != "tasks"]
        for row, n, value in changes: columns[names[n % len(names)]][row] = value
        return columns
    folder = with_metadata(v3, change)
    if folder is None: return
    look(folder)
    collects(folder)


@FEW
@given(
    st.permutations(range(3)),
    st.lists(st.integers(0, 2), max_size=2),
    st.sampled_from([
        None,
        "length",
        "tasks",
        "dataset_from_index",
        "videos/observation.images.top/from_timestamp",
    ]),
)
def test_rows_shuffled_missing_or_doubled(v3, order, more, dropped):
    def change(columns):
        return {k: [v[i] for i in [*order, *more]] for k, v in columns.items() if k != dropped}
    read = look(with_metadata(v3, change))
    if not more and dropped in (None, "tasks", "videos/observation.images.top/from_timestamp"):
        assert read == 3


@FEW
@given(st.integers(-12, 12), st.integers(0, 2), st.floats(-.4, .4))
def test_shifted_video_never_shows_another_episode(v3, shift, episode, noise):
    "A shift by whole frames, and float noise below half a frame, which must be tolerated."
    def change(columns):
        for n in ("from_timestamp", "to_timestamp"):
            columns[f"videos/observation.images.top/{n}"][episode] += (shift + noise) / 10
        return columns
    folder, begin = with_metadata(v3, change), np.cumsum([0, *LENGTHS])
    first = begin[episode] + shift
    fits = (
        all(
            first + LENGTHS[episode] <= begin[o] or first >= begin[o + 1]
            for o in range(3)
            if o != episode
        )
        and 0 <= first <= begin[-1] - LENGTHS[episode]
    )
    if not fits and abs(first + noise) > .5:
        with pytest.raises(InputError) as e:
            LeRobotDataset(folder).frames(episode, "top", range(LENGTHS[episode]))
        assert str(folder) in str(e.value) and f"pisode {episode}" in str(e.value)
    if shift == 0:
        seen = (
            LeRobotDataset(folder).frames(episode, "top", range(LENGTHS[episode])).mean((1, 2, 3))
        )
        assert np.abs(seen - (40 + 70 * episode + 5 * np.arange(LENGTHS[episode]))).max() < 3


@FEW
@given(
    st.sampled_from([
        "meta/info.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ]),
    st.floats(0, 1),
    st.binary(max_size=40),
    st.booleans(),
)
def test_damaged_bytes(v3, name, where, garbage, cut):
    folder = with_metadata(v3, lambda c: c)
    content = (folder / name).read_bytes()
    at = math.floor(where * len(content))
    (folder / name).unlink()
    (folder / name).write_bytes(
        content[:at] if cut else content[:at] + garbage + content[at + len(garbage) :]
    )
    try: look(folder)
    except AssertionError:
        # garbage inside a data page may be numbers of its own: parquet has no checksum there
        if name.startswith("meta/") or cut: raise


@pytest.mark.parametrize(
    "name, column",
    [
        ("meta/tasks.parquet", b"task_index"),
        ("meta/episodes/chunk-000/file-000.parquet", b"length"),
        ("data/chunk-000/file-000.parquet", b"action"),
    ],
)
def test_damaged_column_name(v3, name, column):
    "pyarrow fails in its own way where the name of a column is no text any more."
    folder = with_metadata(v3, lambda c: c)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(content.replace(column, b"\x80" + column[1:]))
    with pytest.raises(InputError, match="cannot be read") as e:
        LeRobotDataset(folder).column(0, "action")
    assert str(folder / name) in str(e.value)
