"Whatever is in the files, the check-up gives a report or a sentence: never another exception, never a hang."
import json, shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.checkup.problems import SEVERITIES
from gr00t_nb.errors import InputError
from test_checkup import CONFIG, subset, table_of, video_of

LIMITS = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**12) | st.floats() | st.text(max_size=6),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return subset(tmp_path_factory.mktemp("fuzz") / "arm", 1)


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "arm")


def survives(folder):
    try: report = check_dataset(folder, config=CONFIG, progress=False, workers=1)
    except InputError as e: return str(e)
    assert all(p.severity in SEVERITIES and p.kind and p.found for p in report.problems)
    json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert str(report) and report._repr_html_()
    return report


def paths(value, at=()):
    "Where the entries of a JSON value are."
    yield at
    for k, v in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from paths(v, (*at, k))


@pytest.mark.parametrize(
    "name", ["info.json", "modality.json", "episodes.jsonl", "tasks.jsonl", "episodes_stats.jsonl"]
)
@LIMITS
@given(data=st.data())
def test_any_entry_may_be_anything(folder, pristine, name, data):
    whole = json.loads(
        (pristine / "meta" / name).read_text().splitlines()[0]
        if name.endswith("l")
        else (pristine / "meta" / name).read_text()
    )
    at = data.draw(st.sampled_from([p for p in paths(whole) if p]))
    parent = whole
    for k in at[:-1]: parent = parent[k]
    parent[at[-1]] = data.draw(JSON)
    (folder / "meta" / name).write_text(json.dumps(whole))
    survives(folder)
    shutil.copy(pristine / "meta" / name, folder / "meta" / name)


@pytest.mark.parametrize(
    "name",
    [
        "info.json",
        "modality.json",
        "episodes.jsonl",
        "tasks.jsonl",
        "stats.json",
        "relative_stats.json",
    ],
)
@LIMITS
@given(
    content=st.binary(max_size=60)
    | JSON.map(lambda x: json.dumps(x).encode())
    | st.sampled_from([b"[" * 100_000, b"{}", b"\xff\xfe", b"null"])
)
def test_any_metadata_file_may_be_anything(folder, pristine, name, content):
    (folder / "meta" / name).write_bytes(content)
    survives(folder)
    if (pristine / "meta" / name).exists():
        shutil.copy(pristine / "meta" / name, folder / "meta" / name)


TYPES = st.sampled_from([
    pa.int8(),
    pa.uint64(),
    pa.float16(),
    pa.float64(),
    pa.bool_(),
    pa.string(),
    pa.binary(),
    pa.timestamp("us"),
    pa.null(),
    pa.decimal128(20, 2),
    pa.list_(pa.float32()),
    pa.list_(pa.list_(pa.int64())),
    pa.struct([("a", pa.int64())]),
    pa.list_(pa.string()),
    pa.dictionary(pa.int32(), pa.string()),
])
def value_of(type_, seed):
    "A value of an Arrow type; seed 3 is nothing at all."
    if seed == 3 or pa.types.is_null(type_): return None
    if pa.types.is_list(type_): return [value_of(type_.value_type, k) for k in range(seed)]
    if pa.types.is_struct(type_): return {"a": 1}
    if pa.types.is_string(type_) or pa.types.is_dictionary(type_): return "a"
    return b"a" if pa.types.is_binary(type_) else bool(seed) if pa.types.is_boolean(type_) else seed


@LIMITS
@given(
    name=st.sampled_from(
        ["action", "observation.state", "timestamp", "frame_index", "task_index", "episode_index"]
    ),
    type_=TYPES,
    rows=st.sampled_from([0, 1, 97]),
    seed=st.integers(0, 3),
)
def test_any_column_may_be_of_any_type(folder, pristine, name, type_, rows, seed):
    table = pq.read_table(pristine / table_of(0)).slice(0, rows)
    column = pa.array([value_of(type_, seed)] * rows, type_)
    pq.write_table(
        table.set_column(table.column_names.index(name), name, column), folder / table_of(0)
    )
    survives(folder)


@pytest.mark.parametrize("file", [table_of(0), video_of(0)])
@LIMITS
@given(data=st.data())
def test_any_file_may_be_damaged(folder, pristine, file, data):
    whole = bytearray((pristine / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(
            st.integers(0, len(whole) - 1) | st.integers(max(0, len(whole) - 1500), len(whole) - 1)
        )
        piece = data.draw(st.binary(min_size=1, max_size=30))
        whole[at:at + len(piece)] = piece
    (folder / file).write_bytes(
        bytes(whole[: data.draw(st.sampled_from([None, len(whole) // 3, 50]))])
    )
    survives(folder)
