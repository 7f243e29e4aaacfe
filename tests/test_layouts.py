"The same episodes in LeRobot 2.0, 2.1 and 3.0 give the same samples; offsets, cameras and language of version 3.0."
import io
import json
import shutil
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.conversion.lerobot_v2 import to_v2
from gr00t_nb.conversion.lerobot_v3 import to_v3
from gr00t_nb.data.language import read_instruction, read_instructions
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.modality import propose_modality
from gr00t_nb.data.steps import read_step, read_steps, require_keys
from gr00t_nb.processing.statistics import dataset_statistics
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig
from gr00t_nb.errors import InputError

SAMPLE = Path(__file__).resolve().parents[1] / "data_samples" / "cube_to_bowl"


def config_of(ds, horizon=16):
    relative = [ActionConfig("RELATIVE")] * len(ds.modality["action"])
    return dict(
        video=ModalityConfig([-3, 0], list(ds.modality["video"])),
        state=ModalityConfig([0], list(ds.modality["state"])),
        action=ModalityConfig(range(horizon), list(ds.modality["action"]), action_configs=relative),
        language=ModalityConfig([0], ["annotation.human.task_description"]),
    )


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    "Four episodes of the sample in 2.0, 2.1 and 3.0: in one file each, in several, in one row group."
    root = tmp_path_factory.mktemp("layouts")
    few = LeRobotDataset(SAMPLE, exclude_episodes=range(4, 40))
    with redirect_stdout(io.StringIO()):
        made = {
            "v2.0": to_v2(few, root / "v20", "v2.0", progress=False),
            "v2.1": to_v2(few, root / "v21", progress=False),
            "v3.0": to_v3(few, root / "v30", progress=False),
            "v3.0 small files": to_v3(few, root / "small", 0.02, 0.2, progress=False),
        }
    shutil.copytree(root / "v30", root / "flat")
    for file in (root / "flat/data").rglob("*.parquet"): pq.write_table(pq.read_table(file), file)
    return {"sample": few, **made, "v3.0 one row group": LeRobotDataset(root / "flat")}


def test_each_is_what_it_says(layouts):
    for name, ds in layouts.items():
        assert name == "sample" or ds.version == name.split()[0].lstrip("v")
    files = lambda name: {
        p.suffix: len(
            [q for q in layouts[name].path.rglob(f"*{p.suffix}") if "meta" not in q.parts]
        )
        for p in (Path("a.mp4"), Path("a.parquet"))
    }
    assert files("v2.1") == {".mp4": 8, ".parquet": 4}
    assert (
        files("v3.0")[".parquet"] == 1
        and files("v3.0 small files")[".parquet"] == 4
        and files("v3.0 small files")[".mp4"] > 2
    )
    assert pq.read_metadata(next(layouts["v3.0"].path.glob("data/*/*.parquet"))).num_row_groups == 4
    assert (
        pq.read_metadata(
            next(layouts["v3.0 one row group"].path.glob("data/*/*.parquet"))
        ).num_row_groups
        == 1
    )
    assert (layouts["v2.1"].path / "meta/episodes_stats.jsonl").exists() and not (
        layouts["v2.0"].path / "meta/episodes_stats.jsonl"
    ).exists()


def test_equal_rows_and_metadata(layouts):
    sample = layouts["sample"]
    for ds in layouts.values():
        assert [(e.index, e.length, e.tasks) for e in ds.episodes] == [
            (e.index, e.length, e.tasks) for e in sample.episodes
        ]
        assert (
            ds.tasks == sample.tasks
            and ds.modality == sample.modality
            and ds.fps == sample.fps
            and not ds.proposed
        )
        for i in range(len(ds)):
            for raw in (False, True):
                for c, a in sample.rows(i, sample.table_columns(), raw).items():
                    b = ds.rows(i, [c], raw)[c]
                    assert b.dtype == a.dtype and np.array_equal(a, b), (ds, c)


