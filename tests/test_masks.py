"""Masks from the file to the batch: what is marked is repainted, the same whoever reads it, and nobody
but training needs them."""
import itertools
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import tyro
from torch.utils.data import DataLoader

from gr00t_nb.checkup.checkup import check_dataset
from gr00t_nb.conversion.lerobot_v2 import to_v2
from gr00t_nb.conversion.lerobot_v3 import to_v3
from gr00t_nb.data.layouts import MASK_PATH, mask_file
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.modality import original_key
from gr00t_nb.data.steps import read_step
from gr00t_nb.embodiments import MODALITY_CONFIGS, load_modality_config
from gr00t_nb.embodiments import register_modality_config
from gr00t_nb.errors import InputError
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.checkpoints.base_models import resolve_base_model
from gr00t_nb.checkpoints.registry import family_of
from gr00t_nb.loading.frames import FrameCache
from gr00t_nb.loading.official_order import OfficialStream
from gr00t_nb.loading.order import DataSource, GlobalBatches
from gr00t_nb.loading.samples import SampleError, StepDataset, sample_generator
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics
from gr00t_nb.processing.images import draw_augmentation, transform_many
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.prompts import train_tokenizer
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.finetune import finetune
from gr00t_nb.training.prepare import prepare_data

ROOT = Path(__file__).resolve().parents[1]
SAMPLE, ROBOT = ROOT / "data_samples/cube_to_bowl", ROOT / "data_samples/cube_to_bowl_config.py"
TAG, FEW = "new_embodiment", range(3)
REPAINT = {
    "masked_region_transforms": [
        {"target_mask_values": [1, 3], "p": 0.6, "alpha_range": [0.2, 0.7]},
        {"target_mask_values": [2], "p": 1.0},
    ],
    "background_noise_transforms": [{"p": 0.7}],
}
SETTINGS = dict(
    shortest_image_edge=98,
    crop_fraction=0.95,
    use_albumentations=True,
    max_state_dim=32,
    max_action_dim=32,
    max_action_horizon=20,
    use_relative_action=True,
    random_rotation_angle=5,
    color_jitter_params=dict(brightness=0.3),
)


