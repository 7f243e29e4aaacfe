"""GR00T N1.5's data side against NVIDIA's: numbers scaled and back, images, prompts, batches.

`nvidia_data/` holds steps of the data set `gr1.PickNPlace` that lies beside the bundle, and what
NVIDIA's transforms made of them. Robot, modes and steps are those that the files name.
"""
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from bundles import tensor_names
from safetensors.numpy import load_file

from gr00t_nb.backbones.eagle25 import centred
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.families.n1d5_family import METADATA, Gr00tN1d5Processor
from gr00t_nb.files import write_json
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.processing.prompts import load_tokenizer

SAMPLES = "nvidia_data/samples"
NUMBERS = 1e-6


def pairs(config) -> list[tuple[str, str]]:
    "(state mode, action mode) of the file's tensors."
    names = tensor_names(config, f"{SAMPLES}.safetensors", "n1d5")
    found = {re.match(r"eval\.(\w+)\.(\w+)\.", n) for n in names}
    return sorted({m.groups() for m in found if m})


def pytest_generate_tests(metafunc):
    if "modes" in metafunc.fixturenames: metafunc.parametrize("modes", pairs(metafunc.config))


@pytest.fixture(scope="module")
def said(bundle): return json.loads(bundle(f"{SAMPLES}.json").read_text())


@pytest.fixture(scope="module")
def stored(bundle): return load_file(bundle(f"{SAMPLES}.safetensors"))


@pytest.fixture(scope="module")
def rows(said) -> list[int]:
    "The steps, counted through the whole data set."
    return sorted(int(k.split(".")[1]) for k in said if k.startswith("lang."))


def groups(said, kind: str) -> list[str]:
    "Names of the groups or cameras, in the order in which they are joined."
    return [k.split(".", 1)[1] for k in said["raw_keys"] if k.startswith(f"{kind}.")]


def language_key(said) -> str: return next(k for k in said["raw_keys"] if k.startswith("annotation."))


def robot_of(said) -> dict:
    horizon = said["raw_keys"][f"action.{groups(said, 'action')[0]}"][0][0]
    return dict(
        video=ModalityConfig([0], groups(said, "video")),
        state=ModalityConfig([0], groups(said, "state")),
        action=ModalityConfig(list(range(horizon)), groups(said, "action")),
        language=ModalityConfig([0], [language_key(said)]),
    )


def processor_of(said, modes=None, tokenizer=None) -> Gr00tN1d5Processor:
    tag = said["embodiment_tag"]
    modes = dict(zip(("state", "action"), modes)) if modes else None
    known = {tag: robot_of(said)}, {tag: said["metadata"]["statistics"]}
    return Gr00tN1d5Processor(*known, tokenizer=tokenizer, normalization_modes=modes)


@pytest.fixture(scope="module")
def frames(said, rows, reference) -> dict[int, dict]:
    "The cameras' frames of each step, decoded from the data set beside the bundle."
    folder = reference.parent / "datasets" / "gr1.PickNPlace"
    if not folder.is_dir(): pytest.skip(f"no data set at {folder}")
    ds, ends = LeRobotDataset(folder), np.cumsum(said["trajectory_lengths"])
    found = {}
    for row in rows:
        episode = int(np.searchsorted(ends, row, side="right"))
        step = row - ([0, *ends])[episode]
        found[row] = {v: ds.frames(episode, v, [int(step)]) for v in groups(said, "video")}
    return found


def step_of(said, stored, row: int, frames: dict) -> dict:
    numbers = {
        f"{kind}.{g}": stored[f"raw.{row}.{kind}.{g}"]
        for kind in ("state", "action")
        for g in groups(said, kind)
    }
    views = {f"video.{v}": f for v, f in frames[row].items()}
    return numbers | views | {language_key(said): said[f"lang.{row}"][0]}


def same(ours, theirs):
    "Ours is float32, so large numbers are held to their size."
    np.testing.assert_allclose(ours, theirs, rtol=NUMBERS, atol=NUMBERS)


def test_numbers(said, stored, rows, frames, modes):
    "States and actions as the model sees them, their masks, and the way back."
    processor, tag, name = processor_of(said, modes), said["embodiment_tag"], ".".join(modes)
    compared = set()
    for row in rows:
        sample = processor(step_of(said, stored, row, frames), tag)
        assert sample["embodiment_id"] == said["embodiment_id"]
        ours = {f"{stage}.{name}.{row}.state": sample["state"] for stage in ("eval", "train")}
        ours[f"train.{name}.{row}.action"] = sample["action"]
        ours[f"train.{name}.{row}.action_mask"] = sample["action_mask"] > 0
        back = processor.decode_action(sample["action"][None], tag, {})
        ours |= {f"unapply.{name}.{row}.action.{g}": x for g, x in back.items()}
        for key in ours.keys() & stored.keys(): same(ours[key], stored[key])
        compared |= ours.keys() & stored.keys()
    wanted = {k for k in stored if re.match(rf"(eval|train|unapply)\.{name}\.", k)}
    beside = {k for k in wanted if k.endswith((".state_mask", ".image_sub4"))}  # tests of their own
    assert compared == wanted - beside


