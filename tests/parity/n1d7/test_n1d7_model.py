"""GR00T N1.7 against the official implementation, on the tiny model's bundle.

Sizes and seeds come from the bundle; variants are enumerated from the files it holds. Tolerances are
relative to a tensor's largest magnitude. The numbers are compared with a float64 run, in which no
CPU's rounding has a say, and float32, which trains, is held to 5e-5. Rows of padding are compared,
too: the action head looks at them.
"""
import json
import re

import encoder_codes
import frequencies
import pytest
import torch
from bundles import reference_root
from safetensors.torch import load_file

from gr00t_nb.backbones.eagle import centred
from gr00t_nb.backbones.qwen3_vl import block_patches, images_of_patches, patch_angles
from gr00t_nb.backbones.qwen3_vl import stretched_positions, token_positions
from gr00t_nb.families.n1d7 import Gr00tN1d7
from gr00t_nb.families.n1d7_config import Gr00tN1d7Config
from gr00t_nb.model import layers
from gr00t_nb.rtc_settings import RTC

FORWARD, GRADIENT, FLOAT32 = 1e-5, 1e-4, 5e-5
PRECISIONS = [(torch.float64, FORWARD), (torch.float32, FLOAT32)]
MODULES = "tiny_model/modules_main.safetensors"


def variants(config) -> list[str]:
    "Every outputs file with a loss and actions is a variant of the model."
    folder = reference_root(config, "n1d7") / "tiny_model"
    others = ("euler_steps", "rtc", "state_dropout", "single_samples", "right_padded")
    names = (p.stem.removeprefix("outputs_") for p in folder.glob("outputs_*.safetensors"))
    return sorted(n for n in names if n not in others)


def settings_of(variant: str) -> dict:
    "What a variant's name says about the configuration."
    changes = dict(use_alternate_vl_dit="plain" not in variant)
    if m := re.search(r"every(\d+)", variant): changes["attend_text_every_n_blocks"] = int(m[1])
    if "no_vl_self_attention" in variant: changes["vl_self_attention_cfg"] = None
    return changes


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", variants(metafunc.config))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(actual, expected, tolerance, name=""):
    "Largest difference, relative to the expected tensor's largest magnitude."
    assert tuple(actual.shape) == tuple(expected.shape), f"{name}: shape {tuple(actual.shape)}"
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), name
        return 0.0
    largest = max(expected.double().abs().max().item(), 1e-30)
    error = (actual.detach().double() - expected.double()).abs().max().item() / largest
    assert error <= tolerance, f"{name}: off by {error:.2e} of the largest magnitude"
    return error


class Tiny:
    "The tiny model of the bundle: configurations, weights, inputs."

    def __init__(self, bundle):
        self.file = lambda name: bundle(f"tiny_model/{name}")
        config = json.loads(self.file("config.json").read_text())
        self.config, self.vlm = config["gr00t_config"], config["qwen3vl_config"]
        self.weights = load_file(self.file("model.safetensors"))
        self.inputs = load_file(self.file("inputs.safetensors"))

    def build(self, dtype=torch.float64, **changes) -> Gr00tN1d7:
        "The model with its weights, in evaluation mode."
        model = Gr00tN1d7(Gr00tN1d7Config.from_dict(self.config | changes), self.vlm).eval()
        absent = "action_head.vl_self_attention." if model.config.vl_blocks is None else "lm_head"
        weights = {k: v for k, v in self.weights.items() if absent not in k}
        model.load_state_dict(weights, strict=True)
        return model.to(dtype)

    def batch(self, dtype=torch.float64, side="") -> dict:  # side: '' or '_right', of the padding
        i = self.inputs
        batch = {k: i[k] for k in ("state", "action", "action_mask", "embodiment_id", "image_grid_thw")}
        batch |= {k: i[k + side] for k in ("input_ids", "attention_mask")}
        batch |= dict(noise=i["given.noise"], time=i["given.t"])
        return batch | dict(pixel_values=i["pixel_values"].to(dtype))

    @property
    def noise(self) -> torch.Tensor: return self.inputs["given.init_noise"]


