"""The model against the official implementation, on the tiny model's bundle and the model part of the
policy bundle.

All sizes come from the bundle; variants are enumerated from the files it holds. Tolerances are
relative to a tensor's largest magnitude. Every tensor of the bundle is compared with a float64 run,
in which no CPU's rounding has a say: random weights amplify what float32 rounds, differently on
each CPU, by up to 1.6e-5. The float32 that trains is held to 5e-5, as the bundle advises.
"""
import json
import math
import os
import re
from contextlib import nullcontext

import frequencies
import pytest
import torch
from bundles import reference_root
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from gr00t_nb.backbones.eagle import patchify, pixel_unshuffle
from gr00t_nb.model import layers
from gr00t_nb.families.n1d6 import Gr00tN1d6
from gr00t_nb.families.n1d6_config import Gr00tN1d6Config
from gr00t_nb.families.family import decayed_parameter_names

FORWARD, GRADIENT, FLOAT32, BF16 = 1e-5, 1e-4, 5e-5, 2e-2


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def their_frequencies(reference, monkeypatch):
    "The sinusoid codes have the frequencies of the machine that made the bundle."
    path = reference / "tiny_model/modules_alternate.safetensors"
    if path.exists(): frequencies.use(monkeypatch, frequencies.tables(load_file(path)))


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


def build(tiny, dtype=torch.float64, **changes):
    "The tiny model with its weights, in evaluation mode; without state dropout unless asked for."
    config = Gr00tN1d6Config.from_dict(tiny["config"] | {"state_dropout_prob": 0.0} | changes)
    model = Gr00tN1d6(config, tiny["eagle"]).eval()
    weights = {k: v for k, v in tiny["weights"].items() if not k.endswith("lm_head.weight")}
    if config.state_dropout_prob == 0: weights.pop("action_head.mask_token", None)
    model.load_state_dict(weights, strict=True)
    return model.to(dtype)


def images_of(inputs, prefix="pixel_values.", dtype=torch.float64):
    names = [k for k in inputs if k.startswith(prefix)]
    return [inputs[k].to(dtype) for k in sorted(names, key=lambda k: int(k.rsplit(".", 1)[1]))]


def batch_of(inputs, dtype=torch.float64):
    names = ("input_ids", "attention_mask", "state", "action", "action_mask", "embodiment_id")
    batch = {k: inputs[k] for k in names}
    batch |= dict(noise=inputs["given.noise"], time=inputs["given.t"])
    return batch | dict(pixel_values=images_of(inputs, dtype=dtype))


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


