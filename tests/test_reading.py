"Reading data across modules: damaged data sets, worker processes, and that nothing is ever written into a data set."
import hashlib
import json
import pickle
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preloaded import begin
from torch.utils.data import DataLoader

from gr00t_nb.data.language import read_instructions
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.modality import save_modality
from gr00t_nb.data.modality import propose_modality
from gr00t_nb.data.steps import read_step, require_keys
from gr00t_nb.data.video import decode_frames, video_info
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig
from gr00t_nb.errors import InputError
from gr00t_nb.loading.order import DataSource, GlobalBatches, StepOrder, permuted
from gr00t_nb.loading.samples import StepDataset
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics

SAMPLE = Path(__file__).resolve().parents[1] / "data_samples" / "cube_to_bowl"
# how loader processes begin: with the parent's memory, or with what was pickled for them alone
METHODS = ["fork", "forkserver"]


@pytest.fixture(scope="module", autouse=True)
def server():
    "Loader processes of the second kind have imported the kit already."
    begin()


@pytest.fixture
def folder(tmp_path):
    "A copy of the first three episodes of the sample, without the statistics of all."
    out = tmp_path / "arm"
    for file in sorted(SAMPLE.rglob("*")):
        if file.is_file() and file.name != "stats.json" and (
            file.parent.name == "meta" or any(f"episode_00000{i}." in file.name for i in range(3))
        ):
            (out / file.relative_to(SAMPLE)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, out / file.relative_to(SAMPLE))
    lines = (out / "meta/episodes.jsonl").read_text().splitlines()[:3]
    (out / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return out


def config_of(ds, horizon=16):
    "All views and groups of a data set."
    relative = [ActionConfig("RELATIVE")] * len(ds.modality["action"])
    return dict(
        video=ModalityConfig([0], list(ds.modality["video"])),
        state=ModalityConfig([0], list(ds.modality["state"])),
        action=ModalityConfig(range(horizon), list(ds.modality["action"]), action_configs=relative),
        language=ModalityConfig([0], ["annotation." + next(iter(ds.modality["annotation"]))]),
    )


class Plain:
    "A processor that needs no model: state and one camera."

    def __call__(self, step, embodiment, training, rng):
        state = np.concatenate([v[-1] for k, v in step.items() if k.startswith("state.")])
        return {
            "state": state,
            "image": next(v for k, v in step.items() if k.startswith("video."))[-1],
            "draw": rng.random(),
        }

    def collate(self, samples):
        return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}


def steps_of(folder, **options):
    ds = LeRobotDataset(folder)
    return StepDataset([DataSource(ds, "new_embodiment", config_of(ds))], Plain(), **options)


def sentence(error, *parts):
    "The message, after checking that it is one line and names what it should."
    text = str(error.value)
    assert "\n" not in text and (text[0].isupper() or text.startswith("/")), text
    for part in parts: assert str(part) in text, f"{part!r} is not in: {text}"
    return text


# ---------------------------------------------------------------------------------- damaged folders
def test_missing_folder(tmp_path):
    with pytest.raises(InputError) as e: LeRobotDataset(tmp_path / "nowhere")
    sentence(e, tmp_path / "nowhere", "no folder")


def test_no_dataset(tmp_path, folder):
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError) as e: LeRobotDataset(tmp_path / "other")
    sentence(e, tmp_path / "other", "meta/info.json")
    with pytest.raises(InputError) as e: LeRobotDataset(folder.parent)
    sentence(e, f"Did you mean '{folder}'?")


@pytest.mark.parametrize("name", ["info.json", "episodes.jsonl"])
def test_missing_metadata(folder, name):
    (folder / "meta" / name).unlink()
    with pytest.raises(InputError) as e: LeRobotDataset(folder)
    sentence(e, folder, name)


@pytest.mark.parametrize("name", ["info.json", "episodes.jsonl", "modality.json", "tasks.jsonl"])
def test_broken_metadata(folder, name):
    (folder / "meta" / name).write_text('{"broken": ')
    with pytest.raises(InputError) as e: LeRobotDataset(folder)
    sentence(e, folder / "meta" / name, "not valid JSON")


