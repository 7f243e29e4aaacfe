"""GR00T N1.5 against FluxVLA's own run of it: its loss, its gradients, real-time chunking, names and flags.

Sizes, seeds and names come from the bundle's `fluxvla/`. What was computed is compared with a float64
run, in which no CPU's rounding has a say: to 1e-5, gradients to 1e-4 of a tensor's largest magnitude.
Guidance through the network's derivative is held as gradients are: it carries rounding on as they do.
"""
import json
import re
from pathlib import Path

import codes
import frequencies
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_n1d5_model import FORWARD, GRADIENT, LM_HEAD, close, flags_of, floor_of

from gr00t_nb.checkpoints.registry import family_of
from gr00t_nb.errors import InputError
from gr00t_nb.families.n1d5 import FLUXVLA_NAMES, RUN_BACKBONE, Gr00tN1d5
from gr00t_nb.families.n1d5_config import Gr00tN1d5Config
from gr00t_nb.files import write_json
from gr00t_nb.model.checkpoints import Misfit, mapped_names, stored_tensors
from gr00t_nb.rtc_settings import RTC

TINY, NVIDIA = "fluxvla/tiny_model", "checkpoint_nvidia_names"
PREDICTIONS = {
    "plain": None,
    "rtc_prefix3": RTC(3, "prefix"),
    "rtc_guidance_exp": RTC(3, "guidance", "exp", decay_end=7),
    "rtc_guidance_linear": RTC(3, "guidance", "linear", decay_end=7),
    "rtc_guidance_vjp": RTC(3, "guidance", "exp", decay_end=7, use_vjp=True),
    "rtc_guidance_defaults": RTC(2, "guidance"),
}


def near(actual, expected, name=""):
    "Equal within 1e-5; gives the largest difference."
    off = (actual.detach().double() - expected.double()).abs().max().item()
    assert actual.shape == expected.shape and off <= FORWARD, f"{name}: off by {off:.1e}"
    return off


def at_fluxvla(name: str) -> str:
    "A parameter's name in FluxVLA's model."
    return next((name.replace(a, b) for a, b in FLUXVLA_NAMES.items() if a in name), name)


class Flux:
    "The tiny model of FluxVLA: configurations, weights, inputs."

    def __init__(self, bundle):
        self.file = lambda name: bundle(f"{TINY}/{name}")
        self.config = json.loads(self.file("config.json").read_text())
        self.keys = json.loads(self.file("keys.json").read_text())
        self.meta = json.loads(self.file("meta.json").read_text())
        self.inputs = load_file(self.file("inputs.safetensors"))
        self.outputs = load_file(self.file("outputs.safetensors"))

    def build(self, dtype=torch.float64, **changes):
        config = Gr00tN1d5Config.from_dict(self.config["cfg"])
        for name, value in changes.items(): setattr(config, name, value)
        model = Gr00tN1d5(config, self.config["eagle"])
        weights = load_file(self.file(f"{NVIDIA}/model.safetensors"))
        model.load_state_dict({k: v for k, v in weights.items() if k != LM_HEAD}, strict=True)
        return model.eval().to(dtype)

    def time(self) -> torch.Tensor:
        "Float64 flow times that fall into the buckets into which they fall in float32."
        given = self.inputs["train_time"]
        bucket, exact = (given * 1000).long(), given.double()
        return torch.where((exact * 1000).long() == bucket, exact, bucket.double() / 1000 + 1e-12)

    def batch(self) -> dict:
        i = self.inputs
        images = i["images"]
        return dict(
            input_ids=i["lang_tokens"],
            attention_mask=i["lang_masks"].long(),
            pixel_values=[images.double().view(-1, 3, *images.shape[2:])],
            state=i["states"][:, None],
            action=i["actions"],
            action_mask=i["action_masks"],
            embodiment_id=i["embodiment_ids"],
            noise=i["train_noise"],
            time=self.time(),
        )


@pytest.fixture(scope="module")
def flux(bundle): return Flux(bundle)


