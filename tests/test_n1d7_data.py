"From files to batches of N1.7: direct, cached, in the official order, in workers; tags of other generations."
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gr00t_nb.cosmos.n1d7_processor import Gr00tN1d7Processor
from gr00t_nb.cosmos.turns import train_turn_tokenizer
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_step
from gr00t_nb.embodiments import EmbodimentTag, embodiment_value, load_modality_config
from gr00t_nb.errors import InputError
from gr00t_nb.loading.frames import FrameCache
from gr00t_nb.loading.official_order import OfficialStream
from gr00t_nb.loading.order import DataSource
from gr00t_nb.loading.samples import StepDataset, sample_generator
from gr00t_nb.modality_configs import ActionConfig, ModalityConfig
from gr00t_nb.processing.batches import split_batch
from gr00t_nb.processing.embodiment_statistics import embodiment_statistics
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.robots import N1D7_ROBOTS
from gr00t_nb.settings.mixtures import MixtureEntry, Root, settle_slots

ROOT = Path(__file__).resolve().parents[1]
TAG, EPISODES = "new_embodiment", range(2)


@pytest.fixture(scope="module")
def ds(): return LeRobotDataset(ROOT / "data_samples/cube_to_bowl")


@pytest.fixture(scope="module")
def config(ds):
    "Two moments of two cameras."
    groups = ["single_arm", "gripper"]
    how = [ActionConfig("RELATIVE"), ActionConfig("ABSOLUTE")]
    return dict(
        video=ModalityConfig([-15, 0], list(ds.modality["video"])),
        state=ModalityConfig([0], groups),
        action=ModalityConfig(range(16), groups, action_configs=how),
        language=ModalityConfig([0], ["annotation.human.task_description"]),
    )


@pytest.fixture(scope="module", params=[True, False], ids=["boxed", "not boxed"])
def processor(request, ds, config):
    made = Gr00tN1d7Processor.fresh(
        train_turn_tokenizer(ds.tasks.values(), 400),
        shortest_image_edge=128,
        max_state_dim=16,
        max_action_dim=8,
        max_action_horizon=20,
        random_rotation_angle=5,
        color_jitter_params=dict(brightness=0.3, hue=0.05),
        letter_box_transform=request.param,
    )
    made.set_embodiment(TAG, config, embodiment_statistics(ds, config, fingerprinted=TAG), override=True)
    return made


@pytest.fixture(scope="module")
def source(ds, config): return DataSource(ds, TAG, config, episodes=EPISODES)


def equal(a: dict, b: dict):
    assert a.keys() == b.keys()
    for x, y in zip(a["images"], b["images"], strict=True): np.testing.assert_array_equal(x, y)
    for k in a.keys() - {"images"}: np.testing.assert_array_equal(a[k], b[k], k)


def test_samples(ds, source, processor, tmp_path):
    "Each is its step's, before the first step stands the first one; a cache and workers change nothing."
    direct = StepDataset([source], processor, seed=5)
    cache = FrameCache(**processor.image_settings, folder=tmp_path)
    cached = StepDataset([source], processor, seed=5, cache=cache)
    assert len(direct) == sum(ds.length(e) - 15 for e in EPISODES)  # no step is left out
    early = [g for g, (_, _, i) in enumerate(direct.order(range(len(direct)))) if i < 15]
    assert len(early) == 15 * len(EPISODES)
    for g in [*early[:3], 0, 1]:
        (_, episode, i), = direct.order([g]).tolist()
        step = read_step(ds, episode, i, source.config, pad=True)
        alone = processor(step, TAG, True, sample_generator(5, g))
        equal(alone | {"sample_index": np.int64(g)}, direct[g])
        equal(direct[g], cached[g])
    loaders = [
        DataLoader(direct, batch_size=3, num_workers=n, collate_fn=direct.collate) for n in (0, 2)
    ]
    for a, b in itertools.islice(zip(*loaders), 2):
        for k in a.keys() - {"pixel_values"}: assert torch.equal(a[k], b[k]), k
        for x, y in zip(a["pixel_values"], b["pixel_values"], strict=True): assert torch.equal(x, y)