def labels(episode: int, steps: int, view: str) -> np.ndarray:  # uint8 (steps, 240, 320)
    "Quarters of the picture that move with the step; other ones for each camera and episode."
    y, x = np.mgrid[:240, :320]
    at = np.arange(steps)[:, None, None] + 17 * episode + (view == "wrist")
    return ((((y + at) // 120 % 2) * 2 + x // 160) % 4).astype(np.uint8)


def give_masks(folder: Path, save=np.save, pattern=MASK_PATH, episodes=FEW, keys=None) -> Path:
    "Writes masks of both cameras for some episodes, and tells meta/ of them."
    meta = {n: folder / f"meta/{n}.json" for n in ("info", "modality")}
    found = {n: json.loads(file.read_text()) for n, file in meta.items()}
    found["info"]["mask_path"] = pattern
    found["modality"]["mask"] = keys or {v: {} for v in ("front", "wrist")}
    for n, file in meta.items(): file.write_text(json.dumps(found[n]))
    ds = LeRobotDataset(folder)
    for e, view in itertools.product(episodes, ds.modality["mask"]):
        key = original_key(ds.modality, "mask", view)
        file = mask_file(folder, ds.info, ds.episodes[e], key)
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file, labels(e, ds.length(e), view))
    return folder


def copied(folder: Path) -> Path:
    "The sample, its tables and videos as links."
    shutil.copytree(SAMPLE / "meta", folder / "meta")
    for part in ("data", "videos"): (folder / part).symlink_to(SAMPLE / part)
    return folder


@pytest.fixture(scope="module")
def robot() -> dict:
    load_modality_config(ROBOT)
    plain = MODALITY_CONFIGS.pop(TAG)
    return plain | dict(mask=ModalityConfig([0], ["front", "wrist"]))


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> LeRobotDataset:
    return LeRobotDataset(give_masks(copied(tmp_path_factory.mktemp("masks") / "arm")))


@pytest.fixture(scope="module")
def processor(ds, robot) -> Gr00tProcessor:
    made = {TAG: robot}, {TAG: embodiment_statistics(ds, robot)}
    tokenizer = train_tokenizer(ds.tasks.values(), 400)
    extra = dict(extra_augmentation_config=json.dumps(REPAINT))
    return Gr00tProcessor(*made, tokenizer=tokenizer, **SETTINGS, **extra)


def source(ds, robot, episodes=FEW) -> DataSource:
    return DataSource(ds, TAG, robot, episodes=episodes)


def equal(a, b):
    assert list(a) == list(b)
    for k in a: np.testing.assert_array_equal(a[k], b[k], k)


def batches(dataset, n, workers=0, start=0):
    loader = DataLoader(
        dataset,
        batch_sampler=GlobalBatches(8, 0, 1, start),
        num_workers=workers,
        collate_fn=dataset.collate,
        multiprocessing_context="fork" if workers else None,
    )
    return list(itertools.islice(loader, n))


# ------------------------------------------------------------------------------- the right pixels
def repainted_by_hand(frame, mask, rng):
    "NVIDIA's formulas, pixel by pixel: first the noise, then the tints, each with its own chance."
    out = frame.copy()
    if rng.random() < 0.7 and (mask == 0).any():
        out[mask == 0] = rng.integers(0, 256, ((mask == 0).sum(), 3), np.uint8)
    for values, p, low, high in (((1, 3), 0.6, 0.2, 0.7), ((2,), 1.0, 0.3, 1.0)):
        where = [(y, x) for y, x in np.ndindex(mask.shape) if mask[y, x] in values]
        if rng.random() >= p or not where: continue
        colour, alpha = rng.integers(0, 256, 3), rng.uniform(low, high)
        for y, x in where:
            for c in range(3):
                kept = np.float32(out[y, x, c]) * np.float32(1 - alpha)
                out[y, x, c] = int(kept + np.float32(colour[c]) * np.float32(alpha))
    return out


def test_samples_are_what_the_formulas_say(ds, robot, processor):
    "Each frame by its own mask and generator, before the crop and the colours of the whole sample."
    data = StepDataset([source(ds, robot)], processor, seed=3)
    for g in (5, 6):
        (_, episode, step), = data.order([g])
        rng = sample_generator(3, g)
        drawn = draw_augmentation(rng, 5, dict(brightness=0.3))
        keys, frames = rng.integers(0, 2**63, 2), []
        for view, key in zip(("front", "wrist"), keys):
            frame = ds.frames(int(episode), view, [step])[0]
            mask = labels(int(episode), ds.length(int(episode)), view)[step]
            own = np.random.Generator(np.random.Philox(key=int(key)))
            frames.append(repainted_by_hand(frame, mask, own))
        wanted = transform_many(frames, [drawn] * 2, **processor.image_settings)
        for image, right in zip(data[g]["images"], wanted): np.testing.assert_array_equal(image, right)


def test_the_same_samples_whoever_reads_them(ds, robot, processor):
    "Alone, in threads, in workers, resumed, and in the official order."
    of = [source(ds, robot)]
    data = StepDataset(of, processor, seed=7, threads=2)
    plain = batches(data, 3)
    for a, b in zip(plain, batches(data, 3, workers=2), strict=True): equal(a, b)
    for a, b in zip(plain[2:], batches(data, 1, workers=2, start=2), strict=True): equal(a, b)
    _, episode, step = data.order([9])[0]
    alone = processor(read_step(ds, episode, int(step), robot), TAG, True, sample_generator(7, 9))
    sample = data[9]
    equal({k: sample[k] for k in alone}, alone)
    stream = OfficialStream(of, processor, seed=7, shard_size=64)
    first = next(stream.order())[0]
    sample = next(iter(stream))
    step = read_step(ds, first[1], int(first[2]), robot)
    alone = processor(step, TAG, True, sample_generator(7, int(sample["sample_index"])))
    equal({k: sample[k] for k in alone}, alone)


def test_masks_are_for_training_alone(ds, robot, processor, tmp_path):
    "Evaluation gives what a robot without masks gets, from a cache as well; training refuses one."
    bare = {m: c for m, c in robot.items() if m != "mask"}
    made = {TAG: bare}, processor.statistics
    other = Gr00tProcessor(*made, tokenizer=processor.tokenizer, **SETTINGS)
    cache = FrameCache(folder=tmp_path, **processor.image_settings)
    wanted = StepDataset([source(ds, bare)], other, training=False)
    for options in ({}, {"cache": cache}):
        data = StepDataset([source(ds, robot)], processor, training=False, **options)
        equal(data[11], wanted[11])
    trained = StepDataset([source(ds, robot)], processor)[11]
    before = StepDataset([source(ds, bare)], other)[11]
    assert any((a != b).any() for a, b in zip(trained["images"], before["images"]))
    with pytest.raises(InputError, match="train without --frame-cache"):
        StepDataset([source(ds, robot)], processor, cache=cache)


# -------------------------------------------------------------------------------------- the files
@pytest.mark.parametrize(
    "save, pattern",
    [
        (np.savez, "labels/{video_key}/{episode_index}.npz"),
        (lambda file, x: np.savez_compressed(file, masks=x), "{mask_key}_{episode_index:06d}.npz"),
        (lambda file, x: np.savez(file, other=x[:1], arr_0=x), "m/{mask_key}-{episode_index}.npz"),
        (lambda file, x: np.save(file, np.asfortranarray(x.astype(np.int64))), MASK_PATH),
    ],
    ids=["video_key", "compressed", "arr_0", "fortran"],
)
def test_every_form_of_the_file(ds, robot, tmp_path, save, pattern):
    keys = {v: {"original_key": f"seg.{v}"} for v in ("front", "wrist")}
    other = LeRobotDataset(give_masks(copied(tmp_path / "arm"), save, pattern, FEW, keys))
    assert list(tmp_path.rglob("*seg.wrist*"))
    config = {m: robot[m] for m in ("video", "mask")}
    for e, step in ((0, 3), (2, 60)): equal(read_step(other, e, step, config), read_step(ds, e, step, config))


def test_version_3_keeps_a_file_for_each_episode(ds, robot, tmp_path):
    "And converting takes the masks along, under the new numbers of their episodes."
    few, got = LeRobotDataset(ds.path), {"mask": robot["mask"]}
    few.episodes = few.episodes[1:3]
    with redirect_stdout(StringIO()): joined = to_v3(few, tmp_path / "v3", progress=False)
    with redirect_stdout(StringIO()): again = to_v2(joined, tmp_path / "v2", progress=False)
    assert (joined.version, again.version) == ("3.0", "2.1")
    for e, step in ((0, 3), (1, 60)):
        for copy in (joined, again):
            for k, mask in read_step(copy, e, step, got).items():
                np.testing.assert_array_equal(mask, labels(e + 1, copy.length(e), k[5:])[[step]])


def spoil_length(file): np.save(file, np.load(file)[:-1])
def spoil_dtype(file): np.save(file, np.load(file) / 2)
def spoil_size(file): np.save(file, np.load(file)[:, :120])
def spoil_bytes(file): file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    "spoil, kind, said",
    [
        (Path.unlink, "mask_missing", "There is no mask file"),
        (spoil_length, "mask_length", "expected one for each; write the masks again"),
        (spoil_dtype, "mask_broken", "expected integers of shape (frames, height, width)"),
        (spoil_size, "mask_size", "expected a mask for each frame, of its height and width"),
        (spoil_bytes, "mask_broken", "it was cut short"),
    ],
)
def test_a_spoiled_file(robot, processor, tmp_path, spoil, kind, said):
    "The check-up names it, training stops with file and episode, or goes on with other steps."
    other = LeRobotDataset(give_masks(copied(tmp_path / "arm")), exclude_episodes=range(3, 40))
    spoil(mask_file(other.path, other.info, other.episodes[1], "wrist"))
    report = check_dataset(other.path, config=robot, progress=False, exclude_episodes=range(3, 40))
    assert [(p.kind, p.episode, p.about) for p in report.of("error")] == [(kind, 1, "mask.wrist")]
    assert [p.kind for p in report.of("info") if "mask" in p.kind] == ["mask_labels"] * 2
    data = StepDataset([source(other, robot, None)], processor)
    bad = next(g for g in range(99) if data.order([g])[0, 1] == 1)
    with pytest.raises(SampleError) as e: data[bad]
    assert said in str(e.value) and f"Episode 1 of {other.path}" in str(e.value)
    data = StepDataset([source(other, robot, None)], processor, skip_broken=True)
    assert data[bad]["skipped"][0] == f"Episode 1 of {other.path}"


def test_a_robot_that_does_not_fit(ds, robot, processor, tmp_path):
    with pytest.raises(InputError, match="no mask 'front' in modality.json"):
        StepDataset([source(LeRobotDataset(SAMPLE), robot)], processor)
    wide = robot | dict(mask=ModalityConfig([0], ["front"]))
    with pytest.raises(InputError, match="none of the camera 'wrist'"):
        register_modality_config(wide, TAG)
    step = read_step(ds, 0, 5, robot)
    for bad in ({"mask.wrist": np.repeat(step["mask.wrist"], 2, 0)}, {"mask.wrist": None}):
        with pytest.raises(InputError, match="mask.wrist of 'new_embodiment'"):
            processor(step | bad, TAG, True, np.random.default_rng(0))


# ----------------------------------------------------------------------------- training and policy
@pytest.fixture
def told(ds, tmp_path) -> FinetuneConfig:
    "A run on the three episodes that have masks."
    file = tmp_path / "robot.py"
    mask = 'cube_to_bowl["mask"] = ModalityConfig([0], ["front", "wrist"])\nregister_modality_config('
    file.write_text(ROBOT.read_text().replace("register_modality_config(cube", f"{mask}cube"))
    return FinetuneConfig(
        "tiny",
        str(ds.path),
        "NEW_EMBODIMENT",
        str(file),
        extra_augmentation_config=REPAINT,
        exclude_episodes=list(range(3, 40)),
        check_data=False,
        global_batch_size=2,
        max_steps=2,
        save_steps=100,
        dataloader_num_workers=0,
        output_dir=str(tmp_path / "out"),
    )


def test_the_option(told):
    "A dict in a notebook is the JSON text of the command line; what cannot work is refused at once."
    assert json.loads(told.extra_augmentation_config) == REPAINT
    assert tyro.cli(FinetuneConfig, args=told.to_flags()) == told
    assert prepare_data(told).processor.settings["extra_augmentation_config"] == REPAINT
    plain = replace(told, modality_config_path=str(ROBOT), dataset_path=str(SAMPLE))
    for wrong, said in (
        (replace(told, extra_augmentation_config='{"p": 1}'), "a key is 'p'"),
        (replace(told, frame_cache=True), "leave --frame-cache out"),
        (plain, "'new_embodiment' has none: give its modality configuration a `mask` entry"),
    ):
        MODALITY_CONFIGS.pop(TAG, None)
        with pytest.raises(InputError, match=said): prepare_data(wrong)


def test_a_run_and_one_from_its_checkpoint(told, ds, tmp_path):
    "The setting stays with the checkpoint; the policy and open loop need no masks."
    finetune(told)
    again = replace(told, base_model_path=told.output_dir, extra_augmentation_config=None)
    assert prepare_data(again).processor.settings["extra_augmentation_config"] == REPAINT
    off = prepare_data(replace(again, extra_augmentation_config="{}")).processor
    assert not off.mask_steps and "extra_augmentation_config" not in off.settings
    policy = Gr00tPolicy(TAG, told.output_dir, device="cpu")
    assert "mask" in policy.get_modality_config()
    bare, masked = (evaluate_open_loop(policy, d, [1], 20) for d in (LeRobotDataset(SAMPLE), ds))
    assert bare.mse == masked.mse


def test_every_family_repaints_alike(ds, robot, tmp_path):
    "The family's own processor takes the setting."
    base = resolve_base_model("tiny")
    processor = family_of(base).load_processor(base, extra_augmentation_config=REPAINT)
    processor.set_embodiment(TAG, robot, embodiment_statistics(ds, robot))
    assert processor.uses_masks(TAG)
    step = read_step(ds, 0, 5, robot)
    a, b = (processor(step, TAG, True, np.random.default_rng(s)) for s in (1, 1))
    equal(a, b)