@pytest.fixture(scope="module")
def gradients(flux):
    "By our names."
    stored = load_file(flux.file("grads_head.safetensors"))
    ours = {at_fluxvla(n): n for n, _ in flux.build().named_parameters()}
    return {ours[n]: v for n, v in stored.items()}


@pytest.fixture(autouse=True)
def their_frequencies(flux, gradients, monkeypatch):
    "The sinusoid codes of the machine that made the bundle."
    frequencies.use(monkeypatch, codes.tables(flux.build(), flux.batch(), gradients))


# ---------------------------------------------------------------- numbers
@torch.no_grad()
def trained(flux) -> dict:
    "What our model makes of the passes whose results the bundle names `train*`."
    model, batch, i = flux.build(), flux.batch(), flux.inputs
    return {
        "train": model(batch),
        "train_sample_weight": model(batch | dict(sample_weight=i["sample_weight"])),
        "train_rtc": model(batch | dict(rtc_delay=i["rtc_delays"])),
        "train_no_ori_action_dim": flux.build(ori_action_dim=None)(batch),
    }


def test_losses(flux):
    wanted, compared = flux.outputs, set()
    for name, out in trained(flux).items():
        own = None if "no_ori" in name else flux.config["cfg"]["vla_head"]["ori_action_dim"]
        ours = {f"{name}.loss": out["loss"][None]}
        ours[f"{name}.pred_actions"] = out["predicted_velocity"][..., :own]
        for key in wanted.keys() & ours.keys():
            near(ours[key], wanted[key], key)
            compared.add(key)
        assert abs(out["loss"].item() - flux.meta["losses"][f"{name}.loss"]) <= FORWARD
        near(out["action_loss"].sum() / out["counted"], out["loss"])  # of what a hook is told
    assert compared == {k for k in wanted if k.startswith("train")}


def test_features(flux):
    model, batch = flux.build(), flux.batch()
    with torch.no_grad(): seen, out = model.see(model.prepare(batch)), model(batch)
    near(seen["backbone_features"], flux.outputs["backbone_features"])
    near(out["backbone_features"], flux.outputs["vl_processed"])
    near(out["state_features"], flux.outputs["state_features"])


def test_predictions(flux):
    model, noise = flux.build(), flux.inputs["inference_noise"]
    wanted = {k.removeprefix("predict."): v for k, v in flux.outputs.items() if k.startswith("predict.")}
    assert set(wanted) == set(PREDICTIONS)
    for name, rtc in PREDICTIONS.items():
        batch = flux.batch() | (dict(prev_actions=flux.inputs["prev_actions"]) if rtc else {})
        out = model.get_action(batch, noise=noise, rtc=rtc)["action_pred"]
        if rtc and rtc.use_vjp: error = close(out, wanted[name], GRADIENT, name)
        else: error = near(out, wanted[name], name)
        print(f"  {name:24} {error:.1e}")


def test_gradients(flux, gradients):
    model = flux.build()
    model(flux.batch())["loss"].backward()
    got = {n: p.grad for n, p in model.named_parameters() if n.startswith("action_head.")}
    assert set(got) == set(gradients)
    errors = {n: close(got[n], v, GRADIENT, n, floor_of(n, gradients)) for n, v in gradients.items()}
    print(f"\n  worst of {len(errors)} gradients: {max(errors.values()):.1e}")


# ---------------------------------------------------------------- names and files
def fluxvla_run(flux, folder: Path) -> tuple[Path, dict]:
    "A run's folder as FluxVLA leaves it, and the weights by its names."
    weights = load_file(flux.file(f"{NVIDIA}/model.safetensors"))
    weights.setdefault(LM_HEAD, weights["backbone.eagle_model.language_model.model.embed_tokens.weight"])
    named = {at_fluxvla(n): v.clone() for n, v in weights.items()}
    (folder / "checkpoints").mkdir(parents=True)
    write_json(folder / "config.json", dict(model=flux.config["cfg"], runner=dict(type="FSDPTrainRunner")))
    write_json(folder / RUN_BACKBONE, flux.config["eagle"])
    save_file(named, folder / "checkpoints" / "latest-checkpoint.safetensors")
    torch.save(dict(model=named, global_step=7, epoch=1), folder / "checkpoints" / "step-000007.pt")
    torch.save(named, folder / "checkpoints" / "flat.pt")
    return folder, named


