"""The model against the official implementation: every tensor of the tiny model's bundle, and the model part of the policy bundle.

All sizes come from the bundle; variants are enumerated from the files it holds. Tolerances are relative to a tensor's largest magnitude.
"""
import json
import math
import re

import pytest
import torch
from bundles import reference_root
from safetensors.torch import load_file

from gr00t_nb.backbones.eagle import patchify, pixel_unshuffle
from gr00t_nb.model.layers import sinusoid
from gr00t_nb.families.n1d6 import Gr00tN1d6, Gr00tN1d6Config, decayed_parameter_names

FORWARD, GRADIENT, COMPILED, BF16 = 1e-5, 1e-4, 5e-5, 2e-2


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def close(actual, expected, tolerance, name=""):
    "Largest difference, relative to the expected tensor's largest magnitude."
    assert tuple(actual.shape) == tuple(
        expected.shape
    ), f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), name
        return 0.0
    error = (actual.detach().double() - expected.double()).abs().max().item() / max(
        expected.double().abs().max().item(), 1e-30
    )
    assert (
        error <= tolerance
    ), f"{name}: off by {error:.2e} of the largest magnitude, allowed {tolerance:.0e}"
    return error


@pytest.fixture(scope="module")
def tiny(bundle):
    "Configuration, Eagle configuration, weights and inputs of the tiny model."
    config = json.loads(bundle("tiny_model/config.json").read_text())
    return dict(
        config=config["gr00t_config"],
        eagle=config["eagle_config"],
        weights=load_file(bundle("tiny_model/model.safetensors")),
        inputs=load_file(bundle("tiny_model/inputs.safetensors")),
    )


def build(tiny, **changes):
    "A model of the tiny configuration with its weights, in evaluation mode; without state dropout unless asked for."
    config = Gr00tN1d6Config.from_dict(tiny["config"] | {"state_dropout_prob": 0.0} | changes)
    model = Gr00tN1d6(config, tiny["eagle"]).eval()
    weights = {k: v for k, v in tiny["weights"].items() if not k.endswith("lm_head.weight")}
    if config.state_dropout_prob == 0: weights.pop("action_head.mask_token", None)
    model.load_state_dict(weights, strict=True)
    return model


def images_of(inputs, prefix="pixel_values."):
    names = sorted(
        (k for k in inputs if k.startswith(prefix)), key=lambda k: int(k.rsplit(".", 1)[1])
    )
    return [inputs[k] for k in names]


def batch_of(inputs):
    batch = {
        k: inputs[k]
        for k in ("input_ids", "attention_mask", "state", "action", "action_mask", "embodiment_id")
    }
    return batch | dict(
        pixel_values=images_of(inputs), noise=inputs["given.noise"], time=inputs["given.t"]
    )


def traced_forward(model, batch):
    "All tensors that the outputs files name, from one forward pass."
    seen = {}
    head = model.action_head
    hooks = [
        model.backbone.model.register_forward_hook(lambda m, i, o: seen.update(backbone=o)),
        head.model.register_forward_pre_hook(lambda m, i: seen.update(dit_input=i[0])),
        head.model.register_forward_hook(lambda m, i, o: seen.update(dit_output=o)),
    ]
    out = model(batch)
    for h in hooks: h.remove()
    horizon = out["predicted_velocity"].shape[1]
    return out, dict(
        backbone_features=seen["backbone"]["backbone_features"],
        backbone_attention_mask=seen["backbone"]["backbone_attention_mask"],
        image_mask=seen["backbone"]["image_mask"],
        backbone_features_after_vlln=out["backbone_features"],
        state_features=out["state_features"],
        noisy_trajectory=out["noisy_actions"],
        target_velocity=out["target_velocity"],
        t_discretized=out["t_discretized"],
        action_features_with_pos=seen["dit_input"][:, -horizon:],
        dit_input=seen["dit_input"],
        dit_output=seen["dit_output"],
        predicted_velocity=out["predicted_velocity"],
        action_loss_per_element=out["action_loss"],
        loss=out["loss"].reshape(1),
    )