def test_forward_in_float32(tiny, bundle, variant):
    "The precision that trains, at the bundle's own tolerance."
    changes, extra = settings_of(variant, tiny["inputs"])
    if extra: changes["state_dropout_prob"] = tiny["config"]["state_dropout_prob"] or 0.25
    expected = load_file(bundle(f"tiny_model/outputs_{variant}.safetensors"))
    batch = batch_of(tiny["inputs"], torch.float32) | extra
    _, got = traced_forward(build(tiny, torch.float32, **changes), batch)
    for name in sorted(set(got) & set(expected)):
        assert not got[name].is_floating_point() or got[name].dtype == torch.float32, name
        close(got[name], expected[name], FLOAT32, name)


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
    "Neighbouring images of one size in one tensor, or each apart: same loss, whatever the bundle has."
    model, batch = build(tiny), batch_of(tiny["inputs"])
    apart = [image[None] for x in batch["pixel_values"] for image in x]
    apart += [apart[-1].clone()]  # two neighbours of one size there are now; the prompt gets its tokens
    ids, mask = batch["input_ids"], batch["attention_mask"]
    token = tiny["eagle"]["image_token_index"]
    patch = model.backbone.model.patch
    more = (apart[-1].shape[-2] // patch // 2) * (apart[-1].shape[-1] // patch // 2)
    # the last sample ends with the copy's tokens, the others are padded on the left as a batch is
    pad, tokens = torch.zeros(len(ids), more, dtype=ids.dtype), torch.full((1, more), token)
    last = torch.cat([ids[-1:], tokens], 1)
    batch["input_ids"] = torch.cat([torch.cat([pad[:-1], ids[:-1]], 1), last])
    ones = torch.ones(1, more, dtype=mask.dtype)
    batch["attention_mask"] = torch.cat(
        [torch.cat([pad[:-1].to(mask.dtype), mask[:-1]], 1), torch.cat([mask[-1:], ones], 1)]
    )
    stacked = []
    for x in apart:
        if stacked and stacked[-1].shape[1:] == x.shape[1:]:
            stacked[-1] = torch.cat([stacked[-1], x])
        else:
            stacked.append(x)
    assert len(stacked) < len(apart)
    losses = [model(batch | dict(pixel_values=images))["loss"] for images in (stacked, apart)]
    close(losses[0], losses[1], 1e-6)


# ---- single modules

@pytest.fixture(scope="module")
def modules(bundle):
    return load_file(bundle("tiny_model/modules_alternate.safetensors"))


@pytest.fixture
def checked(modules):
    "Compares a value with the module's in the bundle, and remembers its name in `checked.done`."
    def check(name, actual):
        check.done.add(name)
        close(actual, modules[name], FORWARD, name)
    check.done = set()
    return check


def doubled(modules):
    return {k: v.double() if v.is_floating_point() else v for k, v in modules.items()}


def test_encoders_and_decoder(tiny, modules, checked):
    head, m = build(tiny).action_head, doubled(modules)
    e, tau = m["action_encoder.in.embodiment_id"], m["action_encoder.in.timesteps"]
    checked("action_encoder.out", head.action_encoder(m["action_encoder.in.actions"], tau, e))
    code = m["action_encoder.time_encoding"]
    ours = layers.sinusoid(tau, code.shape[-1])[:, None].expand_as(code)
    checked("action_encoder.time_encoding", ours)
    checked("state_encoder.out", head.state_encoder(m["state_encoder.in"], e))
    checked("action_decoder.out", head.action_decoder(m["action_decoder.in"], e))
    buckets, width = m["timestep_encoder.in"], m["timestep_encoder.sinusoid"].shape[-1]
    ours = layers.sinusoid(buckets, width, cos_first=True, include_last=True)
    checked("timestep_encoder.sinusoid", ours)
    checked("timestep_encoder.out", head.model.timestep_encoder(buckets))
    names = {k for k in m if k.split(".")[0].endswith("coder") and ".in" not in k}
    assert names == checked.done


def test_dit_modules(tiny, modules, checked):
    dit, m = build(tiny).action_head.model, doubled(modules)
    buckets = m["timestep_encoder.in"]
    c, x = dit.timestep_encoder(buckets), m["dit_block.in.hidden"]
    encoder, mask = m["dit_block.in.encoder"], m["dit_block.in.encoder_mask"]
    for name in [k for k in m if re.fullmatch(r"ada_norm\.\d+\.out", k)]:
        checked(name, dit.transformer_blocks[int(name.split(".")[1])].norm1(x, c))
    for name in [k for k in m if re.fullmatch(r"dit_block\.\d+\.\w+\.out", k)]:
        _, i, kind, _ = name.split(".")
        block = dit.transformer_blocks[int(i)]
        kv = None if kind == "self" else block.attn1.keys_values(encoder)
        checked(name, block(x, c, kv, mask[:, None, None] if kind == "cross_masked" else None))

    hidden = [x]
    for b in dit.transformer_blocks:
        b.register_forward_hook(lambda _, i, o: hidden.append(o))
    image = tiny["inputs"]["input_ids"] == tiny["eagle"]["image_token_index"]
    checked("dit.out", dit(x, buckets, dit.context(encoder, mask, image)))
    for i, value in enumerate(hidden): checked(f"dit.hidden.{i}", value)
    ours = {k for k in m if k.startswith(("ada_norm", "dit")) and ".in" not in k}
    assert ours == checked.done


def test_every_module_is_compared(modules):
    "A kind of module that the bundle has and no test here compares."
    kinds = {k.split(".")[0] for k in modules if not k.split(".")[0].startswith("vision")}
    known = {"ada_norm", "dit", "dit_block", "llm", "timestep_encoder"}
    assert kinds <= known | {"action_encoder", "state_encoder", "action_decoder"}


def test_frequencies_are_ours_but_for_rounding(modules, monkeypatch):
    "What the bundle's machine multiplies positions by is what `exp` gives here, but for rounding."
    for (width, include_last), theirs in frequencies.tables(modules).items():
        ours = frequencies.own_frequencies(width // 2, include_last)
        torch.testing.assert_close(ours, theirs, rtol=2**-22, atol=0)
        monkeypatch.undo()  # the product's own codes
        position = torch.arange(1000)
        phase = position[:, None].float() * ours
        code = layers.sinusoid(position, width, include_last=include_last)
        wanted = torch.cat([phase.sin(), phase.cos()], -1)
        torch.testing.assert_close(code, wanted, rtol=0, atol=2e-4)


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


# ---- training

def learning_rate(step, steps, peak, warmup_ratio):
    "Linear warmup, then cosine to zero."
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup: return peak * step / max(1, warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def trajectory(tiny, values, t, dtype):
    "Loss and gradient norm of each step, and the weights at the end."
    model = build(tiny, dtype)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [parameters[n] for n in t["decayed"]], "weight_decay": t["weight_decay"]},
        {"params": [parameters[n] for n in t["not_decayed"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=t["peak_lr"], betas=(0.9, 0.999), eps=1e-8)
    losses, norms = [], []
    for step in range(t["steps"]):
        rate = learning_rate(step, t["steps"], t["peak_lr"], t["warmup_ratio"])
        assert rate == pytest.approx(t["lr_used_at_step"][step], rel=1e-9, abs=1e-12)
        for group in optimizer.param_groups: group["lr"] = rate
        batch = batch_of(tiny["inputs"], dtype)
        batch |= dict(noise=values[f"step{step}.noise"], time=values[f"step{step}.t"])
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), t["max_grad_norm"])
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms, model.state_dict()


def test_training_trajectory(tiny, bundle):
    """Eight steps of AdamW: losses, gradient norms and final weights.

    Adam divides by the root of small squares, so float32's rounding, which differs between CPUs,
    grows from step to step: by the last it moves the gradient norm by 1e-4 and more. So the norms
    are those of a float64 run, within 1e-4 and twice what float32 moves here.
    """
    t = json.loads(bundle("tiny_model/training_trajectory.json").read_text())
    values = load_file(bundle("tiny_model/training_trajectory.safetensors"))
    model = build(tiny)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable == t["trainable"]
    decay = [n for n in decayed_parameter_names(model) if n in trainable]
    assert decay == t["decayed"]
    assert [n for n in trainable if n not in decay] == t["not_decayed"]

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


# ---- other precisions

def rms_error(actual, expected):
    return ((actual.float() - expected).norm() / expected.norm()).item()


def bfloat16_attention():
    """The kernels for bfloat16. With a lower instruction set than the machine's, torch's fused
    attention prepares its keys for AMX all the same, and then finds no kernel: its plain one serves."""
    lowered = "ATEN_CPU_CAPABILITY" in os.environ
    return sdpa_kernel(SDPBackend.MATH) if lowered else nullcontext()


def test_bfloat16(tiny):
    """The whole model in bfloat16 stays near float32: within 2e-2, as largest difference, or as root
    mean square where bfloat16 cannot do better.

    With eight bits of mantissa, rounding the weights alone, with float32 arithmetic, moves the
    velocity of random weights by up to 1.7e-2 of its largest magnitude, and rounding what passes
    between layers as much again. Flow times are such as bfloat16 holds exactly, 1000 times these
    too: others would fall into another bucket, officially as well.
    """
    model, noise = build(tiny, torch.float32), tiny["inputs"]["given.init_noise"]
    batch = batch_of(tiny["inputs"], torch.float32)
    batch["time"] = torch.tensor([(0.125, 0.25, 0.5)[i % 3] for i in range(len(batch["time"]))])
    half, valid = build(tiny, torch.bfloat16), batch["attention_mask"] == 1
    _, wanted = traced_forward(model, batch)
    with bfloat16_attention(): _, got = traced_forward(half, batch)
    pairs = {
        n: (got[n], wanted[n])
        for n in ("state_features", "loss", "dit_output", "predicted_velocity")
    }
    pairs["backbone_features"] = got["backbone_features"][valid], wanted["backbone_features"][valid]
    exact = model.get_action(batch, noise=noise)["action_pred"]
    with bfloat16_attention(): rounded = half.get_action(batch, noise=noise)["action_pred"]
    pairs["action_pred"] = rounded, exact
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
    from torch._inductor.utils import fresh_cache  # the shared one may hold another CPU's kernels
    name = next((v for v in variants(request.config) if "state_dropout" not in v), "alternate")
    expected = load_file(bundle(f"tiny_model/outputs_{name}.safetensors"))
    model = build(tiny, torch.float32, **settings_of(name, tiny["inputs"])[0])
    batch = batch_of(tiny["inputs"], torch.float32)
    prepared = model.prepare(batch)
    with torch.no_grad(), fresh_cache():
        torch._dynamo.reset()
        backbone = model.backbone.model(
            prepared["input_ids"], prepared["attention_mask"], prepared["pixel_values"]
        )
        out = torch.compile(model.action_head, fullgraph=True)(backbone, prepared)
    close(out["predicted_velocity"], expected["predicted_velocity"], FLOAT32, "velocity")
    close(out["loss"].reshape(1), expected["loss"], FLOAT32, "loss")


# ---- the small complete checkpoint

def test_policy_checkpoint_loads(bundle):
    checkpoint = bundle("policy/checkpoint")
    eagle = json.loads(bundle("policy/eagle_config.json").read_text())
    model = Gr00tN1d6.from_pretrained(checkpoint, vlm_config=eagle)
    stored = load_file(checkpoint / "model.safetensors")
    state = model.state_dict()
    assert set(state) == {k for k in stored if not k.endswith("lm_head.weight")}
    for name, value in state.items(): assert torch.equal(value, stored[name]), name
