"""From files to batches: direct, cached, batched, threaded and in workers are the same samples.

Memory stays flat. No timers.
"""
import gc
import importlib.util
import itertools
import multiprocessing
import shutil
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from gr00t_nb.data import lerobot
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_step, require_keys
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig
from gr00t_nb.errors import InputError
from gr00t_nb.loading.frames import FrameCache
from gr00t_nb.loading.official_order import OfficialStream
from gr00t_nb.loading.order import DataSource, GlobalBatches
from gr00t_nb.loading.samples import StepDataset, sample_generator
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.prompts import train_tokenizer
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics

ROOT = Path(__file__).resolve().parents[1]
TAG, EPISODES = "new_embodiment", range(3)
SETTINGS = dict(
    shortest_image_edge=98,
    crop_fraction=0.95,
    use_albumentations=True,
    max_state_dim=32,
    max_action_dim=32,
    max_action_horizon=20,
    use_relative_action=True,
    random_rotation_angle=5,
    color_jitter_params=dict(brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08),
)


@pytest.fixture(scope="module")
def ds(): return LeRobotDataset(ROOT / "data_samples/cube_to_bowl")


@pytest.fixture(scope="module")
def config(ds):
    groups = ["single_arm", "gripper"]
    return dict(
        video=ModalityConfig([0], list(ds.modality["video"])),
        state=ModalityConfig([0], groups),
        language=ModalityConfig([0], ["annotation.human.task_description"]),
        action=ModalityConfig(
            range(16), groups, action_configs=[ActionConfig("RELATIVE"), ActionConfig("ABSOLUTE")]
        ),
    )


@pytest.fixture(scope="module")
def tokenizer(ds): return train_tokenizer(ds.tasks.values(), 400)


@pytest.fixture
def processor(ds, config, tokenizer):
    return Gr00tProcessor(
        {TAG: config}, {TAG: embodiment_statistics(ds, config)}, tokenizer=tokenizer, **SETTINGS
    )


@pytest.fixture
def source(ds, config): return DataSource(ds, TAG, config, episodes=EPISODES)


@pytest.fixture
def cache(tmp_path, processor):
    return FrameCache(folder=tmp_path / "frames", **processor.image_settings)


def equal(a, b):
    assert list(a) == list(b)
    for k in a:
        if isinstance(a[k], (list, tuple)):
            assert len(a[k]) == len(b[k]), k
            for x, y in zip(a[k], b[k]): np.testing.assert_array_equal(x, y, k)
        else: np.testing.assert_array_equal(a[k], b[k], k)


def batches(dataset, n, workers=0, size=8):
    loader = DataLoader(
        dataset,
        batch_sampler=GlobalBatches(size),
        num_workers=workers,
        collate_fn=dataset.collate,
        multiprocessing_context="fork" if workers else None,
    )
    return list(itertools.islice(loader, n))


# --------------------------------------------------------------------------------- the same samples
def test_batch_is_its_samples(ds, source, processor):
    "Made together or each on its own, from the frames as they were decoded."
    data = StepDataset([source], processor, seed=3, threads=2)
    for position, sample in zip(range(40, 52), data.__getitems__(range(40, 52))):
        _, episode, step = data.order([position])[0]
        read = read_step(ds, episode, int(step), source.config)
        alone = processor(read, TAG, True, sample_generator(3, position))
        equal({k: v for k, v in sample.items() if k != "sample_index"}, alone)
        assert sample["sample_index"] == position


@pytest.mark.parametrize(
    "extra",
    [
        {},
        dict(
            use_albumentations=False,
            shortest_image_edge=None,
            crop_fraction=None,
            image_target_size=(84, 84),
            image_crop_size=(80, 80),
        ),
    ],
    ids=["area", "bilinear"],
)
def test_every_way_gives_the_same_batches(ds, source, config, tokenizer, tmp_path, extra):
    processor = Gr00tProcessor(
        {TAG: config},
        {TAG: embodiment_statistics(ds, config)},
        tokenizer=tokenizer,
        **SETTINGS | extra
    )
    cache = FrameCache(folder=tmp_path, **processor.image_settings)
    reference = batches(StepDataset([source], processor, threads=1), 3)
    for other in (
        StepDataset([source], processor, threads=3),
        StepDataset([source], processor, cache=cache),
    ):
        for a, b in zip(reference, batches(other, 3), strict=True): equal(a, b)
    assert len(list(tmp_path.glob("*.npy"))) == 2 * len(EPISODES)  # it was the cache
    for a, b in zip(
        reference, batches(StepDataset([source], processor, cache=cache), 3, workers=2), strict=True
    ):
        equal(a, b)


