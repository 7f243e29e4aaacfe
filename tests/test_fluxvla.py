"""FluxVLA's samples in this kit: the same for any workers, several roots, a network that learns from what
is not masked, a checkpoint that brings its way of making samples along, and mixtures of robots.
"""
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gr00t_nb.checkpoints.registry import family_of
from gr00t_nb.checkpoints.base_models import resolve_base_model
from gr00t_nb.conversion.writer import Recording, WriterV2
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.modality import save_modality
from gr00t_nb.embodiments import register_modality_config
from gr00t_nb.engine.collation import Collator
from gr00t_nb.errors import InputError
from gr00t_nb.evaluation.open_loop import evaluate_open_loop
from gr00t_nb.fluxvla.fluxvla_processor import FluxvlaProcessor, FluxvlaRobot
from gr00t_nb.fluxvla.merged_statistics import statistics_of_roots
from gr00t_nb.fluxvla.pixels import FLUXVLA_MEAN, FLUXVLA_STD
from gr00t_nb.fluxvla.window_samples import WindowDataset, fluxvla_robot
from gr00t_nb.loading.order import DataSource
from gr00t_nb.loading.samples import SampleError
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.training.finetune import finetune
from runs import RUN

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data_samples/cube_to_bowl"
TAG, OTHER = "new_embodiment", "libero_panda"


@pytest.fixture(scope="module")
def arm():
    "The sample's robot as a private recording: states are actions. Data set, configuration."
    ds = LeRobotDataset(SAMPLE)
    cameras = ["observation.images.front", "observation.images.wrist"]
    modality, config = fluxvla_robot(ds.info, cameras, size=16)
    return LeRobotDataset(SAMPLE, modality), config


@pytest.fixture(scope="module")
def base():
    folder = resolve_base_model("tiny-n1.5")
    family = family_of(folder)
    return family, family.load_model(folder), family.load_processor(folder)


@pytest.fixture
def processor(arm, base):
    ds, config = arm
    made = FluxvlaProcessor.around(base[2], max_len=160, embodiment_ids={TAG: 2})
    made.set_embodiment(TAG, config, statistics_of_roots([ds], config))
    return made


def samples_of(ds, config, processor, **kwargs):
    return WindowDataset([DataSource(ds, TAG, config)], processor, seed=3, **kwargs)


def same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for k, v in a.items():
        pairs = zip(v, b[k]) if isinstance(v, list) else [(v, b[k])]
        for x, y in pairs: assert torch.equal(x, y) if torch.is_tensor(x) else x == y, k


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(arm, base, processor, workers):
    data = samples_of(*arm, processor)
    collate = Collator(processor, base[1].config, seed=3)
    positions = [[0, 1], [200, 5000]]
    ahead = [collate(data.__getitems__(p)) for p in positions]
    loader = DataLoader(data, batch_sampler=positions, num_workers=workers, collate_fn=collate)
    for ours, theirs in zip(loader, ahead): same(ours, theirs)


def test_roots_of_one_robot_come_by_their_rows(arm, processor):
    "Two roots, one twice the other's size in episodes that are used."
    ds, config = arm
    roots = [DataSource(ds, TAG, config, episodes=e, ratio=r) for e, r in (([0, 1, 2, 3], 2), ([4, 5], 1))]
    where = WindowDataset(roots, processor, seed=3).where(range(4096))
    shares = np.bincount(where[:, 0]) / len(where)
    assert np.abs(shares - [2 / 3, 1 / 3]).max() < 1e-3
    assert set(where[where[:, 0] == 1, 1]) == {4, 5}


def test_the_network_learns_from_what_counts_alone(arm, base, processor):
    "The loss is the mean over steps that a window has and numbers that the robot has."
    data, (family, model, _) = samples_of(*arm, processor), base
    last = next(g for g in range(500) if 0 < data[g]["action_mask"].sum() < 16 * 7)
    batch = Collator(processor, model.config, seed=3)(data.__getitems__([last, last + 1]))
    assert batch["input_ids"].shape[1] == 160

    out = model(batch)
    errors, counts = out["action_loss"].detach(), batch["action_mask"]
    value = float(out["loss"].detach())
    assert value == pytest.approx(float((errors * counts).sum() / counts.sum()), rel=1e-5)
    whole = torch.ones_like(counts)  # as if the repeated steps and the padding were real
    assert float(model(dict(batch, action_mask=whole))["loss"].detach()) != pytest.approx(value, rel=1e-3)


def test_the_checkpoint_brings_the_processor_along(arm, base, processor, tmp_path):
    "Saved with a model, loaded by its family, asked by a policy: the same samples, the same answers."
    ds, config = arm
    family, model, _ = base
    robot = FluxvlaRobot("quantile", pixel_means=[FLUXVLA_MEAN], pixel_stds=[FLUXVLA_STD], padding_images=1)
    processor.set_robot(TAG, robot)
    processor.set_embodiment(TAG, config, statistics_of_roots([ds], config), override=True)
    family.save(tmp_path, model, processor)
    again = family.load_processor(tmp_path)
    assert type(again) is FluxvlaProcessor and again.robot(TAG) == robot
    data, twin = samples_of(ds, config, processor), samples_of(ds, config, again)
    same(processor.collate([data[5]]), again.collate([twin[5]]))
    policy = Gr00tPolicy(TAG, tmp_path, device="cpu")
    step = data.read(data.where([5]), [None])[0]
    answer = policy.predict([step], noise=np.zeros((16, 32), np.float32))
    assert answer["action"].shape == (1, 16, 7)
    assert json.loads((tmp_path / "dataset_statistics.json").read_text())["private"]["action"]["q01"]


