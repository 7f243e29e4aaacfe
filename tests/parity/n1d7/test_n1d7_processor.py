"""The processor of N1.7 against the official one: images, rows of patches, prompts, ids, numbers,
batches, decoded actions, saved files, tokenizer."""
import json
import math
import shutil

import numpy as np
import pytest
import torch
from bundles import json_of, tensor_names
from safetensors.numpy import load_file

from gr00t_nb.cosmos.n1d7_processor import Gr00tN1d7Processor
from gr00t_nb.cosmos.patches import FRAMES, MERGE, PATCH, QWEN3_VL_PATCHES
from gr00t_nb.cosmos.turns import IMAGE_PAD, expand_pads, load_turn_tokenizer
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_step
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.processing.images import eval_transform
from gr00t_nb.processing.prompts import PromptEncoder

GENERATION = "n1d7"


def cases_of(config, name) -> dict:
    return json_of(config, name, {}, GENERATION)


def pytest_generate_tests(metafunc):
    def params(name, entries):
        return entries or [pytest.param(None, marks=pytest.mark.skip(f"no cases in {name}"))]

    if "case" in metafunc.fixturenames:
        cases = cases_of(metafunc.config, "processor/cases.json")
        if metafunc.function.__name__ == "test_decode":
            tensors = tensor_names(metafunc.config, "processor/cases.safetensors", GENERATION)
            cases = {n: c for n, c in cases.items() if f"{n}/decode/model_output" in tensors}
        named = [pytest.param(c, id=n) for n, c in cases.items()]
        metafunc.parametrize("case", params("processor/cases.json", named))
    if "words" in metafunc.fixturenames:
        cases = cases_of(metafunc.config, "processor/tokenizer_cases.json").get("cases", [])
        named = [pytest.param(c, id=repr(c["text"])[:30]) for c in cases]
        metafunc.parametrize("words", params("processor/tokenizer_cases.json", named))
    if "shape" in metafunc.fixturenames:
        cases = cases_of(metafunc.config, "processor/letterbox_switch.json")
        named = [pytest.param((n, c), id=f"{n}-{c['shape']}") for n, c in cases.items()]
        metafunc.parametrize("shape", params("processor/letterbox_switch.json", named))


@pytest.fixture(scope="module")
def tokenizer(bundle, reference, tmp_path_factory):
    "The small files of the bundle; vocabulary and merges are those of the N1.6 bundle beside it."
    folder = tmp_path_factory.mktemp("tokenizer")
    for file in bundle("tokenizer").glob("*.json"): shutil.copy(file, folder / file.name)
    for name in ("vocab.json", "merges.txt"):
        places = [reference / "tokenizer" / name, reference.parent / "n1d6/tokenizer" / name]
        found = next((p for p in places if p.exists()), None)
        if found is None: pytest.skip(f"{name} is at neither of {', '.join(map(str, places))}")
        shutil.copy(found, folder / name)
    return load_turn_tokenizer(folder)


@pytest.fixture(scope="module")
def all_tensors(bundle) -> dict: return load_file(bundle("processor/cases.safetensors"))