def test_a_run_of_fluxvla_loads(flux, tmp_path):
    "From its folder, from a file in it and from its pickles; all give the numbers of NVIDIA's names."
    run, named = fluxvla_run(flux, tmp_path / "run")
    assert sorted(named) == sorted(flux.keys["state_dict_keys"])
    wanted = flux.build(torch.float32).state_dict()
    inside = run / "checkpoints"
    assert family_of(run).name == "GR00T N1.5"
    for place in (run, inside / "latest-checkpoint.safetensors", inside / "step-000007.pt", inside / "flat.pt"):
        model = Gr00tN1d5.from_pretrained(place)
        assert model.state_dict().keys() == wanted.keys()
        assert all(torch.equal(v, wanted[n]) for n, v in model.state_dict().items()), place
    assert model.config.ori_action_dim == flux.config["cfg"]["vla_head"]["ori_action_dim"]


def test_saved_under_either_naming(flux, tmp_path):
    "FluxVLA's strict reader finds every key of its model, NVIDIA's names are the default."
    model = flux.build(torch.float32)
    model.save_pretrained(tmp_path / "flux", name_mapping=FLUXVLA_NAMES)
    model.save_pretrained(tmp_path / "nvidia")
    stored = stored_tensors(tmp_path / "flux" / "model.safetensors")
    assert sorted(stored) == sorted(flux.keys["state_dict_keys"])
    mapping = flux.keys["named_parameter_to_nvidia_key"]
    ours = stored_tensors(tmp_path / "nvidia" / "model.safetensors")
    assert {mapping[n] for n in stored if n in mapping} == set(ours)
    for folder in ("flux", "nvidia"):
        again = Gr00tN1d5.from_pretrained(tmp_path / folder)
        assert all(torch.equal(v, model.state_dict()[n]) for n, v in again.state_dict().items())
        assert again.config.to_dict() == model.config.to_dict()


def test_other_widths(flux, tmp_path):
    "FluxVLA leaves whole tensors random where widths differ; here what overlaps is copied, and told."
    run, named = fluxvla_run(flux, tmp_path / "run")
    demo = flux.meta["mismatch_demo"]
    own = demo["vla_head.state_encoder.layer1.W"]["model_shape"][1]
    with pytest.warns(UserWarning, match="state_encoder.layer1.W") as said:
        model = Gr00tN1d5.from_pretrained(run, widen=True, max_state_dim=own, max_action_dim=own)
    shapes = {at_fluxvla(n): list(p.shape) for n, p in model.named_parameters()}
    changed = {n for n, s in shapes.items() if s != list(named[n].shape)}
    assert changed == set(demo)
    for name, told in demo.items():
        assert shapes[name] == told["model_shape"] and list(named[name].shape) == told["checkpoint_shape"]
        assert told["checkpoint_key"] in str(said[0].message)
        value = dict(model.named_parameters())[told["checkpoint_key"]]
        common = tuple(slice(n) for n in value.shape)
        assert torch.equal(value, named[name][common]), name
    with pytest.raises(InputError, match="pass widen=True"):
        Gr00tN1d5.from_pretrained(run, max_state_dim=own)


@pytest.mark.parametrize("change, words", [
    (lambda named, name: named.pop(name), "1 tensor missing"),
    (lambda named, name: named.update({name: named[name][:1]}), "1 tensor of another shape"),
    (lambda named, name: named.update({f"{name}.more": named[name].clone()}), "1 tensor unknown"),
])
def test_what_a_mapping_does_not_meet(flux, tmp_path, change, words):
    run, named = fluxvla_run(flux, tmp_path / "run")
    assert "not found in pretrained weights with mapping" in flux.meta["strict_mapping_mismatch"]
    change(named, "vla_head.vlln.weight")
    save_file(named, run / "checkpoints" / "latest-checkpoint.safetensors")
    with pytest.raises(Misfit, match=f"{words}.*vla_head.vlln.weight"): Gr00tN1d5.from_pretrained(run)