@pytest.fixture(scope="module")
def tiny(bundle): return Tiny(bundle)


@pytest.fixture(scope="module")
def modules(bundle): return load_file(bundle(MODULES))


@pytest.fixture(scope="module")
def found(tiny, modules):
    "The frequencies of the sinusoid codes on the machine that made the bundle."
    return encoder_codes.tables(tiny.build().action_head.action_encoder, modules)


@pytest.fixture
def their_frequencies(found, monkeypatch): frequencies.use(monkeypatch, found)


def traced(model, batch) -> dict:
    "All tensors that the outputs files name, from one forward pass and one answer's noise."
    seen, head = {}, model.action_head
    hooks = [
        head.vlln.register_forward_hook(lambda m, i, o: seen.update(raw=i[0], normed=o)),
        head.model.register_forward_pre_hook(lambda m, i: seen.update(dit_input=i[0])),
        head.model.register_forward_hook(lambda m, i, o: seen.update(dit_output=o)),
    ]
    out = model(batch)
    for h in hooks: h.remove()
    same = ("backbone_attention_mask", "image_mask", "state_features", "target_velocity")
    same += ("t_discretized", "predicted_velocity")
    return {k: out[k] for k in same} | dict(
        backbone_features=seen["raw"],
        backbone_features_after_vlln=seen["normed"],
        backbone_features_after_vl_self_attention=out["backbone_features"],
        noisy_trajectory=out["noisy_actions"],
        action_features_with_pos=seen["dit_input"][:, -out["predicted_velocity"].shape[1] :],
        dit_input=seen["dit_input"],
        dit_output=seen["dit_output"],
        action_loss_per_element=out["action_loss"],
        loss=out["loss"].reshape(1),
    )


def told(errors: dict): print("\n" + "\n".join(f"  {n:44} {e:.1e}" for n, e in errors.items()))


# ---------------------------------------------------------------- answers
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_outputs(tiny, variant, their_frequencies, dtype, tolerance):
    expected = load_file(tiny.file(f"outputs_{variant}.safetensors"))
    model, batch = tiny.build(dtype, **settings_of(variant)), tiny.batch(dtype)
    got = traced(model, batch)
    got["get_action.action_pred"] = model.get_action(batch, noise=tiny.noise)["action_pred"]
    wanted = {k: v for k, v in expected.items() if not k.startswith("grad.")}
    assert set(wanted) <= set(got), "the bundle holds a value that this test does not compute"
    told({n: close(got[n], v, tolerance, n) for n, v in wanted.items()})


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients(tiny, variant, their_frequencies, recompute):
    expected = load_file(tiny.file(f"outputs_{variant}.safetensors"))
    model = tiny.build(**settings_of(variant))
    if recompute:
        model.train().gradient_checkpointing_enable()
        for m in model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0.0
    model(tiny.batch())["loss"].backward()
    grads = {f"grad.{n}": p.grad for n, p in model.named_parameters()}
    wanted = {k: v for k, v in expected.items() if k.startswith("grad.")}
    assert wanted
    told({n: close(grads[n], v, GRADIENT, n) for n, v in wanted.items()})


def test_gradients_of_everything(tiny, their_frequencies):
    "With eyes and language model; in evaluation mode the final norm alone gets none."
    wanted = load_file(tiny.file("gradients_tune_all.safetensors"))
    without = json.loads(tiny.file("gradients_tune_all.json").read_text())
    model = tiny.build()
    model.set_trainable(tune_llm=True, tune_visual=True)
    model(tiny.batch())["loss"].backward()
    grads = {f"grad.{n}": p.grad for n, p in model.named_parameters()}
    assert [n[5:] for n, g in grads.items() if g is None] == without["trainable_without_gradient"]
    told({n: close(grads[n], v, GRADIENT, n) for n, v in wanted.items()})