def test_official_order(ds, source, processor):
    "Samples are the steps they name; small data sets have shards; with the switch history wraps."
    cut = dict(seed=5, shard_size=2, episode_sampling_rate=0.5)
    padded, wrapped = (OfficialStream([source], processor, **cut, wrap=w) for w in (False, True))
    assert len(padded.shards[0]) == 2 * len(EPISODES)  # as many as pieces, though 2 steps were asked for
    with pytest.raises(InputError, match="cannot fill"):
        OfficialStream([source], Gr00tProcessor({}, shortest_image_edge=98), **cut)
    where = next(padded.order())
    np.testing.assert_array_equal(where, next(wrapped.order()))
    early = next(n for n, (_, _, i) in enumerate(where) if 0 < i < 15)
    for stream, rule in ((padded, dict(pad=True)), (wrapped, dict(wrap=True))):
        for g, sample in enumerate(itertools.islice(stream, early + 1)):
            if g not in (0, early): continue
            step = read_step(ds, int(where[g, 1]), int(where[g, 2]), source.config, **rule)
            alone = processor(step, TAG, True, sample_generator(5, g))
            equal(alone | {"sample_index": np.int64(g)}, sample)


def test_a_batch_in_parts(source, processor):
    "Images stay with their prompts."
    data = StepDataset([source], processor, seed=5)
    samples = data.__getitems__(range(3))
    batch = data.collate(samples)
    rows, parts = processor.as_rows(batch), split_batch(batch, 2)
    of_parts = [processor.as_rows(p) for p in parts]
    for k in ("pixel_values", "image_grid_thw", "input_ids"):
        assert torch.equal(torch.cat([p[k] for p in of_parts]), rows[k]), k
    tokens = rows["image_grid_thw"].prod(1).sum() // 4
    assert (batch["input_ids"] == processor.encoder.image_token_id).sum() == tokens


# ---------------------------------------------------------------- tags
def test_the_generation_decides_what_a_name_means():
    assert embodiment_value("LIBERO_PANDA") == "libero_panda"
    for tag in ("LIBERO_PANDA", " libero_panda", EmbodimentTag.LIBERO_PANDA, "libero_sim"):
        assert embodiment_value(tag, N1D7_ROBOTS) == "libero_sim"
    with pytest.raises(InputError, match="Did you mean 'XDOF_SUBTASK'"):
        embodiment_value("XDOF_SUBTASKS", N1D7_ROBOTS)


@pytest.mark.parametrize("tag, name", [("GR1", "ROBOCASA_GR1_TABLETOP"), ("OXE_DROID", "OXE_DROID_RELATIVE")])
def test_a_foreign_tag_is_refused_with_what_it_is_called_there(tag, name):
    model = SimpleNamespace(embodiment_ids=dict(N1D7_ROBOTS.slots), statistics={})
    entry = MixtureEntry("one", "data", embodiment_tag=tag)
    with pytest.raises(InputError, match=f"is a tag of GR00T N1.6, and GR00T N1.7 calls this robot {name}"):
        settle_slots([entry], model, None, N1D7_ROBOTS)
    settle_slots([replace(entry, embodiment_id=31)], model, None, N1D7_ROBOTS)  # a slot of its own


def test_a_file_may_name_robots_of_either_generation(tmp_path):
    file = tmp_path / "robot.py"
    file.write_text(
        "from gr00t.configs.data.embodiment_configs import register_modality_config\n"
        "from gr00t.data.embodiment_tags import EmbodimentTag\n"
        "from gr00t.data.types import ModalityConfig\n"
        "one = lambda key: ModalityConfig(delta_indices=[0], modality_keys=[key])\n"
        "register_modality_config(dict(video=one('a'), state=one('b'), action=one('c'), language=one('d')),\n"
        "                         EmbodimentTag.ROBOCASA_GR1_TABLETOP)\n"
    )
    with pytest.warns(UserWarning, match="takes the place of the built-in one"):
        assert load_modality_config(file) == ["robocasa_gr1_tabletop"]


def test_steps_of_a_plan_are_those_of_the_loader(ds, config, processor):
    "What a run counts before it begins is what the loader gives."
    entry = MixtureEntry("one", str(ds.path), embodiment_tag=TAG)
    for pads in (True, False):
        root = Root(0, entry, ds, config, [0, 1], [], pads=pads)
        data = StepDataset([root.source], processor, pad=pads)
        assert root.samples == len(data)