def test_history(ds, config, processor, source, cache):
    "Several frames a sample, some of them before the first step."
    past = config | dict(
        video=ModalityConfig([-7, 0], list(ds.modality["video"])),
        state=ModalityConfig([-1, 0], ["single_arm", "gripper"]),
    )
    processor.set_embodiment(TAG, past, processor.statistics[TAG])
    source = DataSource(ds, TAG, past, episodes=EPISODES)
    for pad in (True, False):
        direct, cached = (
            StepDataset([source], processor, pad=pad, cache=c, threads=2) for c in (None, cache)
        )
        for position, a, b in zip(
            range(30), direct.__getitems__(range(30)), cached.__getitems__(range(30))
        ):
            equal(a, b)
            _, episode, step = direct.order([position])[0]
            read = read_step(ds, episode, int(step), past, pad=pad)
            alone = processor(read, TAG, True, sample_generator(42, position))
            equal({k: v for k, v in a.items() if k != "sample_index"}, alone)
        assert len(a["images"]) == 4


def test_two_sources_in_one_batch(ds, config, processor):
    sources = [DataSource(ds, TAG, config, episodes=[0]), DataSource(ds, TAG, config, episodes=[1])]
    data = StepDataset(sources, processor)
    batch = data.collate(data.__getitems__(range(10)))
    for i in range(10):
        np.testing.assert_array_equal(
            batch["pixel_values"][0][2 * i].permute(1, 2, 0), data[i]["images"][0]
        )
    assert set(data.order(range(10))[:, 0]) == {0, 1}


# ------------------------------------------------------------------------------------ nothing twice
def test_each_frame_once_each_text_once_no_copy(ds, source, processor, monkeypatch):
    asked, original = [], lerobot.decode_frames

    def counted(path, indices):
        asked.extend((path, int(i)) for i in indices)
        return original(path, indices)
    monkeypatch.setattr(lerobot, "decode_frames", counted)
    data = StepDataset([source], processor, threads=1)
    samples = data.__getitems__([5, 9, 5, 700, 5])
    assert len(asked) == len(set(asked)) <= 2 * 3
    texts, real = [], processor.encoder.tokenizer.__class__.__call__
    monkeypatch.setattr(
        processor.encoder.tokenizer.__class__,
        "__call__",
        lambda self, text, **k: texts.append(text) or real(self, text, **k),
    )
    for _ in range(3): batch = processor.collate(samples)
    assert len(texts) == len(set(texts)) == len({s["text"] for s in samples})
    assert (
        batch["pixel_values"][0].data_ptr()
        == samples[0]["images"][0].__array_interface__["data"][0]
    )  # the images were written in place


# ---------------------------------------------------------------------------------------- the cache
def test_damage_while_training(source, processor, cache):
    reference = batches(StepDataset([source], processor), 2)
    data = StepDataset([source], processor, cache=cache)
    batches(data, 1)
    for file in cache.folder.glob("*.npy"):
        content = bytearray(file.read_bytes())
        content[2000::5000] = bytes(b ^ 255 for b in content[2000::5000])
        file.write_bytes(content)
    fresh = FrameCache(folder=cache.folder, **processor.image_settings)
    with pytest.warns(UserWarning, match="does not have its checksum"):
        for a, b in zip(
            reference, batches(StepDataset([source], processor, cache=fresh), 2), strict=True
        ):
            equal(a, b)


def test_a_cache_for_other_images_is_refused(source, processor, tmp_path):
    for other in (
        dict(shortest_image_edge=112, crop_fraction=0.95),
        dict(shortest_image_edge=98, crop_fraction=0.95, use_albumentations=False),
    ):
        with pytest.raises(InputError, match="make it with FrameCache"):
            StepDataset([source], processor, cache=FrameCache(folder=tmp_path, **other))


def _build(folder, settings, results):
    found = FrameCache(folder=folder, **settings).build(
        LeRobotDataset(ROOT / "data_samples/cube_to_bowl"), range(4), progress=False, threads=1
    )
    results.put((found.made, found.present, found.without_room, found.broken))