def test_missing_tasks(folder):
    (folder / "meta/tasks.jsonl").unlink()
    ds = LeRobotDataset(folder)
    with pytest.raises(InputError) as e: read_step(ds, 1, 0, config_of(ds))
    sentence(e, "Episode 1, step 0", "tasks.jsonl")


def test_modality_can_be_proposed_and_kept(folder):
    (folder / "meta/modality.json").unlink()
    info = json.loads((folder / "meta/info.json").read_text())
    with pytest.warns(UserWarning, match="has no meta/modality.json(.|\n)*save_modality") as shown:
        ds = LeRobotDataset(folder)
    assert ds.proposed and len(shown) == 1
    assert ds.modality == LeRobotDataset(folder, modality=propose_modality(info)).modality
    assert not (folder / "meta/modality.json").exists()
    require_keys(ds, config_of(ds))
    save_modality(ds, folder / "meta/modality.json")
    kept = LeRobotDataset(folder)
    assert kept.modality == ds.modality and not kept.proposed


# --------------------------------------------------------------------------------- damaged episodes
def test_missing_column(folder):
    ds = LeRobotDataset(folder)
    file = ds.layout.rows(ds.episodes[1]).path
    pq.write_table(pq.read_table(file).drop_columns(["action"]), file)
    read_step(ds, 0, 0, config_of(ds))
    with pytest.raises(InputError) as e: read_step(ds, 1, 0, config_of(ds))
    sentence(e, "Episode 1", file, "no column 'action'")