def variants(config):
    "The outputs files of the bundle: every one is a variant of the model."
    folder = reference_root(config) / "tiny_model"
    return (
        sorted(
            p.stem.removeprefix("outputs_")
            for p in folder.glob("outputs_*.safetensors")
            if "euler" not in p.stem
        )
        if folder.is_dir()
        else []
    )


def settings_of(variant, inputs):
    "What a variant's name says about configuration and batch."
    changes, extra = {}, {}
    changes["use_alternate_vl_dit"] = not variant.startswith("plain")
    if m := re.search(r"every(\d+)", variant): changes["attend_text_every_n_blocks"] = int(m[1])
    if "state_dropout" in variant:
        extra["state_dropout"] = inputs["given.state_dropout"]
    return changes, extra


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", variants(metafunc.config))
    if "euler_file" in metafunc.fixturenames:
        folder = reference_root(metafunc.config) / "tiny_model"
        metafunc.parametrize(
            "euler_file",
            (
                sorted(p.name for p in folder.glob("outputs_*euler*.safetensors"))
                if folder.is_dir()
                else []
            ),
        )


@pytest.fixture
def case(tiny, bundle, variant):
    "Model, batch and expected values of one variant."
    changes, extra = settings_of(variant, tiny["inputs"])
    if extra: changes["state_dropout_prob"] = tiny["config"]["state_dropout_prob"] or 0.25
    expected = load_file(bundle(f"tiny_model/outputs_{variant}.safetensors"))
    return build(tiny, **changes), batch_of(tiny["inputs"]) | extra, expected


def test_forward(case, record_property):
    model, batch, expected = case
    out, got = traced_forward(model, batch)
    assert set(got) >= {
        k for k in expected if not k.startswith(("grad.", "get_action."))
    }, "the bundle holds a value that this test does not compute"
    worst = {}
    for name in sorted(set(got) & set(expected)):
        actual, wanted = got[name], expected[name]
        if name.startswith(
            "backbone_features"
        ):  # padding rows too: the official attention gives them zero, and so does ours
            valid = batch["attention_mask"] == 1
            close(actual[valid], wanted[valid], FORWARD, name)
        worst[name] = close(actual, wanted, FORWARD, name)
    record_property("relative_errors", worst)
    print("\n" + "\n".join(f"  {n:32} {e:.1e}" for n, e in worst.items()))


def test_gradients(case):
    model, batch, expected = case
    model(batch)["loss"].backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    wanted = {k.removeprefix("grad."): v for k, v in expected.items() if k.startswith("grad.")}
    assert wanted, "the bundle holds no gradients"
    worst = max(close(grads[n], g, GRADIENT, n) for n, g in wanted.items())
    print(f"\n  worst of {len(wanted)} gradients: {worst:.1e}")


def test_gradients_with_recomputation(case):
    model, batch, expected = case
    model.train()
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.0
    model.gradient_checkpointing_enable()
    model(batch)["loss"].backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for k, v in expected.items():
        if k.startswith("grad."): close(grads[k[5:]], v, GRADIENT, k)


def test_get_action(case, tiny):
    model, batch, expected = case
    got = model.get_action(batch, noise=tiny["inputs"]["given.init_noise"])["action_pred"]
    error = close(got, expected["get_action.action_pred"], FORWARD, "action_pred")
    print(f"\n  sampled actions: {error:.1e}")


def test_euler_steps(tiny, bundle, euler_file):
    model = build(
        tiny,
        **settings_of(euler_file.removeprefix("outputs_").split("_euler")[0], tiny["inputs"])[0]
    )
    expected = load_file(bundle(f"tiny_model/{euler_file}"))
    assert expected
    for name, wanted in expected.items():
        steps = int(re.search(r"steps(\d+)", name)[1])
        got = model.get_action(
            batch_of(tiny["inputs"]),
            noise=tiny["inputs"]["given.init_noise"],
            num_inference_timesteps=steps,
        )
        close(got["action_pred"], wanted, FORWARD, name)


