"""The whole processor against the official one: images, prompts, ids, numbers, batches, decoded
actions, saved files, tokenizer."""
import json
import math
import shutil

import numpy as np
import pytest
import torch
from bundles import json_of, reference_root, tensor_names
from safetensors.numpy import load_file

from gr00t_nb.processing.images import eval_transform
from gr00t_nb.data.lerobot import LeRobotDataset
from gr00t_nb.data.steps import read_step
from gr00t_nb.processing.processor import Gr00tProcessor
from gr00t_nb.processing.prompts import (
    GROOT_TOKENS,
    PromptEncoder,
    add_groot_tokens,
    expand_images,
    image_tokens,
    load_tokenizer,
)
from gr00t_nb.modality_configs import ModalityConfig


def pytest_generate_tests(metafunc):
    def params(name, entries):
        return entries or [pytest.param(None, marks=pytest.mark.skip(f"no cases in {name}"))]
    if "case" in metafunc.fixturenames:
        cases = json_of(metafunc.config, "processor/cases.json", {})
        if metafunc.function.__name__ == "test_decode":
            tensors = tensor_names(metafunc.config, "processor/cases.safetensors")
            cases = {n: c for n, c in cases.items() if f"{n}/decode/model_output" in tensors}
        metafunc.parametrize(
            "case",
            params("processor/cases.json", [pytest.param(c, id=n) for n, c in cases.items()]),
        )
    if "words" in metafunc.fixturenames:
        cases = json_of(metafunc.config, "processor/tokenizer_cases.json", {}).get("cases", [])
        metafunc.parametrize(
            "words",
            params(
                "processor/tokenizer_cases.json",
                [pytest.param(c, id=repr(c["text"])[:30]) for c in cases],
            ),
        )
    if "saved" in metafunc.fixturenames:
        root = reference_root(metafunc.config)
        places = [
            n
            for n in ("processor/saved_processor", "policy/checkpoint")
            if (root / n / "processor_config.json").exists()
        ]
        metafunc.parametrize("saved", params("processor/saved_processor", places))


def same_image(ours, theirs, case, what=""):
    "Equal; where torch scales (without albumentations), off by one level in at most 0.1 %, as CPUs round."
    exact = case["processor"].get("use_albumentations", True)
    if exact: return np.testing.assert_array_equal(ours, theirs, what)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, what
    off = np.abs(ours.astype(int) - theirs.astype(int))
    assert off.max() <= 1 and (off > 0).mean() <= 1e-3, f"{what}: {(off > 0).mean():.2%} differ"


@pytest.fixture(scope="module")
def tokenizer(bundle): return load_tokenizer(bundle("tokenizer"))


@pytest.fixture(scope="module")
def all_tensors(bundle) -> dict: return load_file(bundle("processor/cases.safetensors"))


@pytest.fixture
def tensors(request, all_tensors) -> dict:
    "The case's tensors, without its name."
    prefix = request.node.callspec.id + "/"
    return {k.removeprefix(prefix): v for k, v in all_tensors.items() if k.startswith(prefix)}


def inside(tensors, prefix) -> dict:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def statistics_of(reference, case) -> dict:
    "The bundle's processors were all made with the statistics of its saved processor."
    path = reference / "processor/saved_processor/statistics.json"
    if not path.exists(): pytest.skip(f"{path} is absent")
    return json.loads(path.read_text())


@pytest.fixture
def processor(case, reference, tokenizer) -> Gr00tProcessor:
    configs = {k: ModalityConfig.from_json(v) for k, v in case["modality_configs"].items()}
    return Gr00tProcessor(
        {case["embodiment"]: configs},
        statistics_of(reference, case),
        tokenizer=tokenizer,
        **case["processor"]
    )


def steps_of(case, tensors) -> list[dict]:
    "Steps put together from the raw arrays."
    language = case["modality_configs"]["language"]["modality_keys"][0]
    kinds = {"raw_image": "video", "raw_state": "state", "raw_action": "action"}
    return [
        {
            f"{kinds[kind]}.{key}": v
            for kind in kinds
            for key, v in inside(tensors, f"{i}/{kind}/").items()
        }
        | {language: s["raw_text"]}
        for i, s in enumerate(case["samples"])
    ]