def test_excluded_in_every_layout(layouts, tmp_path, monkeypatch):
    "By number, in files of one episode and of many; the others are read as before, with statistics of their own."
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path))
    config, computed = config_of(layouts["sample"]), []
    for name, whole in layouts.items():
        left = LeRobotDataset(
            whole.path, exclude_episodes=[1, *range(4, 40)] if name == "sample" else [1]
        )
        assert (
            [e.index for e in left.episodes] == [0, 2, 3]
            and left.positions == [0, 2, 3]
            and left.total_steps == sum(whole.episodes[i].length for i in (0, 2, 3))
        )
        for position, before in enumerate((0, 2, 3)):
            a = read_steps(left, position, [5, 60], config)
            b = read_steps(whole, before, [5, 60], config)
            assert all(np.array_equal(x[k], y[k]) for x, y in zip(a, b) for k in x), name
        computed.append(embodiment_statistics(left, config))
        assert (
            computed[-1] == computed[0] != embodiment_statistics(whole, config, use_shipped=False)
        )
        with pytest.raises(InputError, match="names episode 77, which"):
            LeRobotDataset(whole.path, exclude_episodes=[77])
        report = check_dataset(left.path, exclude_episodes=left.excluded, progress=False)
        assert (
            report.ok
            and list(report.lengths) == [0, 2, 3]
            and not {p.kind for p in report.problems} & {"totals", "table_extra", "video_extra"}
        ), name
    with redirect_stdout(io.StringIO()):
        copy = to_v3(
            LeRobotDataset(layouts["v3.0"].path, exclude_episodes=[1]),
            tmp_path / "copy",
            progress=False,
        )
    shipped, of = json.loads((copy.path / "meta/stats.json").read_text()), dataset_statistics(copy)
    assert len(copy) == 3 and {c: shipped[c]["mean"] for c in of} == {c: of[c]["mean"] for c in of}


def test_equal_samples(layouts):
    sample, config = layouts["sample"], config_of(layouts["sample"])
    for i, e in enumerate(sample.episodes):
        steps = [3, 40, e.length - 16]
        wanted = read_steps(sample, i, steps, config)
        for name, ds in layouts.items():
            require_keys(ds, config)
            for a, b in zip(wanted, read_steps(ds, i, steps, config)):
                assert a.keys() == b.keys()
                for k in a:
                    assert a[k] == b[k] if isinstance(a[k], str) else np.array_equal(a[k], b[k]), (
                        name,
                        i,
                        k,
                    )


def test_equal_statistics(layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path))
    config = {k: c for k, c in config_of(layouts["sample"]).items() if k in ("state", "action")}
    wanted = embodiment_statistics(layouts["sample"], config, use_shipped=False)
    for ds in layouts.values():
        assert embodiment_statistics(ds, config, use_shipped=False) == wanted