def test_missing_table(folder):
    ds = LeRobotDataset(folder)
    file = ds.layout.rows(ds.episodes[2]).path
    file.unlink()
    with pytest.raises(InputError) as e: read_step(ds, 2, 0, config_of(ds))
    sentence(e, "Episode 2", file, "no table")


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_table(folder, keep):
    ds = LeRobotDataset(folder)
    file = ds.layout.rows(ds.episodes[1]).path
    content = file.read_bytes()
    file.write_bytes(content[:int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(InputError) as e: read_step(ds, 1, 0, config_of(ds))
    sentence(e, "Episode 1", file, "cannot be read")


def test_table_shorter_than_metadata(folder):
    ds = LeRobotDataset(folder)
    file = ds.layout.rows(ds.episodes[0]).path
    pq.write_table(pq.read_table(file).slice(0, 30), file)
    assert ds.length(0) == 30 and len(ds.state(0)["single_arm"]) == 30
    with pytest.raises(InputError) as e: read_step(ds, 0, 20, config_of(ds))
    sentence(e, "Episode 0", folder, "steps 0 to 29")


def test_metadata_shorter_than_table(folder):
    file = folder / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["length"] = 25
    file.write_text("\n".join(map(json.dumps, rows)))
    assert LeRobotDataset(folder).length(0) == 25


@pytest.mark.parametrize("keep", [None, 0, 500, 0.5])
def test_broken_video(folder, keep):
    ds = LeRobotDataset(folder)
    view, config = list(ds.modality["video"])[-1], config_of(ds)
    file = ds.layout.frames(ds.episodes[1], ds.column_of("video", view)).path
    content = file.read_bytes()
    if keep is None: file.unlink()
    else: file.write_bytes(content[:int(keep * len(content)) if keep < 1 else keep])
    assert read_step(ds, 0, 3, config)[f"video.{view}"].ndim == 4
    with pytest.raises(InputError) as e: read_step(ds, 1, 3, config)
    sentence(e, f"Episode 1, video '{view}'", file)


def test_garbage_in_the_middle_of_a_video(folder):
    "Damaged pictures are refused where FFmpeg notices; they must never be an exception that names no file."
    ds = LeRobotDataset(folder)
    view = next(iter(ds.modality["video"]))
    file = ds.layout.frames(ds.episodes[0], ds.column_of("video", view)).path
    content = bytearray(file.read_bytes())
    first, last = len(content) // 3, 2 * len(content) // 3
    content[first:last] = np.random.default_rng(0).bytes(last - first)
    file.write_bytes(content)
    with pytest.raises(InputError) as e: ds.frames(0, view, range(ds.length(0)))
    sentence(e, "Episode 0", file)


def test_fewer_frames_than_rows(folder):
    ds = LeRobotDataset(folder)
    view = next(iter(ds.modality["video"]))
    column = ds.column_of("video", view)
    files = [ds.layout.frames(e, column).path for e in ds.episodes]
    short, long = sorted(range(3), key=lambda i: ds.episodes[i].length)[::2]
    shutil.copy(files[short], files[long])
    with pytest.raises(InputError) as e: ds.frames(long, view, [ds.length(long) - 1])
    sentence(e, f"Episode {long}", files[long], f"holds {ds.episodes[short].length} frames")


# ------------------------------------------------------------------------------------------ workers
@pytest.mark.parametrize("method", METHODS)
def test_workers_read_the_same(folder, method):
    data = steps_of(folder)
    data.__getitems__([0, 1, 2, 3])  # the parent has open decoders and rows when it forks

    def batches(workers):
        loader = DataLoader(
            data,
            batch_sampler=GlobalBatches(6),
            num_workers=workers,
            collate_fn=data.collate,
            multiprocessing_context=method if workers else None,
        )
        return list(islice(loader, 3))
    for a, b in zip(batches(0), batches(2)):
        assert a.keys() == b.keys() and a["sample_index"].dtype == torch.int64
        for k in a: assert torch.equal(a[k], b[k]), k


@pytest.mark.parametrize("method", METHODS)
def test_error_of_a_worker_is_a_sentence(folder, method):
    data = steps_of(folder)
    ds = data.sources[0].dataset
    column = ds.column_of("video", next(iter(ds.modality["video"])))
    file = ds.layout.frames(ds.episodes[1], column).path
    file.write_bytes(b"")
    loader = DataLoader(
        data,
        batch_sampler=GlobalBatches(32),
        num_workers=1,
        collate_fn=data.collate,
        multiprocessing_context=method,
    )
    with pytest.raises(InputError) as e: next(iter(loader))
    assert "Traceback" not in sentence(e, "Episode 1", file, "is empty")


def test_pickled_dataset_has_no_cache(folder):
    ds = LeRobotDataset(folder)
    small = len(pickle.dumps(ds))
    for e in range(len(ds)): ds.rows(e, ["action", "observation.state"])
    assert len(pickle.dumps(ds)) == small


# -------------------------------------------------------------------------------------------- order
def test_world_size_and_restart_do_not_change_what_is_trained_on(folder):
    data = steps_of(folder, seed=3)

    def run(world_size, start, n):
        ranks = [islice(GlobalBatches(8, r, world_size, start), n) for r in range(world_size)]
        return [data.order(sum(parts, [])).tolist() for parts in zip(*ranks)]
    whole = run(1, 0, 40)
    for world_size in (1, 2, 4, 8):
        for start in (0, 1, 17): assert run(world_size, start, 40 - start) == whole[start:]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(-2**63, 2**64), st.integers(0, 10**6))
def test_permuted_is_a_permutation(n, seed, epoch):
    assert (np.sort(permuted(range(n), n, seed, epoch)) == np.arange(n)).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=4), st.integers(0, 2**31))
def test_every_source_is_covered_evenly(ratios, seed):
    ds = LeRobotDataset(SAMPLE)
    config = config_of(ds)
    order = StepOrder(
        [DataSource(ds, "x", config, [i, i + 5], ratio=r) for i, r in enumerate(ratios)], seed
    )
    where = order(np.arange(4 * order.block))
    for s, n in enumerate(order.sizes):
        _, counts = np.unique(where[where[:, 0] == s][:, 1:], axis=0, return_counts=True)
        total = counts.sum()
        slots = order.slots[s] if len(ratios) > 1 else order.block
        assert total == 4 * slots
        if total >= n + slots: assert len(counts) == n  # every step came
        assert counts.max() <= total // n + 2


# ------------------------------------------------------------------------------ side effects
def digest(folder):
    files = sorted(p for p in folder.rglob("*"))
    return hashlib.sha256(
        b"".join(str(p).encode() + (p.read_bytes() if p.is_file() else b"") for p in files)
    ).hexdigest()