def test_images_stacked_or_apart_are_one_batch(tiny):
    "Equal images in one tensor, one by one, or as the bundle has them: same loss."
    model, batch = build(tiny), batch_of(tiny["inputs"])
    stacked, runs = [], batch["pixel_values"]
    for x in runs:
        if stacked and stacked[-1].shape[1:] == x.shape[1:]:
            stacked[-1] = torch.cat([stacked[-1], x])
        else:
            stacked.append(x)
    assert len(stacked) < len(runs)
    close(model(batch | dict(pixel_values=stacked))["loss"], model(batch)["loss"], 1e-6)


# ---- single modules -------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def modules(bundle):
    return load_file(bundle("tiny_model/modules_alternate.safetensors"))


def test_action_head_modules(tiny, modules):
    model, m, done = build(tiny), modules, set()
    head, dit = model.action_head, model.action_head.model

    def check(name, actual):
        done.add(name)
        close(actual, m[name], FORWARD, name)

    e, tau = m["action_encoder.in.embodiment_id"], m["action_encoder.in.timesteps"]
    check("action_encoder.out", head.action_encoder(m["action_encoder.in.actions"], tau, e))
    code = m["action_encoder.time_encoding"]
    check("action_encoder.time_encoding", sinusoid(tau, code.shape[-1])[:, None].expand_as(code))
    check("state_encoder.out", head.state_encoder(m["state_encoder.in"], e))
    check("action_decoder.out", head.action_decoder(m["action_decoder.in"], e))
    buckets = m["timestep_encoder.in"]
    check(
        "timestep_encoder.sinusoid",
        sinusoid(
            buckets, m["timestep_encoder.sinusoid"].shape[-1], cos_first=True, include_last=True
        ),
    )
    c = dit.timestep_encoder(buckets)
    check("timestep_encoder.out", c)
    x, encoder, mask = (
        m["dit_block.in.hidden"],
        m["dit_block.in.encoder"],
        m["dit_block.in.encoder_mask"],
    )
    for name in [k for k in m if re.fullmatch(r"ada_norm\.\d+\.out", k)]:
        check(name, dit.transformer_blocks[int(name.split(".")[1])].norm1(x, c))
    for name in [k for k in m if re.fullmatch(r"dit_block\.\d+\.\w+\.out", k)]:
        _, i, kind, _ = name.split(".")
        block = dit.transformer_blocks[int(i)]
        kv = None if kind == "self" else block.attn1.keys_values(encoder)
        check(name, block(x, c, kv, mask[:, None, None] if kind == "cross_masked" else None))

    hidden = [x]
    hooks = [
        b.register_forward_hook(lambda _, i, o: hidden.append(o)) for b in dit.transformer_blocks
    ]
    image = tiny["inputs"]["input_ids"] == tiny["eagle"]["image_token_index"]
    check("dit.out", dit(x, buckets, dit.context(encoder, mask, image)))
    for h in hooks: h.remove()
    for i, value in enumerate(hidden): check(f"dit.hidden.{i}", value)
    left = {k for k in m if ".in" not in k} - done
    assert all(k.startswith(("vision", "llm.")) for k in left), left


def vision_values(eagle, images):
    "Embedded patches, last hidden state, 2x2 stacks and connector output, images packed one after the other."
    tower, values = eagle.vision_model["vision_model"], {
        "embedded": [],
        "hidden": [],
        "stacked": [],
    }
    for x in images:
        rows, columns = x.shape[-2] // eagle.patch, x.shape[-1] // eagle.patch
        values["embedded"].append(
            tower.embed(patchify(x, eagle.patch), rows, columns).flatten(0, 1)
        )
        hidden = tower(patchify(x, eagle.patch), rows, columns)
        values["hidden"].append(hidden.flatten(0, 1))
        values["stacked"].append(pixel_unshuffle(hidden, rows, columns).flatten(0, 1))
    values = {k: torch.cat(v) for k, v in values.items()}
    return values | {"connected": eagle.mlp1(values["stacked"])}