def test_euler_steps(tiny, their_frequencies):
    model, batch = tiny.build(), tiny.batch()
    for name, wanted in load_file(tiny.file("outputs_euler_steps.safetensors")).items():
        steps = int(re.search(r"steps(\d+)", name)[1])
        got = model.get_action(batch, noise=tiny.noise, num_inference_timesteps=steps)
        close(got["action_pred"], wanted, FORWARD, name)


def test_real_time_chunking(tiny, their_frequencies):
    "The official options under our names; what is left of the chunk before is its tail."
    cases = json.loads(tiny.file("outputs_rtc.json").read_text())
    expected = load_file(tiny.file("outputs_rtc.safetensors"))
    assert set(expected) == {f"{c}.action_pred" for c in cases}
    model, before = tiny.build(), tiny.inputs["given.rtc_prev_action"]
    for case, said in cases.items():
        overlap, end = said["rtc_overlap_steps"], said["action_horizon"]
        rates = dict(decay_end=overlap, ramp_rate=said["rtc_ramp_rate"])
        rtc = RTC(said["rtc_frozen_steps"], "ramp", **rates)
        batch = tiny.batch() | dict(prev_actions=before[:, end - overlap : end])
        got = model.get_action(batch, noise=tiny.noise, rtc=rtc)["action_pred"]
        close(got, expected[f"{case}.action_pred"], FORWARD, case)


def test_state_dropout(tiny, their_frequencies):
    "Zeros in training; every other dropout is off."
    expected = load_file(tiny.file("outputs_state_dropout.safetensors"))
    model = tiny.build(state_dropout_prob=0.5).train()
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.0
    dropped = dict(state_dropout=tiny.inputs["given.state_dropout"])
    got = traced(model, tiny.batch() | dropped)
    for name, wanted in expected.items(): close(got[name], wanted, FORWARD, name)
    shown = traced(model.eval(), tiny.batch() | dropped)["state_features"]
    assert shown.abs().amax((1, 2)).gt(0).all()  # nothing is hidden in evaluation


def test_single_samples(tiny, their_frequencies):
    "Alone and without padding: features as in the batch, actions other ones where it was padded."
    expected = load_file(tiny.file("outputs_single_samples.safetensors"))
    model, batch = tiny.build(), tiny.batch()
    together = model.see(model.prepare(batch))["backbone_features"]
    answers = model.get_action(batch, noise=tiny.noise)["action_pred"]
    for i, one in enumerate(split(model, batch)):
        got = traced(model, one)
        valid = batch["attention_mask"][i] == 1
        alone = model.get_action(one, noise=tiny.noise[i : i + 1])["action_pred"]
        got["action_pred"] = alone
        named = {n.split(".", 1)[1]: v for n, v in expected.items() if n.startswith(f"{i}.")}
        assert named
        for name, wanted in named.items(): close(got[name], wanted, FORWARD, f"{i}.{name}")
        close(together[i, valid][None], named["backbone_features"], FORWARD)
        moved = (alone - answers[i]).abs().max().item()
        assert (moved > 1e-2) == (not valid.all()), f"sample {i}: moved by {moved}"


def split(model, batch) -> list[dict]:
    "Each sample with its own images, unpadded."
    eyes, token = model.vlm.visual, model.vlm.image_token_id
    images = images_of_patches(batch["pixel_values"], batch["image_grid_thw"], eyes.patch, eyes.merge)
    samples = []
    for i, ids in enumerate(batch["input_ids"]):
        valid, own = batch["attention_mask"][i] == 1, []
        room = int((ids == token).sum())
        while room > 0:
            own.append(images.pop(0))
            room -= own[-1].shape[-1] * own[-1].shape[-2] // model.vlm.side**2
        one = {k: v[i : i + 1] for k, v in batch.items() if not k.startswith(("pixel", "image"))}
        one |= {k: one[k][:, valid] for k in ("input_ids", "attention_mask")}
        samples.append(one | dict(pixel_values=own))
    assert not images
    return samples