def test_samples(case, tensors, processor):
    for i, (step, want) in enumerate(zip(steps_of(case, tensors), case["samples"])):
        sample = processor(step, case["embodiment"])
        assert sample["text"] == want["chat_text"]
        assert len(sample["images"]) == want["n_images"]
        assert sample["embodiment_id"] == want["embodiment_id"]
        for j, image in enumerate(sample["images"]):
            same_image(image, tensors[f"{i}/image_after_multiple_of_28_resize/{j}"], case)
        expanded = expand_images(
            sample["text"], [image_tokens(*x.shape[:2]) for x in sample["images"]]
        )
        assert expanded == want["expanded_text"]
        np.testing.assert_array_equal(
            processor.encoder.ids(expanded), tensors[f"{i}/input_ids_alone"].reshape(-1)
        )
        for k in ("state", "action", "action_mask"):
            assert sample[k].dtype == np.float32
            np.testing.assert_allclose(sample[k], tensors[f"{i}/{k}"], rtol=0, atol=1e-6, err_msg=k)


def test_images_before_patches(case, tensors, processor):
    settings = {
        k: processor.settings[k]
        for k in (
            "shortest_image_edge",
            "crop_fraction",
            "image_crop_size",
            "image_target_size",
            "use_albumentations",
        )
    }
    video = case["modality_configs"]["video"]
    for i in range(len(case["samples"])):
        frames = [
            tensors[f"{i}/raw_image/{v}"][t]
            for t in range(len(video["delta_indices"]))
            for v in video["modality_keys"]
        ]
        for j, image in enumerate(eval_transform(frames, **settings)):
            same_image(image, tensors[f"{i}/image_after_transform/{j}"], case)


def test_training_keeps_the_numbers(case, tensors, processor):
    "In training mode only the images are random; without actions it refuses."
    for i, step in enumerate(steps_of(case, tensors)):
        sample = processor(step, case["embodiment"], training=True, rng=np.random.default_rng(i))
        for k in ("state", "action", "action_mask"):
            np.testing.assert_allclose(sample[k], tensors[f"{i}/{k}"], rtol=0, atol=1e-6)
        for j, image in enumerate(sample["images"]):
            assert image.shape == tensors[f"{i}/image_after_multiple_of_28_resize/{j}"].shape
        with pytest.raises(ValueError, match="lacks action"):
            processor(
                {k: v for k, v in step.items() if not k.startswith("action.")},
                case["embodiment"],
                training=True,
                rng=np.random.default_rng(i),
            )


def test_batch(case, tensors, processor):
    batch = processor.collate([processor(s, case["embodiment"]) for s in steps_of(case, tensors)])
    want = inside(tensors, "batch/")
    for k in ("input_ids", "attention_mask", "embodiment_id"):
        assert batch[k].dtype == torch.int64
        np.testing.assert_array_equal(batch[k], want[k])
    for k in ("state", "action", "action_mask"):
        assert batch[k].dtype == torch.float32
        np.testing.assert_allclose(batch[k], want[k], rtol=0, atol=1e-6)
    images = [x for stack in batch["pixel_values"] for x in stack]
    pixels = {k: v for k, v in want.items() if k.startswith("pixel_values.")}
    assert len(images) == len(pixels)
    for j, x in enumerate(images):
        assert x.dtype == torch.uint8
        if "image_sizes" in want: assert list(x.shape[1:]) == want["image_sizes"][j].tolist()
        levels = (pixels[f"pixel_values.{j}"] * 0.5 + 0.5) * 255
        np.testing.assert_allclose(levels, levels.round(), rtol=0, atol=1e-3)
        thinned = x.numpy()[None, :, ::9, ::9]
        same_image(thinned, levels.round().astype(np.uint8), case, f"picture {j}")
    assert (batch["input_ids"] == processor.encoder.image_token_id).sum() == sum(
        image_tokens(*x.shape[1:]) for x in images
    )