def inside(tensors: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture
def tensors(request, all_tensors) -> dict:
    "The case's tensors, without its name."
    return inside(all_tensors, request.node.callspec.id + "/")


def statistics_of(bundle, embodiment: str, horizon: int) -> dict:
    "The statistics that the bundle's processors were made with; a shorter chunk has their first rows."
    for name in ("gr1", "droid"):
        known = json.loads(bundle(f"processor/{name}_statistics.json").read_text())
        known = known.get(embodiment, known if "state" in known and name in embodiment else None)
        if known is None: continue
        relative = known.get("relative_action", {})
        cut = {g: {k: v[:horizon] for k, v in s.items()} for g, s in relative.items()}
        return known | dict(relative_action=cut)
    raise AssertionError(f"no statistics of {embodiment} in the bundle")


@pytest.fixture
def processor(case, bundle, tokenizer) -> Gr00tN1d7Processor:
    configs = {k: ModalityConfig.from_json(v) for k, v in case["modality_configs"].items()}
    tag, horizon = case["embodiment"], len(configs["action"].delta_indices)
    known = {tag: statistics_of(bundle, tag, horizon)}
    return Gr00tN1d7Processor({tag: configs}, known, tokenizer=tokenizer, **case["processor"])


def pictures_of(tensors: dict, case: dict, place: str, sample: dict, kind: str) -> dict:
    """The pictures of a sample. They may lie with another one: the bundle names it, or its note says
    that they are those of the robot's first sample that has some."""
    if own := inside(tensors, f"{sample.get(f'{kind}_same_as', place)}/{kind}/"): return own
    if "raw_image_note" not in sample: return {}
    views = set(case["modality_configs"]["video"]["modality_keys"])
    firsts = sorted({k.split("/")[0] for k in tensors if k.split("/")[2:3] == [kind]})
    others = (inside(tensors, f"{name}/0/raw_image/") for name in firsts)
    name = next(n for n, o in zip(firsts, others) if set(o) == views)
    return inside(tensors, f"{name}/0/{kind}/")


def steps_of(case, name, tensors) -> list[dict]:
    "Steps put together from the raw arrays."
    language, out = case["modality_configs"]["language"]["modality_keys"][0], []
    for i, s in enumerate(case["samples"]):
        seen = pictures_of(tensors, case, f"{name}/{i}", s, "raw_image")
        step = {f"video.{k}": v for k, v in seen.items()}
        for kind in ("state", "action"):
            own = inside(tensors, f"{name}/{i}/raw_{kind}/")
            step |= {f"{kind}.{k}": v for k, v in own.items()}
        out.append(step | {language: s["text"]})
    return out


def same_image(ours, theirs, case, what=""):
    "Equal; where torch scales (without albumentations) CPUs may round: off by one level in at most 0.1 %."
    exact = case["processor"].get("use_albumentations", True)
    if exact: return np.testing.assert_array_equal(ours, theirs, what)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, what
    off = np.abs(ours.astype(int) - theirs.astype(int))
    assert off.max() <= 1 and (off > 0).mean() <= 1e-3, f"{what}: {(off > 0).mean():.2%} differ"


def test_images(case, processor, request, all_tensors):
    "Before they are brought to multiples of 32."
    name = request.node.callspec.id
    views = case["modality_configs"]["video"]["modality_keys"]
    for i, (step, s) in enumerate(zip(steps_of(case, name, all_tensors), case["samples"])):
        frames = [step[f"video.{v}"][t] for t in range(len(step[f"video.{views[0]}"])) for v in views]
        want = pictures_of(all_tensors, case, f"{name}/{i}", s, "image_after_transform")
        made = eval_transform(frames, **processor.image_settings)
        assert len(made) == len(want)
        for j, image in enumerate(made): same_image(image, want[str(j)], case)


def test_samples(case, tensors, processor, request, all_tensors):
    name = request.node.callspec.id
    for i, (step, want) in enumerate(zip(steps_of(case, name, all_tensors), case["samples"])):
        sample = processor(step, case["embodiment"])
        assert sample["text"] == want["chat_text"]
        assert sample["embodiment_id"] == case["embodiment_id"]
        counts = [x.shape[0] * x.shape[1] // 32**2 for x in sample["images"]]
        expanded = expand_pads(sample["text"], counts)
        assert expanded.replace(IMAGE_PAD, ".") == want["decoded_tokens"]
        ids = processor.encoder.ids(expanded)
        np.testing.assert_array_equal(ids, tensors[f"{i}/input_ids_alone"].reshape(-1))
        for k in ("state", "action", "action_mask"):
            assert sample[k].dtype == np.float32
            np.testing.assert_allclose(sample[k], tensors[f"{i}/{k}"], rtol=0, atol=2e-6, err_msg=k)


def test_training_keeps_the_numbers(case, tensors, processor, request, all_tensors):
    "In training the images are random and some states hidden; without actions it refuses."
    hidden, name = [], request.node.callspec.id
    for i, step in enumerate(steps_of(case, name, all_tensors)):
        rng = lambda: np.random.default_rng(i)
        sample = processor(step, case["embodiment"], training=True, rng=rng())
        for k in ("action", "action_mask"):
            np.testing.assert_allclose(sample[k], tensors[f"{i}/{k}"], rtol=0, atol=2e-6)
        hidden.append(not sample["state"].any())
        if not hidden[-1]: np.testing.assert_allclose(sample["state"], tensors[f"{i}/state"], atol=2e-6)
        silent = {k: v for k, v in step.items() if not k.startswith("action.")}
        with pytest.raises(ValueError, match="lacks action"):
            processor(silent, case["embodiment"], training=True, rng=rng())
    assert all(hidden) if case["processor"]["exclude_state"] else True


def test_batch(case, tensors, processor, request, all_tensors):
    steps, want = steps_of(case, request.node.callspec.id, all_tensors), inside(tensors, "batch/")
    batch = processor.collate([processor(s, case["embodiment"]) for s in steps])
    rows = processor.as_rows(batch)
    assert {k for k in rows if k != "pixel_values"} == {
        k for k in want if not k.startswith("pixel_values")
    }
    for k in ("input_ids", "attention_mask", "embodiment_id", "image_grid_thw"):
        assert rows[k].dtype == torch.int64
        np.testing.assert_array_equal(rows[k], want[k], k)
    for k in ("state", "action", "action_mask"):
        assert rows[k].dtype == torch.float32 and list(rows[k].shape) == case["batch_shapes"][k]
        np.testing.assert_allclose(rows[k], want[k], rtol=0, atol=2e-6, err_msg=k)
    assert list(rows["pixel_values"].shape) == want["pixel_values_shape"].tolist()
    pads = (batch["input_ids"] == processor.encoder.image_token_id).sum()
    assert pads * 4 == len(rows["pixel_values"])


def test_rows_of_patches(case, tensors, processor, request, all_tensors):
    "Every 55th row, and the sum of each. Where torch scales, CPUs round: off by one level, which is 2 / 255."
    steps, want = steps_of(case, request.node.callspec.id, all_tensors), inside(tensors, "batch/")
    rows = processor.as_rows(processor.collate([processor(s, case["embodiment"]) for s in steps]))
    pixels = rows["pixel_values"].numpy()
    torch_scaled = not case["processor"]["use_albumentations"] or _resized(case, processor, steps[0])
    level, share = (1.01 * 2 / 255, 1e-3) if torch_scaled else (1e-6, 0)
    off = np.abs(pixels[::55] - want["pixel_values_every_55th_row"])
    assert off.max() <= level and (off > 1e-5).mean() <= share
    sums = np.abs(pixels.astype(np.float64).sum(1) - want["pixel_values_row_sums"])
    assert sums.max() <= (16 * level if torch_scaled else 1e-3)


def _resized(case, processor, step) -> bool:
    "Whether the images had to be brought to multiples of 32."
    view = case["modality_configs"]["video"]["modality_keys"][0]
    image, = eval_transform([step[f"video.{view}"][0]], **processor.image_settings)
    return image.shape != processor(step, case["embodiment"])["images"][0].shape


def test_decode(case, tensors, processor, request, all_tensors):
    want, steps = inside(tensors, "decode/"), steps_of(case, request.node.callspec.id, all_tensors)
    keys = case["modality_configs"]["state"]["modality_keys"]
    raw = {k: np.stack([s[f"state.{k}"] for s in steps]) for k in keys}
    for prediction in (want["model_output"], torch.from_numpy(want["model_output"])):
        got = processor.decode_action(prediction, case["embodiment"], raw)
        assert list(got) == case["modality_configs"]["action"]["modality_keys"]
        for k in got:
            assert got[k].dtype == np.float32 and got[k].shape == want[k].shape
            np.testing.assert_allclose(got[k], want[k], rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- letterbox
def test_both_readings_of_the_letterbox(shape, bundle):
    name, case = shape
    pictures = load_file(bundle("processor/letterbox_switch.safetensors"))
    settings = {k: case[k] for k in ("shortest_image_edge", "crop_fraction")}
    for flag, reading in ((True, "letterbox"), (False, "no_letterbox"), (None, "letterbox")):
        processor = Gr00tN1d7Processor({}, **settings, use_albumentations=True, letter_box_transform=flag)
        made, = eval_transform([pictures[f"{name}/raw"]], **processor.image_settings)
        assert list(made.shape) == case[reading]
        np.testing.assert_array_equal(made, pictures[f"{name}/{reading}"])


# ---------------------------------------------------------------- files
def meaning(x):
    "JSON with NaN made comparable."
    if isinstance(x, dict): return {k: meaning(v) for k, v in x.items()}
    if isinstance(x, list): return [meaning(v) for v in x]
    return "NaN" if isinstance(x, float) and math.isnan(x) else x


@pytest.mark.parametrize("saved", ["processor/saved_processor", "policy/checkpoint"])
def test_saved_round_trip(saved, bundle, tokenizer, tmp_path):
    "load-save-load-save: the files mean what the official ones mean, the tokenizer travels along."
    source = bundle(saved)
    first = Gr00tN1d7Processor.from_pretrained(source, tokenizer=tokenizer)
    first.save_pretrained(tmp_path / "a")
    (tmp_path / "run").mkdir()
    shutil.copytree(tmp_path / "a", tmp_path / "run/processor")  # the other layout
    second = Gr00tN1d7Processor.from_pretrained(tmp_path / "run")
    second.save_pretrained(tmp_path / "b")
    for name in ("processor_config.json", "statistics.json", "embodiment_id.json"):
        want = meaning(json.loads((source / name).read_text()))
        for copy in ("a", "b"):
            assert meaning(json.loads((tmp_path / copy / name).read_text())) == want, name
    assert second.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_saved_processor_gives_the_same(bundle, tokenizer, all_tensors):
    "The saved official files give the numbers of the cases that have their settings."
    saved = bundle("processor/saved_processor")
    loaded = Gr00tN1d7Processor.from_pretrained(saved, tokenizer=tokenizer)
    cases, compared = json.loads(bundle("processor/cases.json").read_text()), 0
    for name, case in cases.items():
        own = loaded.modality_configs.get(case["embodiment"], {})
        if {m: x.to_json() for m, x in own.items()} != case["modality_configs"]: continue
        if any(loaded.settings.get(k) != v for k, v in case["processor"].items()): continue
        tensors, steps = inside(all_tensors, name + "/"), steps_of(case, name, all_tensors)
        batch = loaded.collate([loaded(s, case["embodiment"]) for s in steps])
        np.testing.assert_array_equal(batch["input_ids"], tensors["batch/input_ids"])
        for k in ("state", "action", "action_mask"):
            np.testing.assert_allclose(batch[k], tensors[f"batch/{k}"], rtol=0, atol=2e-6)
        compared += 1
    assert compared, "no case of processor/cases.json has the settings of saved_processor"


# ---------------------------------------------------------------- tokenizer
def test_tokenizer_facts(bundle, tokenizer):
    facts = json.loads(bundle("processor/tokenizer_cases.json").read_text())
    ours = len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id
    assert ours == tuple(facts[k] for k in ("vocab_size", "pad_id", "eos_id"))
    added = json.loads(bundle("tokenizer/added_tokens.json").read_text())
    assert {t: tokenizer.convert_tokens_to_ids(t) for t in added} == added
    listed = json.loads(bundle("tokenizer/special_tokens_map.json").read_text())
    special = {t["content"] for t in listed["additional_special_tokens"]} | {listed["pad_token"]["content"]}
    ids = [i for t, i in added.items() if t in special]
    plain = [i for t, i in added.items() if t not in special]
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""
    assert tokenizer.decode(plain, skip_special_tokens=True) == tokenizer.decode(plain) != ""


def test_tokenizer_case(words, tokenizer):
    assert tokenizer(words["text"]).input_ids == words["ids"]
    assert PromptEncoder(tokenizer, image_token=IMAGE_PAD).ids(words["text"]).tolist() == words["ids"]


def test_chat_template(bundle, tokenizer):
    "Ours writes what the bundle's writes."
    theirs = json.loads(bundle("tokenizer/chat_template.json").read_text())["chat_template"]
    parts = [dict(type="image"), dict(type="image"), dict(type="text", text="go")]
    chat = [dict(role="user", content=parts), dict(role="assistant", content="yes")]
    write = lambda **kwargs: tokenizer.apply_chat_template(chat, tokenize=False, **kwargs)
    assert write() == write(chat_template=theirs)
    assert write(add_generation_prompt=True) == write(chat_template=theirs, add_generation_prompt=True)


def test_image_processor_settings(bundle):
    said = json.loads(bundle("tokenizer/preprocessor_config.json").read_text())
    assert (said["patch_size"], said["merge_size"], said["temporal_patch_size"]) == (PATCH, MERGE, FRAMES)
    assert said["size"] == dict(longest_edge=QWEN3_VL_PATCHES.most, shortest_edge=QWEN3_VL_PATCHES.least)
    assert {*said["image_mean"], *said["image_std"]} == {0.5}
    video = json.loads(bundle("tokenizer/video_preprocessor_config.json").read_text())
    assert video["patch_size"] == PATCH  # no videos are read here, but of the same patches


# ---------------------------------------------------------------- policy
def test_policy_observations(bundle, tokenizer):
    """The observations of the policy bundle, through the processor of its checkpoint: prompts, and
    actions decoded from the given model output."""
    facts = json.loads(bundle("policy/policy_io.json").read_text())
    io = load_file(bundle("policy/policy_io.safetensors"))
    processor = Gr00tN1d7Processor.from_pretrained(bundle("policy/checkpoint"), tokenizer=tokenizer)
    tag, config = next(iter(processor.modality_configs.items()))
    key = config["language"].modality_keys[0]
    arrays = {k.removeprefix("obs/").replace("/", "."): v for k, v in io.items() if k.startswith("obs/")}
    said = [o["language"] for o in facts["observations"]]
    steps = [{k: v[i] for k, v in arrays.items()} | {key: s} for i, s in enumerate(said)]
    samples = [processor(s, tag) for s in steps]
    assert [s["text"] for s in samples] == facts["chat_texts"]
    raw = {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
    outputs = [k.removesuffix("__normalized") for k in io if k.endswith("__normalized")]
    assert outputs
    for name in outputs:
        states = raw
        if "alone" in name: states = {k: v[[int("sample1" in name)]] for k, v in raw.items()}
        decoded = processor.decode_action(io[f"{name}__normalized"], tag, states)
        for k, v in decoded.items():
            np.testing.assert_allclose(v, io[f"{name}/{k}"], rtol=0, atol=2e-5, err_msg=name)
    rows = processor.as_rows(processor.collate(samples))
    for k in ("input_ids", "attention_mask", "image_grid_thw", "embodiment_id"):
        np.testing.assert_array_equal(rows[k], io[f"train/{k}"])
    np.testing.assert_allclose(rows["state"], io["train/state"], rtol=0, atol=2e-6)
    sums = rows["pixel_values"].double().sum(1)
    np.testing.assert_allclose(sums, io["train/pixel_values_row_sums"], rtol=0, atol=1e-3)


def test_policy_training_batch(reference, bundle, tokenizer):
    "The two steps of the policy bundle with their actions, read from the data set itself."
    facts = json.loads(bundle("policy/policy_io.json").read_text())
    io = load_file(bundle("policy/policy_io.safetensors"))
    data = reference.parent / "datasets" / "gr1.PickNPlace"
    if not data.is_dir(): pytest.skip(f"no data set at {data}")
    processor = Gr00tN1d7Processor.from_pretrained(bundle("policy/checkpoint"), tokenizer=tokenizer)
    tag, config = next(iter(processor.modality_configs.items()))
    ds, key = LeRobotDataset(data), config["language"].modality_keys[0]
    places = [(o["episode"], o["step"], o["language"]) for o in facts["observations"]]
    steps = [read_step(ds, e, i, config) | {key: said} for e, i, said in places]
    batch = processor.collate([processor(s, tag) for s in steps])
    for k in ("state", "action", "action_mask"):
        np.testing.assert_allclose(batch[k], io[f"train/{k}"], rtol=0, atol=2e-6, err_msg=k)
    np.testing.assert_array_equal(batch["input_ids"], io["train/input_ids"])