def test_a_mapping_that_meets_two(flux, tmp_path):
    run, named = fluxvla_run(flux, tmp_path / "run")
    named["vla.vlln.weight"] = named["vla_head.vlln.weight"].clone()
    save_file(named, run / "checkpoints" / "latest-checkpoint.safetensors")
    both = FLUXVLA_NAMES | {"action_head": "vla"}
    with pytest.raises(Misfit, match="meets two tensors for action_head.vlln.weight"):
        Gr00tN1d5.from_pretrained(run, name_mapping=both)


def test_names_of_the_full_size(bundle):
    "All names and shapes of the released size, and which tensors other widths change."
    listing = json.loads(bundle("fluxvla/name_mapping_3b.json").read_text())
    head = dict(type="FlowMatchingHead", hidden_size=1024, input_embedding_dim=1536)
    head |= dict(num_inference_timesteps=4)
    def shapes(state: int, action: int) -> dict:
        said = dict(vlm_backbone=dict(type="EagleBackbone"), vla_head=head | dict(state_dim=state, action_dim=action))
        config = Gr00tN1d5Config.from_dict(said)
        with torch.device("meta"): model = Gr00tN1d5(config)
        return {n: list(p.shape) for n, p in model.named_parameters()}
    ours = shapes(64, 32)
    theirs = mapped_names(ours, FLUXVLA_NAMES)
    wanted = listing["parameters"]
    assert {theirs[n]: dict(nvidia_key=n, shape=s) for n, s in ours.items()} == wanted
    of_eagle = {k: v for k, v in FLUXVLA_NAMES.items() if k != "backbone.vlm."}  # of other backbones
    pairs = {v.rstrip("."): k.rstrip(".") for k, v in of_eagle.items()}
    assert pairs == listing["name_mapping"]
    assert listing["tied_not_listed"].split()[0] == at_fluxvla(LM_HEAD)
    for said, changed in listing["silently_left_random"].items():
        state, action = (int(re.search(rf"{k}_dim=(\d+)", said)[1]) for k in ("state", "action"))
        other = shapes(state, action)
        found = {theirs[n]: dict(model=s, checkpoint=ours[n]) for n, s in other.items() if s != ours[n]}
        assert found == changed, said


# ---------------------------------------------------------------- what trains
def test_freeze_flags(bundle):
    "FluxVLA's two flags, by sub-module; weight decay is for tensors of two dimensions that are no biases."
    listing = json.loads(bundle("fluxvla/extra/freeze_flags.json").read_text())
    decays = next(k for k in listing if k.startswith("weight_decay_applies_to"))
    names = listing.pop(decays)
    count = lambda part: 1 + max(int(n.split(f"{part}.")[1].split(".")[0]) for n in names if f"{part}." in n)
    config, eagle = Gr00tN1d5Config.size("tiny")
    eagle["vision_config"]["num_hidden_layers"] = count("encoder.layers")
    config.select_layer = eagle["text_config"]["num_hidden_layers"] = count("model.layers")
    config.diffusion_model_cfg["num_layers"] = count("vla_head.model.transformer_blocks")
    config.vl_self_attention_cfg["num_layers"] = count("vl_self_attention.transformer_blocks")
    with torch.device("meta"): model = Gr00tN1d5(config, eagle)
    own = {at_fluxvla(n): p for n, p in model.named_parameters()}
    assert {n for n, p in own.items() if p.dim() > 1 and not n.endswith(".bias")} == set(names)
    for flags, parts in listing.items():
        frozen = flags_of(flags)["freeze_vlm_backbone"]  # there is no projector module to be frozen
        model.set_trainable(tune_llm=not frozen, tune_visual=not frozen)
        for part, (trains, total) in parts.items():
            assert trains in (0, total)
            found = {p.requires_grad for n, p in own.items() if n.startswith(part + ".")}
            assert found == {trains > 0}, (flags, part)
        assert all(any(n.startswith(part + ".") for part in parts) for n in own)