def test_decode(case, tensors, processor):
    want = inside(tensors, "decode/")
    steps = steps_of(case, tensors)
    raw = {
        k: np.stack([s[f"state.{k}"] for s in steps])
        for k in case["modality_configs"]["state"]["modality_keys"]
    }
    for prediction in (want["model_output"], torch.from_numpy(want["model_output"])):
        got = processor.decode_action(prediction, case["embodiment"], raw)
        assert list(got) == case["modality_configs"]["action"]["modality_keys"]
        for k in got:
            assert got[k].dtype == np.float32
            # "first rows only": the bundle may keep fewer rows than the chunk has
            np.testing.assert_allclose(got[k][:, :want[k].shape[1]], want[k], rtol=1e-6, atol=1e-6)


def meaning(x):
    "JSON with NaN made comparable."
    if isinstance(x, dict): return {k: meaning(v) for k, v in x.items()}
    if isinstance(x, list): return [meaning(v) for v in x]
    return "NaN" if isinstance(x, float) and math.isnan(x) else x


def test_saved_round_trip(saved, reference, tokenizer, tmp_path):
    "load-save-load-save: the files mean what the official ones mean, the tokenizer travels along."
    source = reference / saved
    first = Gr00tProcessor.from_pretrained(source, tokenizer=tokenizer)
    first.save_pretrained(tmp_path / "a")
    second = Gr00tProcessor.from_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    for name in ("processor_config.json", "statistics.json"):
        want = meaning(json.loads((source / name).read_text()))
        for copy in ("a", "b"):
            assert meaning(json.loads((tmp_path / copy / name).read_text())) == want
    ids = (
        json.loads((source / "embodiment_id.json").read_text())
        if (source / "embodiment_id.json").exists()
        else {}
    )
    assert ids.items() <= json.loads((tmp_path / "b/embodiment_id.json").read_text()).items()
    assert second.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_saved_processor_gives_the_same(reference, bundle, tokenizer, all_tensors):
    "The saved official files give the numbers of the case that has their settings."
    loaded = Gr00tProcessor.from_pretrained(
        bundle("processor/saved_processor/processor_config.json").parent, tokenizer=tokenizer
    )
    cases = json.loads(bundle("processor/cases.json").read_text())
    fits = [
        (n, c)
        for n, c in cases.items()
        if all(loaded.settings.get(k) == v for k, v in c["processor"].items())
        and {m: x.to_json() for m, x in loaded.modality_configs.get(c["embodiment"], {}).items()}
        == c["modality_configs"]
    ]
    if not fits: pytest.skip("no case of processor/cases.json has the settings of saved_processor")
    for name, case in fits:
        tensors = inside(all_tensors, name + "/")
        batch = loaded.collate([loaded(s, case["embodiment"]) for s in steps_of(case, tensors)])
        np.testing.assert_array_equal(batch["input_ids"], tensors["batch/input_ids"])
        for k in ("state", "action", "action_mask"):
            np.testing.assert_allclose(batch[k], tensors[f"batch/{k}"], rtol=0, atol=1e-6)


def test_tokenizer_facts(bundle, tokenizer):
    facts = json.loads(bundle("processor/tokenizer_cases.json").read_text())
    assert (
        len(tokenizer),
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.padding_side,
    ) == tuple(facts[k] for k in ("vocab_size", "pad_id", "eos_id", "padding_side"))


def test_tokenizer_case(words, tokenizer):
    assert tokenizer(words["text"]).input_ids == words["ids"]
    assert PromptEncoder(tokenizer).ids(words["text"]).tolist() == words["ids"]


def test_tokenizer_batch(bundle, tokenizer):
    cases = json.loads(bundle("processor/tokenizer_cases.json").read_text())["cases"]
    batch = PromptEncoder(tokenizer)([c["text"] for c in cases])
    np.testing.assert_array_equal(batch["input_ids"], [c["ids_padded_in_batch"] for c in cases])
    np.testing.assert_array_equal(batch["attention_mask"], [c["mask"] for c in cases])