def test_padding_on_the_right(tiny, their_frequencies):
    expected = load_file(tiny.file("outputs_right_padded.safetensors"))
    model, batch = tiny.build(), tiny.batch(side="_right")
    got = traced(model, batch)
    got["get_action.action_pred"] = model.get_action(batch, noise=tiny.noise)["action_pred"]
    told({n: close(got[n], v, FORWARD, n) for n, v in expected.items()})


def test_masked_padding_is_no_padding(tiny):
    "With our switch a sample in a batch answers as it does alone; the official model's does not."
    model, batch = tiny.build(mask_padding=True), tiny.batch()
    together = model.get_action(batch, noise=tiny.noise)["action_pred"]
    for i, one in enumerate(split(model, batch)):
        alone = model.get_action(one, noise=tiny.noise[i : i + 1])["action_pred"]
        close(together[i : i + 1], alone, FORWARD, f"sample {i}")


# ---------------------------------------------------------------- single modules
@pytest.fixture
def checked(modules):
    "Compares a value with the module's in the bundle, and remembers its name in `checked.done`."
    def check(name, actual):
        check.done.add(name)
        close(actual, modules[name], FORWARD, name)
    check.done = set()
    return check


def own(modules, *kinds) -> set[str]:
    "Names of values of these kinds of modules, but for their inputs."
    return {k for k in modules if k.split(".")[0] in kinds and ".in" not in k}


def test_patches_are_those_of_the_pictures(tiny):
    "Our bytes become the official patches, and these our images again."
    eyes, grid = tiny.build().vlm.visual, tiny.inputs["image_grid_thw"]
    names = sorted((k for k in tiny.inputs if k.startswith("image_u8.")), key=lambda k: int(k[9:]))
    made = [block_patches(tiny.inputs[k][None], eyes.patch, eyes.merge, eyes.frames)[0] for k in names]
    close(torch.cat(made), tiny.inputs["pixel_values"], 1e-6)
    back = images_of_patches(tiny.inputs["pixel_values"], grid, eyes.patch, eyes.merge)
    for name, image in zip(names, back, strict=True):
        close(image[0], centred(tiny.inputs[name]), 1e-6, name)


def test_vision(tiny, modules, checked):
    model = tiny.build()
    eyes, batch = model.vlm.visual, model.prepare(tiny.batch())
    values = {k: [] for k in ("patch_embed", "pos_embed", "rotary_angles")}
    blocks = [[] for _ in eyes.blocks]
    for block, kept in zip(eyes.blocks, blocks):
        block.register_forward_hook(lambda m, i, o, kept=kept: kept.append(o.flatten(0, 1)))
    singles = [i[None] for stack in batch["pixel_values"] for i in stack]
    tokens = torch.cat([eyes(image).flatten(1, 2) for image in singles], 1)
    for image in singles:
        grid = image.shape[-2] // eyes.patch, image.shape[-1] // eyes.patch
        positions = stretched_positions(eyes.pos_embed.weight, *grid, eyes.merge)
        values["pos_embed"].append(positions)
        values["patch_embed"].append(eyes.embed(image)[0] - positions)
        values["rotary_angles"].append(patch_angles(*grid, eyes.head_dim, eyes.merge))
    for name, parts in values.items(): checked(f"vision.{name}", torch.cat(parts))
    for k, kept in enumerate(blocks): checked(f"vision.block.{k}.out", torch.cat(kept))
    checked("vision.merged", tokens[0])
    for k, deeper in enumerate(tokens[1:]): checked(f"vision.deepstack.{k}", deeper)
    assert checked.done == own(modules, "vision")
    close(model.vlm.image_features(batch["pixel_values"]), tokens, 1e-6, "grouped by size")