def test_two_processes_share_the_work(ds, tmp_path, processor):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [
        context.Process(target=_build, args=(tmp_path, processor.image_settings, results))
        for _ in range(2)
    ]
    for w in workers: w.start()
    found = [results.get(timeout=120) for _ in workers]
    for w in workers: w.join()
    assert sum(f[0] for f in found) >= 8 and not any(f[3] for f in found)
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.suffix != ".lock") == [".npy"] * 8  # no litter
    for f in tmp_path.glob("*.npy"): assert np.load(f, allow_pickle=False)["pixels"].any()


def test_broken_video_is_reported(tmp_path, processor):
    shutil.copytree(ROOT / "data_samples/cube_to_bowl", tmp_path / "d")
    video = sorted((tmp_path / "d").rglob("episode_000001.mp4"))[0]
    video.write_bytes(video.read_bytes()[:500])
    cache = FrameCache(folder=tmp_path / "frames", **processor.image_settings)
    report = cache.build(LeRobotDataset(tmp_path / "d"), range(2), progress=False)
    assert (report.made, len(report.broken)) == (3, 1) and str(video) in report.broken[0]


# ------------------------------------------------------------------------------- the official order
def test_official_stream(ds, source, processor, cache):
    "Its samples are those of the steps it names, whatever the chunks; direct and cached."
    direct, cached = (
        OfficialStream([source], processor, seed=5, shard_size=64, cache=c, threads=2)
        for c in (None, cache)
    )
    where = np.concatenate(list(itertools.islice(direct.order(), 2)))
    cached.chunk = 10
    for g, a, b in zip(range(80), direct, cached):
        equal(a, b)
        if g % 7: continue
        read = read_step(ds, int(where[g, 1]), int(where[g, 2]), source.config)
        alone = processor(read, TAG, True, sample_generator(5, g))
        equal({k: v for k, v in a.items() if k != "sample_index"}, alone)
    loader = DataLoader(
        direct,
        batch_size=6,
        num_workers=2,
        collate_fn=processor.collate,
        multiprocessing_context="fork",
    )
    first, second = itertools.islice(loader, 2)
    assert first["state"].shape[0] == second["state"].shape[0] == 6
    assert not torch.equal(first["state"], second["state"])


def test_official_numbers_are_unique(source, processor):
    "Over ranks, workers and resumptions."
    def numbers(rank, start):
        return [
            int(s["sample_index"])
            for s in itertools.islice(
                OfficialStream(
                    [source], processor, shard_size=64, rank=rank, world_size=2, start_step=start
                ),
                20,
            )
        ]
    found = numbers(0, 0) + numbers(1, 0) + numbers(0, 7)
    assert len(set(found)) == len(found)


# ------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("cached", [False, True], ids=["direct", "cached"])
def test_memory_is_flat(source, processor, cache, cached):
    "What Python and numpy hold after 400 further samples, in bytes a sample."
    data = StepDataset([source], processor, cache=cache if cached else None, threads=1)
    def run(first, n):
        for b in range(first, first + n, 20): data.collate(data.__getitems__(range(b, b + 20)))
        gc.collect()
    run(0, 60)
    tracemalloc.start()
    try:
        run(60, 60)
        before = tracemalloc.get_traced_memory()[0]
        run(120, 400)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally: tracemalloc.stop()
    assert grown / 400 < 1000, f"{grown / 400:.0f} bytes a sample"


# ------------------------------------------------------------------------------------ the benchmark
def test_the_benchmark_has_data(tmp_path):
    "The long data set of benchmarks/loading.py, in small: it can be read, its frames are in place."
    spec = importlib.util.spec_from_file_location("loading", ROOT / "benchmarks/loading.py")
    loading = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loading)
    loading.make_long(tmp_path / "long", episodes=3, length=30, size=(48, 64), gop=10, recordings=1)
    ds = LeRobotDataset(tmp_path / "long")
    config = loading.arm_config(list(ds.modality["video"]))
    require_keys(ds, config)
    step = read_step(ds, 2, 7, config)
    assert step["video.front"].shape == (1, 48, 64, 3)
    assert step["action.single_arm"].shape == (16, 6)
    assert loading.memory() > 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(embodiment_statistics(ds, config)) == {"state", "action", "relative_action"}