def test_vision(tiny, modules):
    eagle = build(tiny).backbone.model
    prefixes = {
        k.split(".")[0]: images_of(modules, k.split(".")[0] + ".in.")
        for k in modules
        if k.startswith("vision")
    }
    assert prefixes
    for prefix, images in prefixes.items():
        images = images or images_of(tiny["inputs"])
        shapes = [
            [x.shape[-2] // eagle.patch, x.shape[-1] // eagle.patch]
            for x in images
            for _ in range(len(x))
        ]
        assert modules[f"{prefix}.spatial_shapes"].tolist() == shapes
        got = vision_values(eagle, images)
        names = {
            "patch_plus_pos_embeddings": "embedded",
            "last_hidden_state": "hidden",
            "pixel_unshuffled": "stacked",
            "mlp1_out": "connected",
        }
        found = [
            k
            for k in modules
            if k.startswith(prefix + ".") and ".in." not in k and not k.endswith("spatial_shapes")
        ]
        for k in found:
            close(got[names[k.split(".")[1]]].view(modules[k].shape), modules[k], FORWARD, k)
        # and as the model runs them: one call for each size, order kept
        close(eagle.unshuffled_patches(images), got["stacked"], 1e-6, f"{prefix}: grouped by size")


def test_language_model(tiny, modules):
    eagle, inputs = build(tiny).backbone.model, tiny["inputs"]
    language = eagle.language_model["model"]
    hidden = []
    hooks = [
        layer.register_forward_hook(lambda _, i, o: hidden.append(o)) for layer in language.layers
    ]
    start = eagle.embed_tokens(inputs["input_ids"], images_of(inputs))
    last = language(start, inputs["attention_mask"] == 1)
    for h in hooks: h.remove()
    states = [start, *hidden[:-1], last]
    names = sorted(
        (k for k in modules if k.startswith("llm.hidden_states.")),
        key=lambda k: int(k.rsplit(".", 1)[1]),
    )
    assert len(names) == len(states)
    for name, value in zip(names, states): close(value, modules[name], FORWARD, name)


# ---- training -------------------------------------------------------------------------------------------------------------------------------

def learning_rate(step, steps, peak, warmup_ratio):
    "Linear warmup, then cosine to zero."
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup: return peak * step / max(1, warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def test_training_trajectory(tiny, bundle):
    t = json.loads(bundle("tiny_model/training_trajectory.json").read_text())
    values = load_file(bundle("tiny_model/training_trajectory.safetensors"))
    model = build(tiny)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert list(parameters) == t["trainable"]
    decay = [n for n in decayed_parameter_names(model) if n in parameters]
    assert decay == t["decayed"]
    assert [n for n in parameters if n not in decay] == t["not_decayed"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters[n] for n in t["decayed"]], "weight_decay": t["weight_decay"]},
            {"params": [parameters[n] for n in t["not_decayed"]], "weight_decay": 0.0},
        ],
        lr=t["peak_lr"],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    for step in range(t["steps"]):
        rate = learning_rate(step, t["steps"], t["peak_lr"], t["warmup_ratio"])
        assert rate == pytest.approx(t["lr_used_at_step"][step], rel=1e-9, abs=1e-12)
        for group in optimizer.param_groups: group["lr"] = rate
        loss = model(
            batch_of(tiny["inputs"])
            | dict(noise=values[f"step{step}.noise"], time=values[f"step{step}.t"])
        )["loss"]
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), t["max_grad_norm"])
        optimizer.step()
        assert loss.item() == pytest.approx(
            t["loss_at_step"][step], rel=1e-4
        ), f"loss at step {step}"
        assert norm.item() == pytest.approx(
            t["grad_norm_before_clip"][step], rel=1e-4
        ), f"gradient norm at step {step}"
    state, final = model.state_dict(), {
        k.removeprefix("final."): v for k, v in values.items() if k.startswith("final.")
    }
    assert final
    worst = max((state[n] - v).abs().max().item() for n, v in final.items())
    print(f"\n  final weights off by at most {worst:.1e}")
    assert worst < 1e-4


