"""GR00T N1.5 against the official implementation, on the bundle's tiny models.

Sizes and seeds come from the bundle: every folder of `tiny_model/` is a model, every file in it is
compared. Tolerances are relative to a tensor's largest magnitude. The numbers are compared with a
float64 run, in which no CPU's rounding has a say, and float32, which trains, is held to 5e-5.
"""
import json

import codes
import frequencies
import pytest
import torch
from bundles import reference_root
from safetensors.torch import load_file

from gr00t_nb.backbones.eagle25 import centred
from gr00t_nb.families.family import count_parameters
from gr00t_nb.families.n1d5 import Gr00tN1d5
from gr00t_nb.families.n1d5_config import Gr00tN1d5Config
from gr00t_nb.model import layers

FORWARD, GRADIENT, FLOAT32 = 1e-5, 1e-4, 5e-5
LM_HEAD = "backbone.eagle_model.language_model.lm_head.weight"  # tied, never used


def pytest_generate_tests(metafunc):
    if "folder" in metafunc.fixturenames:
        root = reference_root(metafunc.config, "n1d5")
        names = sorted(p.parent.name for p in root.glob("tiny_model/*/config.json"))
        metafunc.parametrize("folder", names, scope="module")
    if "padding" in metafunc.fixturenames:
        metafunc.parametrize("padding", ["zero", "average"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(actual, expected, tolerance, name="", floor=1e-30):
    "Largest difference, relative to the expected tensor's largest magnitude, or to `floor`."
    assert tuple(actual.shape) == tuple(expected.shape), f"{name}: shape {tuple(actual.shape)}"
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), name
        return 0.0
    largest = max(expected.double().abs().max().item(), floor)
    error = (actual.detach().double() - expected.double()).abs().max().item() / largest
    assert error <= tolerance, f"{name}: off by {error:.2e} of the largest magnitude"
    return error


class Tiny:
    "One tiny model of the bundle: configurations, weights, inputs."

    def __init__(self, bundle, folder: str):
        self.file = lambda name: bundle(f"tiny_model/{folder}/{name}")
        config = json.loads(self.file("config.json").read_text())
        self.config, self.eagle = config["model"], config["eagle"]
        self.weights = load_file(self.file("weights.safetensors"))
        self.inputs = load_file(self.file("inputs.safetensors"))
        self.meta = json.loads(self.file("meta.json").read_text())

    def build(self, dtype=torch.float64):
        "The model with its weights, in evaluation mode."
        model = Gr00tN1d5(Gr00tN1d5Config.from_dict(self.config), self.eagle).eval()
        weights = {k: v for k, v in self.weights.items() if k != LM_HEAD}
        model.load_state_dict(weights, strict=True)
        return model.to(dtype)

    def batch(self, dtype=torch.float64) -> dict:
        i = self.inputs
        names = ("state", "action", "action_mask", "embodiment_id")
        return {k: i[k] for k in names} | dict(
            input_ids=i["eagle_input_ids"],
            attention_mask=i["eagle_attention_mask"],
            pixel_values=[i["eagle_pixel_values"].to(dtype)],
            noise=i["train_noise"],
            time=i["train_time"],
        )


@pytest.fixture(scope="module")
def tiny(bundle, folder): return Tiny(bundle, folder)


@pytest.fixture(scope="module")
def io(tiny): return load_file(tiny.file("module_io.safetensors"))


@pytest.fixture(scope="module")
def found(tiny):
    "The frequencies of the sinusoid codes on the machine that made the bundle."
    gradients = load_file(tiny.file("grads.safetensors"))
    return codes.tables(tiny.build(), tiny.batch(), gradients)


@pytest.fixture
def their_frequencies(found, monkeypatch): frequencies.use(monkeypatch, found)


@pytest.fixture
def case(tiny, their_frequencies): return tiny.build(), tiny.batch()


def averaged(module, query, key, value, attention_mask, scaling=None, **kwargs):
    "What transformers 4.51 does on a CPU: a query that may look at nothing gets the mean of all values."
    out = layers.attention(query, key, value, attention_mask, scaling)
    if attention_mask is not None:
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        mean = value.mean(2, keepdim=True).expand_as(out)
        out = torch.where(attention_mask.any(-1, keepdim=True), out, mean)
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def outputs(tiny, padding, monkeypatch):
    "The bundle's answers by one rule for padding, and our attention by the same."
    if padding == "zero": return load_file(tiny.file("outputs.safetensors"))
    ours = layers.AttentionInterface
    monkeypatch.setitem(ours._global_mapping, layers.ATTENTION, averaged)
    return load_file(tiny.file("outputs_sdpa_padding_variant.safetensors"))


# ---------------------------------------------------------------- answers
def answers(model, tiny, dtype) -> dict:
    batch = tiny.batch(dtype)
    seen = model.see(model.prepare(batch))
    noise = tiny.inputs["inference_noise"]
    sampled = model.get_action(batch, noise=noise, keep_path=True)
    steps = {f"action_before_step.{k}": x for k, x in enumerate(sampled["action_path"][:-1])}
    return steps | dict(
        backbone_features=seen["backbone_features"],
        backbone_attention_mask=seen["backbone_attention_mask"].long(),
        loss=model(batch)["loss"].reshape(1),
        action_pred=sampled["action_pred"],
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, FORWARD), (torch.float32, FLOAT32)])
def test_answers(tiny, outputs, their_frequencies, dtype, tolerance, padding):
    got = answers(tiny.build(dtype), tiny, dtype)
    assert set(got) == set(outputs)
    errors = {n: close(got[n], v, tolerance, n) for n, v in outputs.items()}
    said = tiny.meta["loss" if padding == "zero" else "loss_sdpa"]
    assert abs(got["loss"].item() - said) <= tolerance * abs(said)
    print("\n" + "\n".join(f"  {n:28} {e:.1e}" for n, e in errors.items()))


