"""Names, shapes and precisions of the released N1.7 model, what of it trains, training, and checkpoints."""
import json
import math

import encoder_codes
import frequencies
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_n1d7_model import MODULES, Tiny

from gr00t_nb.backbones.qwen3_vl import official_qwen3_vl_config
from gr00t_nb.families.family import count_parameters, decayed_parameter_names
from gr00t_nb.families.n1d7 import N1D7_UNDECAYED, Gr00tN1d7
from gr00t_nb.families.n1d7_config import Gr00tN1d7Config

LM_HEAD = "backbone.model.lm_head.weight"  # in some files, tied to the embedding
OURS = ("extra", "given", "mask_padding", "vl_self_attention_cfg")  # no field of the official class


@pytest.fixture(scope="module")
def listing(bundle): return json.loads(bundle("state_dict_3b.json").read_text())


@pytest.fixture(scope="module")
def official(bundle): return json.loads(bundle("config_3b.json").read_text())


def on_meta(config) -> Gr00tN1d7:
    with torch.device("meta"): return Gr00tN1d7(config)


@pytest.fixture(scope="module")
def big(): return on_meta(Gr00tN1d7Config.size("3b")[0])


def said(config: Gr00tN1d7Config) -> dict:
    "Every field of the official class; which attention kernel runs is the bundle's own affair."
    ours = {k: v for k, v in vars(config).items() if k not in OURS}
    return ours | dict(model_type=config.model_type, use_flash_attention=False)


def test_defaults_and_released_values(official):
    assert said(Gr00tN1d7Config()) == official["plain_class_defaults"]
    size, values = Gr00tN1d7Config.size("3b")[0], official["released_checkpoint_values"]
    assert said(size) | dict(vl_self_attention_cfg=size.vl_self_attention_cfg) == values
    read = Gr00tN1d7Config.from_dict(values).to_dict()
    assert {k: v for k, v in read.items() if k != "architectures"} == values


def test_vision_language_configuration(official):
    ours, theirs = official_qwen3_vl_config(), official["qwen3vl"]
    assert ours["image_token_id"] == theirs["image_token_id"]
    for part in ("vision_config", "text_config"):
        assert {k: v for k, v in ours[part].items() if k in theirs[part]} == {
            k: v for k, v in theirs[part].items() if k in ours[part]
        }
        assert not set(ours[part]) - set(theirs[part]), f"{part}: invented keys"


def test_names_and_shapes(big, listing):
    ours = {n: list(p.shape) for n, p in big.named_parameters()}
    wanted = {n: v["shape"] for n, v in listing["keys"].items() if n != LM_HEAD}
    assert list(ours) == list(wanted) and ours == wanted
    assert len(ours) == listing["n_keys"] and not list(big.named_buffers())


def test_class_defaults_make_another_model(listing):
    plain, wanted = on_meta(Gr00tN1d7Config()), listing["plain_class_defaults"]
    shapes = {n: list(p.shape) for n, p in plain.named_parameters()}
    assert len(shapes) == wanted["n_keys"]
    assert count_parameters(plain)["total"][0] == wanted["total_parameters"]
    assert all(listing["keys"][n]["shape"] == s for n, s in shapes.items())


def test_counts(big, listing):
    names = {n: p.numel() for n, p in big.named_parameters()}
    assert sum(names.values()) == listing["total_parameters"]
    for prefix, count in listing["parameter_counts"].items():
        assert sum(c for n, c in names.items() if n.startswith(prefix)) == count, prefix


FLAGS = ("tune_llm", "tune_visual", "tune_top_llm_layers", "tune_projector")
FLAGS += ("tune_diffusion_model", "tune_vlln")


def flags_of(label: str) -> dict:
    "What a name in the listing says: one flag alone changed, or one part alone trained."
    plain = {f: getattr(Gr00tN1d7Config(), f) for f in FLAGS}
    if label.startswith("defaults"): return plain
    if label in plain: return plain | {label: True}
    if label == "everything": return plain | dict(tune_llm=True, tune_visual=True)
    if label.startswith("tune_top_llm_layers"):
        return plain | dict(tune_top_llm_layers=int("".join(c for c in label if c.isdigit())))
    kept = next(f for f in FLAGS[3:] if f.removeprefix("tune_").split("_")[0] in label)
    return plain | {f: f == kept for f in FLAGS[3:]}


def test_what_trains(big, listing):
    assert listing["trainable"]
    for label, wanted in listing["trainable"].items():
        big.set_trainable(**flags_of(label))
        total, trains = count_parameters(big)["total"]
        assert trains == wanted["trainable_params"], label
        assert total - trains == wanted["frozen_params"], label
        names = [n for n, p in big.named_parameters() if p.requires_grad]
        prefixes = wanted["trainable_key_prefixes"]
        for prefix, count in prefixes.items():
            assert sum(n.startswith(f"{prefix}.") or n == prefix for n in names) == count, (label, prefix)
        assert sum(prefixes.values()) == len(names), label
    big.set_trainable(**flags_of("defaults"))