def test_robots_of_a_mixture_share_a_batch(arm, processor):
    "With constants, weights and cameras of their own, as long as they have as many images."
    ds, config = arm
    one = config | dict(video=dataclasses.replace(config["video"], modality_keys=["front"]))
    processor.embodiment_ids[OTHER] = 5
    said = dict(pixel_means=[FLUXVLA_MEAN], pixel_stds=[FLUXVLA_STD], sample_weight=0.25)
    processor.set_robot(OTHER, FluxvlaRobot(padding_images=1, **said))
    processor.set_embodiment(OTHER, one, statistics_of_roots([ds], one))
    sources = [DataSource(ds, TAG, config), DataSource(ds, OTHER, one)]
    data = WindowDataset(sources, processor, seed=3)
    samples = data.__getitems__(range(8))
    batch = processor.collate(samples)
    robots = data.where(range(8))[:, 0]
    assert set(robots) == {0, 1}
    assert batch["sample_weight"].tolist() == [0.25 if r else 1.0 for r in robots]
    pixels = batch["pixel_values"][0].reshape(8, 2, 3, -1)
    for r, own in zip(robots, pixels): assert bool((own[1] == own[1][:, :1]).all()) == (r == 1)
    assert all(float(own.abs().max()) <= 1 for r, own in zip(robots, pixels) if r == 0)
    processor.set_robot(OTHER, FluxvlaRobot(**said))
    with pytest.raises(InputError, match="padding_images"): processor.collate(data.__getitems__(range(8)))


@pytest.mark.parametrize("language", ["task", "annotation.human.task_description"])
def test_each_row_is_told_its_own_task(arm, processor, tmp_path, language):
    "And not one of its episode, which may be that of a wait."
    ds, config = arm
    views = [f"observation.images.{v}" for v in ("front", "wrist")]
    video = {c: ds.layout.frames(ds.episodes[0], c) for c in views}
    state, n = ds.column(0, "observation.state"), ds.length(0)
    tasks = ["static"] * 20 + ["lift it"] * 40 + ["put it down"] * (n - 60)
    writer = WriterV2(tmp_path / "out", ds.fps)
    writer.add(lambda: Recording({"observation.state": state}, video, tasks), "episode 0")
    writer.finish(modality=ds.modality)
    several = LeRobotDataset(tmp_path / "out")
    own = config | dict(language=ModalityConfig([0], [language]))
    data = samples_of(several, own, processor)
    where = [w for w in data.where(range(60)) if w[2] != 19]
    for (_, _, step), row in zip(where, data.read(np.array(where), [None] * len(where))):
        assert row[language] == tasks[step]
    assert {tasks[w[2]] for w in where} == {"lift it", "put it down"}


def test_faults_name_the_episode(arm, processor):
    ds, config = arm
    broken = LeRobotDataset(SAMPLE, ds.modality)
    real = broken.vectors
    spoilt = lambda *a, **k: {g: np.full_like(v, np.nan) for g, v in real(*a, **k).items()}
    broken.vectors = lambda e, kind, *rest, **k: (spoilt if kind == "action" else real)(e, kind, *rest, **k)
    with pytest.raises(SampleError, match=r"Episode \d+ .* holds NaN or infinity in action 'action'"):
        samples_of(broken, config, processor)[0]
    skipping = samples_of(broken, config, processor, skip_broken=True)
    with pytest.raises(SampleError, match="None of 64 steps"): skipping[0]


def test_a_checkpoint_with_this_processor_trains_on_windows(arm, base, processor, tmp_path):
    "Nothing has to be said: every row counts, those too close to the end with a mask."
    ds, config = arm
    family, model, _ = base
    family.save(tmp_path / "base", model, processor)
    save_modality(ds, tmp_path / "modality.json")
    register_modality_config(config, TAG)
    run = dataclasses.replace(
        RUN,
        base_model_path=str(tmp_path / "base"),
        modality_config_path=None,
        modality_path=str(tmp_path / "modality.json"),
        output_dir=str(tmp_path / "run"),
        override_statistics=True,
    )
    result = finetune(run)
    assert result.prepared.dataset_class is WindowDataset
    assert result.prepared.samples == ds.total_steps  # where a row has no window, another is drawn
    assert len(result.log) == RUN.max_steps and all(np.isfinite(r["loss"]) for r in result.log)
    assert type(family.load_processor(result.output_dir)) is FluxvlaProcessor
    policy = Gr00tPolicy(TAG, result.output_dir, device="cpu")
    assert np.isfinite(evaluate_open_loop(policy, ds, [0]).table()[-1]["mse policy"])
    with pytest.raises(InputError, match="FluxvlaProcessor makes samples by rules of its own"):
        finetune(dataclasses.replace(run, sampling="official", output_dir=str(tmp_path / "stream")))