def test_state_masks_are_the_widths(said, stored, modes):
    "Officially a mask says how wide a state is; here the padding is zeros behind it."
    processor, tag = processor_of(said, modes), said["embodiment_tag"]
    width = processor.state_action.state_dim(tag, include_sincos_expansion=True)
    masks = [v for k, v in stored.items() if k.startswith(f"eval.{'.'.join(modes)}.") and "mask" in k]
    assert masks
    for mask in masks:
        assert mask[:, :width].all() and not mask[:, width:].any()


def test_nothing_is_clipped_on_the_way_back(said, stored):
    tag, given = said["embodiment_tag"], stored["unapply_random.in"]
    names = [k for k in stored if re.fullmatch(r"unapply_random\.\w+\.action\.\w+", k)]
    assert names and np.abs(given).max() > 1
    for key in names:
        _, mode, _, group = key.split(".")
        back = processor_of(said, ("min_max", mode)).decode_action(given, tag, {})
        largest = max(1, np.abs(stored[key]).max())
        assert np.abs(back[group] - stored[key]).max() <= NUMBERS * largest, key


@pytest.fixture(scope="module")
def tokenizer(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    with zipfile.ZipFile(bundle("tokenizer_eagle2.zip")) as z: z.extractall(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def samples(said, stored, rows, frames, tokenizer) -> list[dict]:
    processor = processor_of(said, None, tokenizer)
    return [processor(step_of(said, stored, r, frames), said["embodiment_tag"]) for r in rows]


def described(said) -> dict[str, dict]:
    "What the file says in words of samples: 'eval.<mode>.<mode>.<row>' -> facts."
    return {k: v for k, v in said.items() if k.startswith("eval.")}


def test_prompts(said, samples, rows):
    facts = described(said)
    assert facts
    for name, fact in facts.items():
        sample = samples[rows.index(int(name.rsplit(".", 1)[1]))]
        assert [sample["text"]] == fact["text"]
        assert list(sample["images"][0].shape) == fact["image_shape"]
        assert sample["embodiment_id"] == fact["embodiment_id"]


def decoded_otherwise(said, stored, frames, row: int) -> int:
    "How many grey levels our decoder is off the official one in this step."
    view = groups(said, "video")[0]
    ours, theirs = frames[row][view][:, ::4, ::4], stored[f"raw.{row}.video_sub4"]
    gap = int(np.abs(ours.astype(int) - theirs.astype(int)).max())
    assert gap <= 3, f"step {row}: decoded {gap} grey levels otherwise"
    return gap


def test_images(said, stored, rows, frames, samples):
    "Within one grey level, and what the decoder differs by."
    names = [k for k in stored if k.endswith(".image_sub4")]
    assert names
    for name in names:
        row = int(name.split(".")[-2])
        image = samples[rows.index(row)]["images"][0][::4, ::4]
        gap = np.abs(image.astype(int) - stored[name].astype(int)).max()
        print(f"\n  step {row}: {gap} grey levels")
        assert gap <= 1 + decoded_otherwise(said, stored, frames, row)


def test_collated(said, stored, rows, frames, samples, tokenizer):
    "Token ids to the last one; padding on the left; pixels from -1 to 1."
    batch = processor_of(said, None, tokenizer).collate(samples)
    for ours, theirs in dict(input_ids="eagle_input_ids", attention_mask="eagle_attention_mask").items():
        assert np.array_equal(batch[ours].numpy(), stored[f"collated.{theirs}"])
    assert batch["embodiment_id"].tolist() == stored["collated.embodiment_id"].tolist()
    pixels = centred(torch.cat(batch["pixel_values"])).numpy()
    allowed = [1 + decoded_otherwise(said, stored, frames, r) for r in rows]
    gap = np.abs(pixels[..., ::4, ::4] - stored["collated.eagle_pixel_values_sub4"])
    assert (gap.max((1, 2, 3)) <= 2 / 255 * np.array(allowed) + 1e-5).all()
    side = pixels.shape[-1]
    assert stored["collated.eagle_image_sizes"].tolist() == [[side, side]] * len(rows)


def test_metadata_comes_back(said, tmp_path):
    "NVIDIA's metadata.json, read and written again: the same, for any robot in it."
    tag = said["embodiment_tag"]
    write_json(tmp_path / METADATA, {tag: said["metadata"]})
    Gr00tN1d5Processor.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / METADATA).read_text()) == {tag: said["metadata"]}