def test_language_model(tiny, modules, checked):
    model = tiny.build()
    qwen, batch = model.vlm, model.prepare(tiny.batch())
    language, states = qwen.language_model, []
    layer_inputs = [m.register_forward_pre_hook(lambda m, i: states.append(i[0])) for m in language.layers]
    last = qwen(batch["input_ids"], batch["attention_mask"], batch["pixel_values"])["backbone_features"]
    for h in layer_inputs: h.remove()
    for k, value in enumerate([*states, last]): checked(f"llm.hidden_states.{k}", value)
    checked("llm.after_final_norm_unused", language.norm(last))
    valid, image = batch["attention_mask"] == 1, batch["input_ids"] == qwen.image_token_id
    sizes = [(len(i), i.shape[-2] // qwen.side, i.shape[-1] // qwen.side) for i in batch["pixel_values"]]
    at = token_positions(valid, image, sizes)
    checked("llm.position_ids", at)
    for name, value in zip(("cos", "sin"), language.rotary(last, at)): checked(f"llm.rope_{name}", value)
    assert checked.done == own(modules, "llm")


def doubled(modules) -> dict:
    return {k: v.double() if v.is_floating_point() else v for k, v in modules.items()}


def test_head_modules(tiny, modules, checked, their_frequencies):
    head, m = tiny.build().action_head, doubled(modules)
    robots, tau = m["action_encoder.in.embodiment_id"], m["action_encoder.in.timesteps"]
    checked("action_encoder.out", head.action_encoder(m["action_encoder.in.actions"], tau, robots))
    checked("state_encoder.out", head.state_encoder(m["state_encoder.in"], robots))
    checked("action_decoder.out", head.action_decoder(m["action_decoder.in"], robots))
    buckets, width = m["timestep_encoder.in"], m["timestep_encoder.sinusoid"].shape[-1]
    code = layers.sinusoid(buckets, width, cos_first=True, include_last=True)
    checked("timestep_encoder.sinusoid", code)
    checked("timestep_encoder.out", head.model.timestep_encoder(buckets))
    x = m["vl_self_attention.hidden.0"]
    checked("vl_self_attention.hidden.0", x)
    for k, block in enumerate(head.vl_self_attention.transformer_blocks):
        x = block(x)
        checked(f"vl_self_attention.hidden.{k + 1}", x)
    encoders = ("action_encoder", "state_encoder", "action_decoder", "timestep_encoder")
    assert checked.done == own(modules, *encoders, "vl_self_attention")


def test_dit_modules(tiny, modules, checked, their_frequencies):
    "The whole DiT on the bundle's tokens, flow times and features."
    model, m = tiny.build(), doubled(modules)
    dit, batch = model.action_head.model, model.prepare(tiny.batch())
    hidden, norms = [m["dit.hidden.0"]], {}
    for k, block in enumerate(dit.transformer_blocks):
        block.norm1.register_forward_hook(lambda _, i, o, k=k: norms.update({k: o}))
        block.register_forward_hook(lambda _, i, o: hidden.append(o))
    last = len(model.action_head.vl_self_attention.transformer_blocks)
    features = m[f"vl_self_attention.hidden.{last}"]
    masks = batch["attention_mask"] == 1, batch["input_ids"] == model.vlm.image_token_id
    out = dit(hidden[0], m["timestep_encoder.in"], dit.context(features, *masks))
    checked("dit.out", out)
    for k, value in enumerate(hidden): checked(f"dit.hidden.{k}", value)
    for name in own(modules, "ada_norm"): checked(name, norms[int(name.split(".")[1])])
    assert checked.done == own(modules, "dit", "ada_norm")


def test_every_module_is_compared(modules):
    known = {"vision", "llm", "action_encoder", "state_encoder", "action_decoder"}
    known |= {"timestep_encoder", "vl_self_attention", "dit", "ada_norm"}
    assert {k.split(".")[0] for k in modules} == known


def test_frequencies_are_ours_but_for_rounding(found):
    "What the bundle's machine multiplies positions by is what `exp` gives here, but for rounding."
    for (width, include_last), theirs in found.items():
        ours = frequencies.own_frequencies(width // 2, include_last)
        torch.testing.assert_close(ours, theirs, rtol=2**-21, atol=0)