def test_precision_of_a_bf16_checkpoint(listing):
    "With load_bf16 the backbone is bfloat16; what trains of it would be float32."
    config = Gr00tN1d7Config.size("3b")[0]
    config.load_bf16, config.tune_llm = True, True
    kinds = {n: p.dtype for n, p in on_meta(config).named_parameters() if n.startswith("backbone.")}
    words = "backbone.model.model.language_model."
    for name, kind in kinds.items():
        assert kind == (torch.float32 if name.startswith(words) else torch.bfloat16), name


# ---------------------------------------------------------------- files
def test_saved_configurations_come_back(bundle):
    for name in (
        "tiny_model/config_as_saved_by_reference.json",
        "policy/checkpoint/config.json",
        "run_files/finetune_run/checkpoint_config.json",
    ):
        saved = json.loads(bundle(name).read_text())
        assert Gr00tN1d7Config.from_dict(saved).to_dict() == saved, name


def test_policy_checkpoint_loads(bundle, tmp_path):
    "Every tensor; with and without the tied matrix; and written again under the same names."
    checkpoint, vlm = bundle("policy/checkpoint"), json.loads(bundle("policy/qwen3vl_config.json").read_text())
    stored = load_file(checkpoint / "model.safetensors")
    model = Gr00tN1d7.from_pretrained(checkpoint, vlm_config=vlm)
    state = model.state_dict()
    assert set(state) == set(stored) - {LM_HEAD}
    for name, value in state.items(): assert torch.equal(value, stored[name]), name
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    again = Gr00tN1d7.from_pretrained(tmp_path).state_dict()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for name, value in state.items(): assert torch.equal(again[name], value), name
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == json.loads((checkpoint / "config.json").read_text())
    tied = tmp_path / "tied"
    tied.mkdir()
    (tied / "config.json").write_text(json.dumps(written))
    words = stored["backbone.model.model.language_model.embed_tokens.weight"]
    save_file(stored | {LM_HEAD: words.clone()}, tied / "model.safetensors")
    loaded = Gr00tN1d7.from_pretrained(tied, vlm_config=vlm).state_dict()
    for name, value in state.items(): assert torch.equal(loaded[name], value), name


# ---------------------------------------------------------------- training
@pytest.fixture(scope="module")
def tiny(bundle): return Tiny(bundle)


def rate_at(step: int, t: dict) -> float:
    "Linear warmup, then cosine to zero."
    warmup, steps = t["warmup_steps"], t["steps"]
    if step < warmup: return t["peak_lr"] * step / warmup
    return t["peak_lr"] * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def trajectory(tiny, values, t, dtype) -> tuple[list, list, dict]:
    "Loss and gradient norm of each step, and the weights at the end."
    model = tiny.build(dtype)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    groups = [dict(params=[parameters[n] for n in t["decayed"]], weight_decay=t["weight_decay"])]
    groups += [dict(params=[parameters[n] for n in t["not_decayed"]], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=t["peak_lr"], betas=(0.9, 0.999), eps=1e-8)
    losses, norms = [], []
    for step in range(t["steps"]):
        assert rate_at(step, t) == pytest.approx(t["lr_used_at_step"][step], rel=1e-9, abs=1e-12)
        for group in optimizer.param_groups: group["lr"] = rate_at(step, t)
        drawn = dict(noise=values[f"step{step}.noise"], time=values[f"step{step}.t"])
        loss = model(tiny.batch(dtype) | drawn)["loss"]
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), t["max_grad_norm"]).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, model.state_dict()


def test_training_trajectory(tiny, bundle, monkeypatch):
    """Eight steps of AdamW: what trains, what decays, losses, gradient norms and final weights.

    Adam divides by the root of small squares, so float32's rounding, which differs between CPUs,
    grows from step to step. So the norms are those of a float64 run, within 1e-4 and twice what
    float32 moves here.
    """
    t = json.loads(bundle("tiny_model/training_trajectory.json").read_text())
    values = load_file(bundle("tiny_model/training_trajectory.safetensors"))
    model, modules = tiny.build(), load_file(bundle(MODULES))
    frequencies.use(monkeypatch, encoder_codes.tables(model.action_head.action_encoder, modules))
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable == t["trainable"]
    decayed = [n for n in decayed_parameter_names(model, N1D7_UNDECAYED) if n in trainable]
    assert decayed == t["decayed"]
    assert [n for n in trainable if n not in decayed] == t["not_decayed"]

    losses, norms, state = trajectory(tiny, values, t, torch.float32)
    _, exact, _ = trajectory(tiny, values, t, torch.float64)
    assert losses == pytest.approx(t["loss_at_step"], rel=1e-4)
    for step, wanted in enumerate(t["grad_norm_before_clip"]):
        allowed = 1e-4 * wanted + 2 * abs(norms[step] - exact[step])
        assert abs(exact[step] - wanted) <= allowed, f"gradient norm at step {step}"
    final = {k.removeprefix("final."): v for k, v in values.items() if k.startswith("final.")}
    assert final
    worst = max((state[n] - v).abs().max().item() for n, v in final.items())
    print(f"\n  final weights off by at most {worst:.1e}")
    assert worst < 1e-4