# ------------------------------------------------------------------ what breaks, and what is faster
def test_broken_video_is_replaced_alike_by_everybody(ds, config, processor, tmp_path):
    "With or without workers and cache, alone or in a batch: the same step stands in, and everything else is untouched."
    shutil.copytree(ds.path, tmp_path / "d")
    for episode, cut in ((0, 3000), (1, 1)):  # the end of one is missing, all of the other
        video = tmp_path / f"d/videos/chunk-000/observation.images.wrist/episode_{episode:06d}.mp4"
        video.write_bytes(video.read_bytes()[:-cut] if cut > 1 else b"no video")
    torn = DataSource(LeRobotDataset(tmp_path / "d"), TAG, config, episodes=EPISODES)
    whole = batches(StepDataset([DataSource(ds, TAG, config, episodes=EPISODES)], processor), 4)
    data = StepDataset([torn], processor, skip_broken=True)
    with pytest.raises(InputError, match="episode_00000[01].mp4"):
        batches(StepDataset([torn], processor), 4)
    reference = batches(data, 4)
    cached = StepDataset(
        [torn],
        processor,
        skip_broken=True,
        cache=FrameCache(folder=tmp_path / "frames", **processor.image_settings),
    )
    for other in (batches(data, 4, workers=2), batches(cached, 4), batches(cached, 4, workers=2)):
        for a, b in zip(reference, other, strict=True): equal(a, b)
    samples = data.__getitems__(range(32))
    replaced = {g for g, s in enumerate(samples) if "skipped" in s}
    assert {g for g in range(32) if data.order([g])[0, 1] == 1} <= replaced < set(range(32))
    for g, s in enumerate(samples):
        equal(
            {k: v for k, v in s.items() if k != "skipped"},
            {k: v for k, v in data[g].items() if k != "skipped"},
        )
        np.testing.assert_array_equal(reference[g // 8]["action"][g % 8], s["action"])
        if g not in replaced:
            np.testing.assert_array_equal(whole[g // 8]["action"][g % 8], s["action"])


def test_fast_resize_changes_training_images_only(ds, config, processor, source):
    "By one level in a few values; what is evaluated stays as it was, and so does what is saved."
    exact = batches(StepDataset([source], processor), 2)
    processor.fast_resize = True
    fast = batches(StepDataset([source], processor), 2)
    for a, b in zip(exact, fast, strict=True):
        differ = [
            (x.int() - y.int()).abs() for x, y in zip(a.pop("pixel_values"), b.pop("pixel_values"))
        ]
        assert all(d.max() <= 1 and (d > 0).float().mean() < 1e-3 for d in differ)
        assert any(d.any() for d in differ)
        equal(a, b)
    step = read_step(ds, 0, 3, config)
    plain = Gr00tProcessor(
        {TAG: config}, processor.statistics, tokenizer=processor.tokenizer, **SETTINGS
    )
    for x, y in zip(processor(step, TAG)["images"], plain(step, TAG)["images"], strict=True):
        np.testing.assert_array_equal(x, y)


def test_rows_without_numbers_are_never_trained_on(ds, config, tokenizer, tmp_path):
    "NaN in one episode: refused by its row, or replaced; and the statistics are those of the other rows."
    shutil.copytree(ds.path, tmp_path / "d")
    file = tmp_path / "d/data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file)
    x = np.array(table["action"].to_pylist(), np.float32)
    x[60, 2] = np.nan
    pq.write_table(
        table.set_column(
            table.column_names.index("action"),
            "action",
            pa.array(list(x), pa.list_(pa.float32(), 7)),
        ),
        file,
    )
    torn = LeRobotDataset(tmp_path / "d")
    statistics = embodiment_statistics(torn, config)
    whole = embodiment_statistics(ds, config)
    np.testing.assert_allclose(
        statistics["action"]["single_arm"]["mean"], whole["action"]["single_arm"]["mean"], atol=1e-3
    )
    np.testing.assert_allclose(
        statistics["relative_action"]["single_arm"]["max"],
        whole["relative_action"]["single_arm"]["max"],
        atol=1e-2,
    )
    processor = Gr00tProcessor({TAG: config}, {TAG: statistics}, tokenizer=tokenizer, **SETTINGS)
    source = DataSource(torn, TAG, config, episodes=[1])
    spoilt = [
        g
        for g in range(len(StepDataset([source], processor)))
        if 45 <= StepDataset([source], processor).order([g])[0, 2] <= 60
    ]
    with pytest.raises(InputError, match="Episode 1 of .*row 60 of action 'single_arm' holds NaN"):
        StepDataset([source], processor)[spoilt[0]]
    data = StepDataset([source], processor, skip_broken=True)
    samples = data.__getitems__(range(len(data)))
    assert [g for g, s in enumerate(samples) if "skipped" in s] == spoilt
    assert all(np.isfinite(s["action"]).all() and np.isfinite(s["state"]).all() for s in samples)