# ---- other precisions -----------------------------------------------------------------------------------------------------------------------

def rms_error(actual, expected):
    return ((actual.float() - expected).norm() / expected.norm()).item()


def test_bfloat16(tiny):
    """The whole model in bfloat16 stays near float32: within 2e-2, as largest difference, or as root mean square where bfloat16 cannot do better.

    With eight bits of mantissa, rounding the weights alone, with float32 arithmetic, moves the velocity of random weights by up to
    1.7e-2 of its largest magnitude, and rounding what passes between layers as much again. Flow times are such as bfloat16 holds exactly, 1000 times these too:
    others would fall into another bucket, officially as well.
    """
    model, batch, noise = build(tiny), batch_of(tiny["inputs"]), tiny["inputs"]["given.init_noise"]
    batch["time"] = torch.tensor([(0.125, 0.25, 0.5)[i % 3] for i in range(len(batch["time"]))])
    half, valid = build(tiny).to(torch.bfloat16), batch["attention_mask"] == 1
    (_, wanted), (_, got) = traced_forward(model, batch), traced_forward(half, batch)
    pairs = {
        n: (got[n], wanted[n])
        for n in ("state_features", "loss", "dit_output", "predicted_velocity")
    }
    pairs["backbone_features"] = got["backbone_features"][valid], wanted["backbone_features"][valid]
    pairs["action_pred"] = (
        half.get_action(batch, noise=noise)["action_pred"],
        model.get_action(batch, noise=noise)["action_pred"],
    )
    rms = {n: rms_error(a, b) for n, (a, b) in pairs.items()}
    largest = {
        n: ((a.float() - b).abs().max() / b.abs().max()).item() for n, (a, b) in pairs.items()
    }
    print(
        "\n"
        + "\n".join(
            f"  {n:24} root mean square {rms[n]:.1e}   largest {largest[n]:.1e}" for n in pairs
        )
    )
    for n in ("state_features", "loss", "action_pred"): assert largest[n] < BF16, n
    assert (
        rms["backbone_features"] < BF16
    )  # velocity and DiT output are printed only: theirs is at the edge of what bfloat16 holds


@pytest.mark.filterwarnings("ignore")
def test_compiled_action_head(tiny, bundle, request):
    "torch.compile of the action head as one graph: same velocity and loss."
    name = next((v for v in variants(request.config) if "state_dropout" not in v), "alternate")
    expected = load_file(bundle(f"tiny_model/outputs_{name}.safetensors"))
    model, batch = build(tiny, **settings_of(name, tiny["inputs"])[0]), batch_of(tiny["inputs"])
    prepared = model.prepare(batch)
    with torch.no_grad():
        backbone = model.backbone.model(
            prepared["input_ids"], prepared["attention_mask"], prepared["pixel_values"]
        )
        out = torch.compile(model.action_head, fullgraph=True)(backbone, prepared)
    close(out["predicted_velocity"], expected["predicted_velocity"], COMPILED, "velocity")
    close(out["loss"].reshape(1), expected["loss"], COMPILED, "loss")


# ---- the small complete checkpoint ----------------------------------------------------------------------------------------------------------

def test_policy_checkpoint_loads(bundle):
    checkpoint = bundle("policy/checkpoint")
    eagle = json.loads(bundle("policy/eagle_config.json").read_text())
    model = Gr00tN1d6.from_pretrained(checkpoint, eagle_config=eagle)
    stored = load_file(checkpoint / "model.safetensors")
    state = model.state_dict()
    assert set(state) == {k for k in stored if not k.endswith("lm_head.weight")}
    for name, value in state.items(): assert torch.equal(value, stored[name]), name