def test_padding_moves_what_the_official_code_says(tiny, bundle):
    "The two rules agree in rows of words, and differ in rows of padding and in actions."
    zero, average = (load_file(tiny.file(f"outputs{n}.safetensors")) for n in ("", "_sdpa_padding_variant"))
    valid = tiny.inputs["eagle_attention_mask"] == 1
    gap = (zero["backbone_features"] - average["backbone_features"]).abs()
    actions = (zero["action_pred"] - average["action_pred"]).abs()
    said = tiny.meta
    assert gap[valid].max() == pytest.approx(said["max_abs_feature_diff_valid_rows_fa2_vs_sdpa"], rel=1e-3)
    assert gap[~valid].max() == pytest.approx(said["max_abs_feature_diff_padded_rows_fa2_vs_sdpa"], rel=1e-3)
    assert actions.max() == pytest.approx(said["max_abs_action_diff_fa2_vs_sdpa"], rel=1e-3)


# ---------------------------------------------------------------- single modules
def modules_of(model, io) -> dict:
    "By the bundle's name: what runs the module on its stored inputs, `take(name)` of them."
    head, eagle = model.action_head, model.vlm
    tower, language, dit = eagle.vision_model["vision_model"], eagle.language_model["model"], head.model
    made = {
        "vision.embeddings": lambda x: tower.embed(centred(x)),
        "vision.post_layernorm": tower.post_layernorm,
        "mlp1": eagle.mlp1,
        "llm.norm": language.norm,
        "eagle_linear": model.backbone.eagle_linear,
        "vlln": head.vlln,
        "vl_self_attention": head.vl_self_attention,
        "state_encoder": head.state_encoder,
        "action_encoder": head.action_encoder,
        "action_decoder": head.action_decoder,
        "dit.timestep_encoder": dit.timestep_encoder,
    }
    made |= {f"vision.layers.{k}": lambda x, m=m: m(x, None) for k, m in enumerate(tower.encoder["layers"])}
    made |= {f"llm.layers.{k}": language_layer(language, m) for k, m in enumerate(language.layers)}
    blocks = head.vl_self_attention.transformer_blocks
    made |= {f"vl_self_attention.blocks.{k}": m for k, m in enumerate(blocks)}
    made["dit"] = whole_dit(dit)
    for k, block in enumerate(dit.transformer_blocks): made |= dit_block(f"dit.blocks.{k}", block)
    return made


