"""Names, shapes and precisions of the released 3B model; which of its parameters train; memory while a
checkpoint is read."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gr00t_nb.errors import InputError
from gr00t_nb.model.checkpoints import stored_tensors, weight_files
from gr00t_nb.backbones.eagle import official_eagle_config
from gr00t_nb.families.n1d6 import Gr00tN1d6
from gr00t_nb.families.n1d6_config import Gr00tN1d6Config
from gr00t_nb.families.family import count_parameters

LM_HEAD = "backbone.model.language_model.lm_head.weight"  # in some files, never used
POOLING = (  # in all files, never used: official code may mark it trainable
    "backbone.model.vision_model.vision_model.head."
)


@pytest.fixture(scope="module")
def listing(bundle):
    return json.loads(bundle("state_dict_3b.json").read_text())


@pytest.fixture(scope="module")
def official_config(bundle):
    return json.loads(bundle("config_3b.json").read_text())


def on_meta(config, eagle=None):
    with torch.device("meta"):
        return Gr00tN1d6(config, eagle)


@pytest.fixture(scope="module")
def big():
    return on_meta(Gr00tN1d6Config.size("3b")[0])


def test_config_defaults_are_the_official_ones(official_config):
    from dataclasses import fields
    official = official_config["plain_class_defaults"]
    ours = Gr00tN1d6Config()
    assert {
        f.name: getattr(ours, f.name) for f in fields(ours) if f.name not in ("extra", "given")
    } | {"model_type": "Gr00tN1d6"} == official
    released = Gr00tN1d6Config.from_dict(official_config["released_checkpoint_values"])
    assert {
        k: released.to_dict()[k] for k in official_config["released_checkpoint_overrides"]
    } == official_config["released_checkpoint_overrides"]
    size = Gr00tN1d6Config.size("3b")[0]
    assert {
        f.name: getattr(size, f.name) for f in fields(size) if f.name not in ("extra", "given")
    } | {"model_type": "Gr00tN1d6"} == official_config["released_checkpoint_values"]


def test_eagle_config_holds_the_official_values(official_config):
    official, ours = official_config["eagle_vlm"], official_eagle_config()
    for key, value in ours.items():
        if isinstance(value, dict):
            assert {k: official[key][k] for k in value if k in official[key]} == {
                k: v for k, v in value.items() if k in official[key]
            }
            assert not set(value) - set(official[key]), f"{key}: invented keys"
        else: assert official[key] == value, key


def test_keys_shapes_and_dtypes(listing):
    config = Gr00tN1d6Config.size("3b")[0]
    config.backbone_trainable_params_fp32 = (
        False  # the listing was made before trainable backbone parameters become float32
    )
    ours = {
        n: {"shape": list(p.shape), "dtype": str(p.dtype).removeprefix("torch.")}
        for n, p in on_meta(config).named_parameters()
    }
    official = {n: v for n, v in listing["keys"].items() if n != LM_HEAD}
    assert list(ours) == list(official)
    assert ours == official
    assert not list(on_meta(config).named_buffers())


def test_trainable_backbone_parameters_are_float32(big, listing):
    for name, p in big.named_parameters():
        raised = name.startswith("backbone.") and p.requires_grad
        assert str(p.dtype).removeprefix("torch.") == (
            "float32" if raised else listing["keys"][name]["dtype"]
        ), name


def test_plain_sizes(listing):
    shapes = {n: list(p.shape) for n, p in on_meta(Gr00tN1d6Config()).named_parameters()}
    different = {n: s for n, s in shapes.items() if s != listing["keys"][n]["shape"]}
    assert different == listing["shapes_that_differ_with_plain_class_defaults_29_29_16"]


def test_counts(big, listing):
    names = {n: p.numel() for n, p in big.named_parameters()}
    assert sum(names.values()) == listing["total_parameters_without_lm_head"]
    head = listing["total_parameters"] - listing["total_parameters_without_lm_head"]
    for prefix, count in listing["parameter_counts"].items():
        ours = sum(c for n, c in names.items() if n.startswith(prefix))
        assert ours + (head if LM_HEAD.startswith(prefix) else 0) == count, prefix


def test_what_trains(big, listing):
    "Every combination of flags in the listing, by its name; the unused lm_head and pooling head are counted apart."
    names = {n: p.numel() for n, p in big.named_parameters()}
    head = listing["total_parameters"] - listing["total_parameters_without_lm_head"]
    pooling = sum(c for n, c in names.items() if n.startswith(POOLING))
    for label, expected in listing["trainable"].items():
        config = Gr00tN1d6Config.size("3b")[0]
        name, _, value = (label.split("(")[-1].rstrip(")") if "(" in label else label).partition(
            "="
        )
        setattr(
            config,
            name,
            (
                {"True": True, "False": False}.get(value)
                if value in ("True", "False")
                else float(value) if "." in value else int(value)
            ),
        )
        model = on_meta(config)
        trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        total = count_parameters(model)["total"][1]
        assert (
            total + (head if config.tune_llm else 0) + (pooling if config.tune_visual else 0)
            == expected["trainable_params"]
        ), label
        if "trainable_keys" in expected: assert trainable == expected["trainable_keys"]


def test_saved_config_round_trip(bundle):
    for name in ("tiny_model/config_as_saved_by_reference.json", "policy/checkpoint/config.json"):
        saved = json.loads(bundle(name).read_text())
        assert Gr00tN1d6Config.from_dict(saved).to_dict() == saved


def test_headers_agree_with_the_library(bundle):
    for file in weight_files(bundle("policy/checkpoint")):
        ours = stored_tensors(file)
        with safe_open(file, "pt") as f:
            assert set(ours) == set(f.keys())
            for name, t in ours.items():
                assert torch.Size(t.shape) == torch.Size(f.get_slice(name).get_shape())


def test_checkpoints_with_and_without_the_optional_tensors(bundle, tmp_path):
    "lm_head is passed over; mask_token is taken, passed over or made, as the configuration needs."
    from safetensors.torch import load_file, save_file
    config = json.loads(bundle("tiny_model/config.json").read_text())
    weights = load_file(bundle("tiny_model/model.safetensors"))
    token = "action_head.mask_token"
    base = {k: v for k, v in weights.items() if k != token and not k.endswith("lm_head.weight")}
    def write(folder, tensors, **changes):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / folder / "config.json").write_text(json.dumps(config["gr00t_config"] | changes))
        return tmp_path / folder
    load = lambda path, **kw: Gr00tN1d6.from_pretrained(
        path, vlm_config=config["eagle_config"], **kw
    )
    full, bare = write("full", weights, state_dropout_prob=0.25), write(
        "bare", base, state_dropout_prob=0.0
    )
    assert torch.equal(load(full).action_head.mask_token, weights[token])
    assert not hasattr(load(full, state_dropout_prob=0.0).action_head, "mask_token")
    assert not hasattr(load(bare).action_head, "mask_token")
    assert load(bare, state_dropout_prob=0.5).action_head.mask_token.abs().max() > 0
    for model in (load(full, state_dropout_prob=0.0), load(bare)):
        state = model.state_dict()
        assert set(state) == set(base) and all(torch.equal(state[k], v) for k, v in base.items())
    broken = {k: v for k, v in base.items() if "vlln" not in k} | {"extra.weight": torch.zeros(2)}
    with pytest.raises(
        InputError, match="2 tensors missing .*vlln.* 1 tensor unknown to this model .extra.weight."
    ):
        load(write("broken", broken, state_dropout_prob=0.0))


READER = """
import sys, re, torch
torch.set_num_threads(1)
from gr00t_nb.families.n1d6 import Gr00tN1d6
def kb(key): return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
import gc; gc.collect()
before = kb("VmRSS")
model = Gr00tN1d6.from_pretrained(sys.argv[1])
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((kb("VmHWM") - before) * 1024 / size, size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("shards", ["5GB", "100MB"])
def test_peak_memory_of_loading(tmp_path, shards):
    "A model of 400 MB is read with at most 15 % more memory than its weights need."
    config, eagle = Gr00tN1d6Config.size("tiny")
    config.backbone_embedding_dim, config.select_layer = 768, 8
    eagle["text_config"] |= dict(
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=6,
        head_dim=64,
        vocab_size=46000,
    )
    Gr00tN1d6.from_config(config, eagle).save_pretrained(tmp_path, max_shard_size=shards)
    out = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()
    ratio, size = float(out[0]), int(out[1])
    print(f"\n  {size / 1e6:.0f} MB of weights, peak {ratio:.3f} of that")
    assert size > 3.5e8
    assert ratio <= 1.15
