"""The practice of a small base model: scenes repeat, labels lead on, and moments are what the processor makes."""
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from gr00t_nb.checkpoints.base_models import pretrained_bases
from gr00t_nb.checkpoints.registry import family_of
from gr00t_nb.errors import InputError

SAMPLES = Path(__file__).resolve().parents[1] / "data_samples"


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(SAMPLES))
    try: yield importlib.import_module("practice"), importlib.import_module("pretrain_base")
    finally: sys.path.remove(str(SAMPLES))


@pytest.fixture(scope="module")
def sim(scripts):
    try: return scripts[0].Practice()
    except InputError as e: pytest.skip(str(e))


def test_a_scene_repeats_and_its_labels_lead_to_the_bowl(scripts, sim):
    practice, _ = scripts
    acted = [practice.act(sim, np.random.default_rng([1, k])) for k in (0, 1, 0)]
    first, _, again = acted
    np.testing.assert_array_equal(np.stack(first.qpos), np.stack(again.qpos))
    for a in filter(None, acted):
        assert np.stack(a.action).shape == (len(a.state), practice.HORIZON, 7)
        named, bowl = a.places[-1][0], a.places[-1][2]
        assert np.linalg.norm(named[:2] - bowl[:2]) < 0.05
        assert np.linalg.norm(a.places[0][0][:2] - bowl[:2]) > 0.1


def test_moments_are_what_the_processor_makes(scripts, sim, tmp_path):
    practice, pretrain = scripts
    ring = pretrain.Ring(tmp_path / "ring", 20)
    ring.add(practice.scene(sim, [1, 0], moments=3))
    rows = np.array(ring.rows[:3])
    folder = pretrained_bases()["tiny-cubes"]
    processor = family_of(folder).load_processor(folder)
    tag, key = pretrain.TAG, processor.modality_configs[pretrain.TAG]["language"].modality_keys[0]
    ours = pretrain.Batches(processor)(rows)
    samples = []
    for r in rows:
        step = {f"video.{c}": image[None] for c, image in zip(practice.CAMERAS, r["images"])}
        for kind, rows_of in (("state", r["state"][None]), ("action", r["action"])):
            step[f"{kind}.single_arm"], step[f"{kind}.gripper"] = rows_of[:, :6], rows_of[:, 6:]
        step[key] = pretrain.SENTENCES[r["sentence"]]
        samples += processor.many([step], tag, training=True, rngs=[np.random.default_rng(0)])
    theirs = processor.collate(samples)
    for name in ("state", "action", "action_mask"):
        np.testing.assert_array_equal(ours[name].reshape(theirs[name].shape), theirs[name])
    pixels = theirs["pixel_values"]
    np.testing.assert_array_equal(
        ours["pixel_values"][0], np.concatenate(pixels) if isinstance(pixels, list) else pixels
    )
    width = theirs["input_ids"].shape[1]
    np.testing.assert_array_equal(ours["input_ids"][:, -width:], theirs["input_ids"])