def test_tokens_are_added_to_plain_qwen(bundle, tokenizer, tmp_path):
    """The official vocabulary without the eleven tokens of N1.6, as the hub has it, gets them back with
    the official ids; a saved copy keeps them."""
    source, plain = bundle("tokenizer"), tmp_path / "plain"
    plain.mkdir()
    for name in ("vocab.json", "merges.txt"): shutil.copy(source / name, plain / name)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        i: t for i, t in config["added_tokens_decoder"].items() if t["content"] not in GROOT_TOKENS
    }
    config["additional_special_tokens"] = [
        t for t in config["additional_special_tokens"] if t not in GROOT_TOKENS
    ]
    config.pop("auto_map", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    added = load_tokenizer(plain)
    assert added.get_vocab() == tokenizer.get_vocab()
    added.save_pretrained(tmp_path / "saved")
    text = (
        "<|im_start|>user\nPick it up<image 1><img><IMG_CONTEXT><IMG_CONTEXT></img>"
        " <think>😀<|im_end|>\n"
    )
    for t in (added, load_tokenizer(tmp_path / "saved"), add_groot_tokens(load_tokenizer(source))):
        assert t(text).input_ids == tokenizer(text).input_ids


def test_policy_observations(bundle, tokenizer):
    """The observations of the policy bundle, through the processor of its checkpoint: prompts, and
    actions decoded from the given model output."""
    facts = json.loads(bundle("policy/policy_io.json").read_text())
    io = load_file(bundle("policy/policy_io.safetensors"))
    processor = Gr00tProcessor.from_pretrained(
        bundle("policy/checkpoint/processor_config.json").parent, tokenizer=tokenizer
    )
    embodiment = next(iter(processor.modality_configs))
    language = processor.modality_configs[embodiment]["language"].modality_keys[0]
    n = len(facts["observations"])
    arrays = {
        k.removeprefix("obs/").replace("/", "."): v
        for k, v in io.items()
        if k.startswith(("obs/video", "obs/state"))
    }
    steps = [
        {k: v[i] for k, v in arrays.items()} | {language: facts["observations"][i]["language"]}
        for i in range(n)
    ]
    samples = [processor(s, embodiment) for s in steps]
    assert [s["text"] for s in samples] == facts["chat_texts"]
    raw = {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}
    decoded = processor.decode_action(io["normalized_action_pred_float32_inputs"], embodiment, raw)
    for k, v in decoded.items():
        np.testing.assert_allclose(v, io[f"action_float32_inputs/{k}"], rtol=0, atol=2e-5)
    batch = processor.collate(samples)
    for k in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(batch[k], io[f"train/{k}"])
    np.testing.assert_allclose(batch["state"], io["train/state"], rtol=0, atol=1e-6)


def test_policy_training_batch(reference, bundle, tokenizer):
    "The two steps of the policy bundle with their actions, read from the data set itself."
    facts, io = json.loads(bundle("policy/policy_io.json").read_text()), load_file(
        bundle("policy/policy_io.safetensors")
    )
    data = reference.parent / "datasets" / "gr1.PickNPlace"  # "the data set all of this uses"
    if not data.is_dir(): pytest.skip(f"no data set at {data}")
    processor = Gr00tProcessor.from_pretrained(
        bundle("policy/checkpoint/processor_config.json").parent, tokenizer=tokenizer
    )
    embodiment, config = next(iter(processor.modality_configs.items()))
    ds = LeRobotDataset(data)
    steps = [
        read_step(ds, o["episode"], o["step"], config) | {
            config["language"].modality_keys[0]: o["language"]
        }
        for o in facts["observations"]
    ]
    batch = processor.collate([processor(s, embodiment) for s in steps])
    for k in ("state", "action", "action_mask"):
        np.testing.assert_allclose(batch[k], io[f"train/{k}"], rtol=0, atol=1e-6, err_msg=k)
    np.testing.assert_array_equal(batch["input_ids"], io["train/input_ids"])