def language_layer(language, layer):
    def run(x, attention_mask, cache_position, position_ids):
        length = x.shape[1]
        assert cache_position.tolist() == position_ids[0].tolist() == list(range(length))
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & (attention_mask == 1)[:, None, None]
        return layer(x, attention_mask=mask, position_embeddings=language.rotary(x))
    return run


def whole_dit(dit):
    def run(hidden_states, encoder_hidden_states, encoder_attention_mask, timestep):
        return dit(hidden_states, timestep, dit.context(encoder_hidden_states))
    return run


def dit_block(name, block):
    def attend(x, encoder_hidden_states=None):
        source = x if encoder_hidden_states is None else encoder_hidden_states
        return block.attn1(x, block.attn1.keys_values(source))
    return {
        name: lambda x, temb, encoder_hidden_states=None: block(x, temb, encoder_hidden_states),
        f"{name}.norm1": block.norm1,
        f"{name}.attn1": attend,
        f"{name}.ff": block.ff,
    }


def stored_inputs(io, name) -> tuple[list, dict]:
    "Inputs of a module by place and by name, in float64."
    put = lambda v: v.double() if v.is_floating_point() else v
    own = {k.removeprefix(f"{name}.in."): put(v) for k, v in io.items() if k.startswith(f"{name}.in.")}
    placed = [own[k] for k in sorted(k for k in own if k.isdigit())]
    return placed, {k: v for k, v in own.items() if not k.isdigit()}


def test_modules(case, io):
    "Each module, alone, on the inputs that it had officially."
    model, _ = case
    made, worst = modules_of(model, io), {}
    names = {k.removesuffix(".out") for k in io if k.endswith(".out")}
    assert names == set(made), "the bundle has a module that this test does not run, or lacks one"
    for name in sorted(names):
        placed, named = stored_inputs(io, name)
        worst[name] = close(made[name](*placed, **named), io[f"{name}.out"], FORWARD, name)
    top = sorted(worst.items(), key=lambda item: -item[1])[:5]
    print("\n" + "\n".join(f"  {n:28} {e:.1e}" for n, e in top))


def test_training_pass(case, io):
    "What stands in the file without a module's name, and what each module had from the one before."
    model, batch = case
    out = model(batch)
    ours = dict(
        noisy_action="noisy_actions",
        pred_velocity="predicted_velocity",
        velocity_target="target_velocity",
        t_discretized="t_discretized",
    )
    plain = {k for k in io if not k.endswith(".out") and ".in." not in k}
    assert plain == set(ours)
    for theirs, name in ours.items():
        wanted, got = io[theirs], out[name]
        close(got[:, -wanted.shape[1] :] if wanted.dim() > 1 else got, wanted, FORWARD, theirs)
    close(out["backbone_features"], io["dit.in.encoder_hidden_states"], FORWARD)
    close(out["state_features"], io["state_encoder.out"], FORWARD)


# ---------------------------------------------------------------- training
def floor_of(name: str, gradients: dict) -> float:
    "A bias of keys has no gradient but for rounding: it is held to the others' magnitude."
    if not name.endswith(("to_k.bias", "k_proj.bias")): return 1e-30
    return 1e-2 * max(v.abs().max().item() for v in gradients.values())


def test_gradients(tiny, case):
    model, batch = case
    wanted = load_file(tiny.file("grads.safetensors"))
    model(batch)["loss"].backward()
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert set(got) == set(wanted)
    assert without == set(tiny.meta["params_without_grad"]) - set(tiny.meta["tied_keys"])
    errors = {n: close(got[n], v, GRADIENT, n, floor_of(n, wanted)) for n, v in wanted.items()}
    whole = sum(g.double().square().sum() for g in got.values()).sqrt().item()
    assert whole == pytest.approx(tiny.meta["total_grad_norm"], rel=GRADIENT)
    print(f"\n  worst of {len(errors)} gradients: {max(errors.values()):.1e}")