def test_dataset_is_left_unchanged(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GR00T_NB_CACHE", str(tmp_path / "cache"))
    before = digest(folder)
    for p in [folder, *folder.rglob("*")]: p.chmod(0o555 if p.is_dir() else 0o444)
    try:
        data = steps_of(folder)
        ds = data.sources[0].dataset
        embodiment_statistics(ds, config_of(ds))
        list(islice(DataLoader(data, batch_sampler=GlobalBatches(8), collate_fn=data.collate), 3))
        key = config_of(ds)["language"].modality_keys[0]
        for e in range(len(ds)): read_instructions(ds, e, key)
        assert list((tmp_path / "cache/statistics").glob("*.json"))
    finally:
        for p in [folder, *folder.rglob("*")]: p.chmod(0o755 if p.is_dir() else 0o644)
    assert digest(folder) == before


def test_opening_and_ordering_read_metadata_only(folder):
    "Ten thousand episodes, whose tables and videos are not there."
    task = "put the red cube in the bowl"
    listed = [{"episode_index": i, "tasks": [task], "length": 250 + i % 100} for i in range(10_000)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, listed)))
    for part in ("data", "videos"): shutil.rmtree(folder / part)
    ds = LeRobotDataset(folder)
    order = StepOrder([DataSource(ds, "x", config_of(ds))])
    assert len(ds) == 10_000 and len(order) == sum(e["length"] - 15 for e in listed)
    assert order([len(order) - 1]).shape == (1, 3)


def test_random_access_equals_sequential_decoding():
    for file in sorted(SAMPLE.rglob("*.mp4"))[::27]:
        whole = decode_frames(file)
        assert len(whole) == video_info(file).frames
        picks = np.random.default_rng(0).integers(0, len(whole), 50)
        np.testing.assert_array_equal(decode_frames(file, picks), whole[picks])
        for i in picks[:5]: np.testing.assert_array_equal(decode_frames(file, [i])[0], whole[i])


@pytest.mark.parametrize("method", METHODS)
def test_training_samples_do_not_depend_on_workers(folder, method):
    "With the real processor and its random augmentation."
    from gr00t_nb.processing.processor import Gr00tProcessor
    from gr00t_nb.processing.prompts import train_tokenizer
    ds = LeRobotDataset(folder)
    config = config_of(ds)
    processor = Gr00tProcessor(
        {"new_embodiment": config},
        {"new_embodiment": embodiment_statistics(ds, config)},
        tokenizer=train_tokenizer(ds.tasks.values(), 400),
        shortest_image_edge=84,
        use_albumentations=True,
        random_rotation_angle=5,
        use_relative_action=True,
    )
    data = StepDataset([DataSource(ds, "new_embodiment", config)], processor, seed=7)

    def batches(workers, start=0):
        loader = DataLoader(
            data,
            batch_sampler=GlobalBatches(4, start=start),
            num_workers=workers,
            collate_fn=data.collate,
            multiprocessing_context=method if workers else None,
        )
        return list(islice(loader, 3 - start))
    whole = batches(0)
    for start in (0, 1):
        for a, b in zip(whole[start:], batches(2, start)):
            assert a.keys() == b.keys() and "action_mask" in a
            for k in a:
                for x, y in zip(*(v if isinstance(v, list) else [v] for v in (a[k], b[k]))):
                    assert torch.equal(x, y), k
    other = StepDataset([DataSource(ds, "new_embodiment", config)], processor, seed=8)
    assert not np.array_equal(data[0]["images"][0], other[0]["images"][0])


def test_a_relative_path_with_a_colon(folder, tmp_path, monkeypatch):
    "FFmpeg takes what stands before a colon for a protocol; a folder may have one in its name."
    place = tmp_path / "june:first"
    shutil.copytree(folder, place)
    monkeypatch.chdir(tmp_path)
    ds = LeRobotDataset("june:first")
    view = next(iter(ds.modality["video"]))
    assert ds.frames(0, view, [0]).shape[0] == 1