def test_statistics_cache_sees_a_changed_offset_file(layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "copy"
    shutil.copytree(layouts["v3.0"].path, copy)
    config = {"state": ModalityConfig([0], ["single_arm"])}
    before = embodiment_statistics(LeRobotDataset(copy), config, use_shipped=False)
    file = next(copy.glob("meta/episodes/*/*.parquet"))
    pq.write_table(pq.read_table(file).slice(0, 1), file)
    assert embodiment_statistics(LeRobotDataset(copy), config, use_shipped=False) != before


def test_rows_of_a_shared_file_stay_bounded(layouts):
    ds = LeRobotDataset(layouts["v3.0"].path)
    ds.cache_bytes = 20_000
    ds.forget()
    for _ in range(2):
        for i in range(len(ds)): ds.rows(i, ["action", "observation.state"])
    assert len(ds._rows) >= 2 and sum(a.nbytes for a in ds._rows.values()) <= 20_000


# ----------------------------------------------------------------- written by lerobot itself
def test_written_by_lerobot(pytestconfig):
    "A data set that lerobot wrote (AV1) reads back as lerobot reads it."
    given = pytestconfig.getoption("reference", default=None)
    root = (
        Path(given) if given else SAMPLE.parents[2] / "shared/reference/n1d6"
    ).resolve().parent / "datasets"
    found = sorted(
        p
        for p in root.glob("*_expected.json")
        if (root / p.name.removesuffix("_expected.json") / "meta/info.json").exists()
    )
    if not found: pytest.skip(f"no data set written by lerobot in {root}")
    for file in found:
        folder = root / file.name.removesuffix("_expected.json")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ds = LeRobotDataset(folder)
        if not (folder / "meta/modality.json").exists():
            assert ds.proposed and sum("save_modality" in str(w.message) for w in caught) == 1
        values, pictures = load_file(file.with_suffix(".safetensors")), 0
        position = {e.index: i for i, e in enumerate(ds.episodes)}
        for n, row in enumerate(json.loads(file.read_text())):
            e, step = position[row["episode"]], row["frame"]
            assert np.array_equal(
                np.concatenate(list(ds.state(e).values()), 1)[step], values[f"{n}/state"]
            )
            assert np.array_equal(
                np.concatenate(list(ds.action(e).values()), 1)[step], values[f"{n}/action"]
            )
            assert read_instruction(ds, e, step, "annotation.human.task_description") == row["task"]
            assert int(np.ravel(ds.column(e, "index"))[step]) == row["index"] and np.ravel(
                ds.column(e, "timestamp")
            )[step] == np.float32(row["timestamp"])
            for key in [k for k in values if k.startswith(f"{n}/") and values[k].ndim == 3]:
                picture = ds.frames(e, next(iter(ds.modality["video"])), [step])[0]
                assert np.array_equal(picture.transpose(2, 0, 1), values[key]), f"row {n}"
                pictures += 1
        assert pictures > 0


# --------------------------------------------------------------- language, modality, cameras
@pytest.fixture
def annotated(layouts, tmp_path):
    "A copy with two more annotation columns and without a modality.json."
    copy = shutil.copytree(layouts["v3.0"].path, tmp_path / "copy")
    file = next(copy.glob("data/*/*.parquet"))
    table = pq.read_table(file)
    notes = [f"row {i}" for i in range(len(table))]
    swapped = [1 - v for v in np.ravel(table["task_index"].to_pylist())]
    table = table.append_column("annotation.human.note", pa.array(notes))
    table = table.append_column("annotation.human.swapped", pa.array(swapped))
    pq.write_table(table, file)
    info = json.loads((copy / "meta/info.json").read_text())
    for c, t in (("note", "string"), ("swapped", "int64")):
        info["features"][f"annotation.human.{c}"] = {"dtype": t, "shape": [1], "names": None}
    (copy / "meta/info.json").write_text(json.dumps(info))
    (copy / "meta/modality.json").unlink()
    return copy


def test_several_annotation_channels(annotated):
    with pytest.warns(UserWarning, match="save_modality"): ds = LeRobotDataset(annotated)
    channels = ["human.note", "human.swapped", "human.task_description"]
    assert list(ds.modality["annotation"]) == channels
    config = {"language": ModalityConfig([0], [f"annotation.{k}" for k in channels])}
    require_keys(ds, config)
    step = read_step(ds, 2, 5, config)
    begin = ds.episodes[0].length + ds.episodes[1].length
    assert step["annotation.human.note"] == f"row {begin + 5}"
    said = {step["annotation.human.swapped"], step["annotation.human.task_description"]}
    assert said == set(ds.tasks.values())


def test_a_fixed_prompt(annotated):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fixed = LeRobotDataset(annotated, prompt="tidy up")
    keys = [f"annotation.{k}" for k in fixed.modality["annotation"]]
    config = {"language": ModalityConfig([0], keys)}
    assert len(keys) == 3 and set(read_step(fixed, 2, 5, config).values()) == {"tidy up"}
    assert read_instruction(fixed, 0, 0, "task") == "tidy up"
    given = LeRobotDataset(annotated, modality={"annotation": {"x": {"text": "go"}}})
    assert read_instructions(given, 0, "annotation.x")[:2] == ["go", "go"]


def test_images_in_a_shared_table(layouts, tmp_path):
    import cv2
    ds, copy = layouts["v3.0"], tmp_path / "copy"
    shutil.copytree(ds.path, copy)
    file, view = next(copy.glob("data/*/*.parquet")), next(iter(ds.modality["video"]))
    small = [f[::8, ::8] for i in range(len(ds)) for f in ds.frames(i, view, range(ds.length(i)))]
    cells = [
        {"bytes": cv2.imencode(".png", f[..., ::-1])[1].tobytes(), "path": f"{i}.png"}
        for i, f in enumerate(small)
    ]
    pq.write_table(
        pq.read_table(file).append_column("observation.images.small", pa.array(cells)),
        file,
        row_group_size=50,
    )
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["observation.images.small"] = {
        "dtype": "image",
        "shape": [30, 40, 3],
        "names": None,
    }
    (copy / "meta/info.json").write_text(json.dumps(info))
    made = LeRobotDataset(copy, modality=propose_modality(info))
    require_keys(made, {"video": ModalityConfig([0], ["small"])})
    begin = 0
    for i in range(len(made)):
        assert np.array_equal(
            made.frames(i, "small", [9, 2, 9]), np.stack([small[begin + j] for j in (9, 2, 9)])
        )
        begin += made.length(i)
    with pytest.raises(InputError, match="Episode 1, video 'small'.*was asked for"):
        made.frames(1, "small", [10**5])
    info["features"]["observation.images.small"]["info"] = {"is_depth_map": True}
    (copy / "meta/info.json").write_text(json.dumps(info))
    deep = LeRobotDataset(copy, modality=made.modality)
    with pytest.raises(InputError, match="depth map"): deep.frames(0, "small", [0])
    with pytest.raises(InputError, match="depth map"):
        require_keys(deep, {"video": ModalityConfig([0], ["small"])})


# ------------------------------------------------------------------------------------ damage
@pytest.fixture
def copy(layouts, tmp_path):
    shutil.copytree(layouts["v3.0 small files"].path, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(folder, column, row, value):
    file = next(folder.glob("meta/episodes/*/*.parquet"))
    columns = pq.read_table(file).to_pydict()
    columns[column][row] = value
    pq.write_table(pa.table(columns), file)
    return file


def test_rows_of_another_episode(copy):
    a, b = (
        LeRobotDataset(copy).layout.rows(LeRobotDataset(copy).episodes[0]).path,
        LeRobotDataset(copy).layout.rows(LeRobotDataset(copy).episodes[1]).path,
    )
    shutil.copy(b, a)  # long enough, but not its own
    with pytest.raises(InputError, match="Episode 0: row 0 of .* belongs to episode 1") as e:
        LeRobotDataset(copy).state(0)
    assert str(a) in str(e.value)


def test_offsets_that_run_over_the_files(copy):
    ds = LeRobotDataset(copy)
    table, view = ds.layout.rows(ds.episodes[0]).path, next(iter(ds.modality["video"]))
    pq.write_table(pq.read_table(table).slice(0, 20), table)
    with pytest.raises(InputError, match="Episode 0: its rows 0 to .* run over the end") as e:
        LeRobotDataset(copy).state(0)
    assert str(table) in str(e.value)
    column = ds.column_of("video", view)
    lost = ds.episodes[-1]
    for name in ("from_timestamp", "to_timestamp"):
        at = pq.read_table(next(copy.glob("meta/episodes/*/*.parquet")))[f"videos/{column}/{name}"][
            len(ds) - 1
        ].as_py()
        rewrite(copy, f"videos/{column}/{name}", len(ds) - 1, at + 1.)
    with pytest.raises(
        InputError, match=f"Episode {lost.index}, video '{view}': .*run over the end"
    ):
        LeRobotDataset(copy).frames(len(ds) - 1, view, [0])


def test_missing_and_overlapping(copy):
    ds = LeRobotDataset(copy)
    view = next(iter(ds.modality["video"]))
    column = f"videos/{ds.column_of('video', view)}"
    file = rewrite(
        copy,
        f"{column}/to_timestamp",
        2,
        pq.read_table(next(copy.glob("meta/episodes/*/*.parquet")))[f"{column}/to_timestamp"][
            2
        ].as_py()
        - 0.5,
    )
    with pytest.raises(InputError, match="Episode 2, video .*frames for .*rows"):
        LeRobotDataset(copy).frames(2, view, [0])
    rewrite(copy, "dataset_from_index", 1, 3)
    with pytest.raises(InputError, match="episode 1, rows 3 to") as e: LeRobotDataset(copy)
    assert str(file) in str(e.value)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match="cannot be read") as e: LeRobotDataset(copy)
    assert str(file) in str(e.value)
    file.unlink()
    with pytest.raises(InputError, match="no table of episodes"): LeRobotDataset(copy)


def test_check_up_without_offsets_of_a_camera(copy):
    "A camera that is declared only, and an episode without offsets, are problems like others."
    assert check_dataset(copy, progress=False, workers=1).problems == []
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["observation.images.side"] = info["features"]["observation.images.front"]
    (copy / "meta/info.json").write_text(json.dumps(info))
    told = lambda: [
        (p.severity, p.kind, p.file, p.episode, p.about)
        for p in check_dataset(copy, progress=False, workers=1).problems
    ]
    side = ("warning", "camera_without_files", "meta/info.json", None, "observation.images.side")
    assert told() == [side]
    rewrite(copy, "videos/observation.images.front/from_timestamp", 1, None)
    assert told() == [
        ("error", "video_missing", "meta/episodes", 1, "observation.images.front"),
        side,
    ]


def test_tasks_by_either_column(copy):
    tasks = LeRobotDataset(copy).tasks
    pq.write_table(
        pa.table({"task": list(tasks.values()), "task_index": list(tasks)}),
        copy / "meta/tasks.parquet",
    )
    assert LeRobotDataset(copy).tasks == tasks
    pq.write_table(pa.table({"task_index": list(tasks)}), copy / "meta/tasks.parquet")
    with pytest.raises(InputError, match="expected 'task_index' and a text"): LeRobotDataset(copy)
    (copy / "meta/tasks.parquet").unlink()
    with pytest.raises(InputError, match="Episode 0, step 0.*tasks.parquet"):
        read_instruction(LeRobotDataset(copy), 0, 0, "annotation.human.task_description")


def test_check_up_goes_on_after_a_broken_offset(copy):
    "Training refuses the data set; the check-up tells the episode and looks at the others."
    file = rewrite(copy, "dataset_from_index", 1, 3)
    with pytest.raises(InputError, match="episode 1, rows 3 to"): LeRobotDataset(copy)
    report = check_dataset(copy, progress=False, workers=1)
    told = [(p.severity, p.kind, p.file, p.episode) for p in report.of("error")]
    assert told == [("error", "metadata_broken", file.relative_to(copy).as_posix(), 1)]
    assert list(report.lengths) == [0, 2, 3]


# ------------------------------------------------------------------- the hub, from its cache
def test_hub_cache_offline(layouts, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "datasets--lab--cubes", "a" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    for i, file in enumerate(
        sorted(p for p in layouts["v3.0"].path.rglob("*") if p.is_file())
    ):  # as the hub's client lays it out: links to blobs
        link, blob = (
            repo / "snapshots" / commit / file.relative_to(layouts["v3.0"].path),
            repo / "blobs" / f"{i:064x}",
        )
        for p in (link, blob): p.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    ds, sample = LeRobotDataset("lab/cubes"), layouts["sample"]
    assert "lab/cubes" in repr(ds) and ds.path == repo / "snapshots" / commit
    config = config_of(sample)
    for k, v in read_step(sample, 1, 9, config).items():
        assert np.array_equal(v, read_step(ds, 1, 9, config)[k])
    with pytest.raises(InputError, match="no folder lab/spheres.*hub cannot be reached"):
        LeRobotDataset("lab/spheres")
    next(ds.path.glob("data/*/*.parquet")).unlink()
    with pytest.raises(InputError, match="cache lacks"): LeRobotDataset("lab/cubes")