def test_gradients_with_recomputation(tiny, case):
    "In training mode the pooling head's gradients are there, and zero."
    model, batch = case
    wanted = load_file(tiny.file("grads.safetensors"))
    model.train()
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.0
    model.gradient_checkpointing_enable()
    model(batch)["loss"].backward()
    for name, p in model.named_parameters():
        if name in wanted: close(p.grad, wanted[name], GRADIENT, name, floor_of(name, wanted))
        elif p.grad is not None: assert not p.grad.any(), name
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_trainable_sets(tiny):
    model, sets = tiny.build(), json.loads(tiny.file("trainable_sets.json").read_text())
    assert sets
    for flags, names in sets.items():
        model.set_trainable(**flags_of(flags))
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trains == set(names) - {LM_HEAD}, flags
    tied = len(tiny.meta["tied_keys"]) and model.vlm.language_model["model"].embed_tokens.weight.numel()
    assert tiny.meta["n_params"] in (n := sum(p.numel() for p in model.parameters()), n + tied)


def flags_of(text: str) -> dict[str, bool]:
    "`tune_llm=False,...` as a dict."
    return {k: v == "True" for k, v in (part.split("=") for part in text.split(","))}


def test_frequencies_are_ours_but_for_rounding(found):
    "What the bundle's machine multiplies positions by is what `exp` gives here, but for rounding."
    for (width, include_last), theirs in found.items():
        ours = frequencies.own_frequencies(width // 2, include_last)
        torch.testing.assert_close(ours, theirs, rtol=2**-21, atol=0)


# ---------------------------------------------------------------- files and the full size
def test_files(tiny, tmp_path):
    "A checkpoint under official names, with lm_head beside, loads; configuration and numbers come back."
    model = tiny.build(torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    again = Gr00tN1d5.from_pretrained(tmp_path)
    for name, value in tiny.weights.items():
        if name != LM_HEAD: assert torch.equal(again.state_dict()[name], value), name
    written = again.config.to_dict()
    for part in ("backbone_cfg", "action_head_cfg"):
        held = {k: v for k, v in written[part].items() if k in tiny.config[part]}
        assert held == tiny.config[part]
    rest = {k: v for k, v in tiny.config.items() if k not in ("backbone_cfg", "action_head_cfg")}
    assert {k: written[k] for k in rest} == rest


@pytest.fixture(scope="module")
def listing(bundle): return json.loads(bundle("state_dict_3b.json").read_text())


@pytest.fixture(scope="module")
def big(listing):
    config = Gr00tN1d5Config.from_dict(listing["config"])
    with torch.device("meta"): return Gr00tN1d5(config, listing["eagle_config"])


def test_names_and_shapes(big, listing):
    shapes = {n: list(v.shape) for n, v in big.state_dict().items()}
    wanted = {n: v["shape"] for n, v in listing["state_dict"].items() if n not in listing["tied"]}
    assert shapes == wanted and len(listing["state_dict"]) == listing["n_keys"]


def test_parameter_counts(big, listing):
    for part, wanted in listing["parameter_counts"].items():
        name = part.split(" (")[0]
        owner = big if name == "total" else big.get_submodule(name)
        assert sum(p.numel() for p in owner.parameters()) == wanted, part


def test_trainable_sets_of_the_full_size(big, listing):
    for flags, wanted in listing["trainable_sets"].items():
        if "=" not in flags: continue
        big.set_trainable(**flags_of(flags))
        assert count_parameters(big)["total"][1] == wanted["trainable_params"], flags
        for name, counts in wanted["by_submodule_[trainable,total]"].items():
            owner = big.get_submodule(name).parameters()
            ours = [sum(p.numel() for p in ps if p.requires_grad) for ps in [list(owner)]]
            assert ours == counts[:1], (flags, name)


def test_our_released_size_is_the_published_one(listing):
    "Every value of the published configuration that the network is made of."
    config, eagle = Gr00tN1d5Config.size("3b")
    written, published = config.to_dict(), listing["config"]
    for part in ("backbone_cfg", "action_head_cfg"):
        same = {k: v for k, v in written[part].items() if k in published[part]}
        assert {k: v for k, v in published[part].items() if k != "model_dtype"} == same
    for part in ("vision_config", "text_config"):
        assert {k: eagle[part][k] for k in eagle[part] if k in listing["eagle_config"][part]} == {
            k: v for k, v in listing["eagle_config"][part].items() if k in eagle[part]
        }
