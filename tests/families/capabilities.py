"""A test for each capability that a family may declare.

`test(family, folder, sample, tmp_path)`: folder is a tiny checkpoint that knows the sample's robot.
"""
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import TAG, batch_of

from gr00t_nb.engine.first_look import FirstLook
from gr00t_nb.errors import InputError
from gr00t_nb.loading.features import feature_batch
from gr00t_nb.rtc_settings import RTC
from gr00t_nb.modality_configs import ModalityConfig
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.processing.batches import split_batch


def loss_of(model, batch) -> torch.Tensor: return model(batch)["loss"]


def flow(family, folder, sample, tmp_path):
    "The draws belong to the sample, and decide the loss."
    config, model = family.read_config(folder), family.load_model(folder)
    shape = family.chunk_shape(config)
    many, alone = (family.draw_flow(config, i, seed=3) for i in ([5, 7, 11], [7]))
    assert many["noise"].shape == (3, *shape) and many["time"].shape == (3,)
    for k in alone: assert torch.equal(alone[k][0], many[k][1])
    assert not torch.equal(many["noise"][1], family.draw_flow(config, [7], seed=4)["noise"][0])
    with torch.no_grad():
        batches = [batch_of(family, folder, sample.steps, seed) for seed in (1, 1, 2)]
        losses = [loss_of(model, b) for b in batches]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def denoising(family, folder, sample, tmp_path):
    "The path begins with the noise and ends in the answer; the number of steps can be chosen."
    policy = Gr00tPolicy(TAG, folder, device="cpu", round_inputs=False)
    noise, steps = policy.draw_noise(0), sample.steps[:2]
    for n in (policy.num_inference_timesteps, 2):
        policy.num_inference_timesteps = n
        points, headings = policy.denoise(steps, noise)
        answer = policy.predict(steps, noise)
        for group, a in answer.items():
            assert points[group].shape == (n + 1, *a.shape)
            assert headings[group].shape == (n, *a.shape)
            assert np.array_equal(points[group][-1], a)
    other = policy.predict(steps, noise, num_inference_timesteps=1)
    assert any(np.abs(other[g] - answer[g]).max() > 1e-6 for g in answer)


def state_dropout(family, folder, sample, tmp_path):
    "A hidden state has no influence on the loss in training; one that is not hidden has."
    model = family.load_model(folder, state_dropout_prob=0.5).train()
    batch = batch_of(family, folder, sample.steps, state_dropout_prob=0.5)
    assert batch["state_dropout"].dtype == torch.bool
    moved = batch | dict(state=batch["state"] + 1)
    for hidden in (True, False):
        losses = []
        for b in (batch, moved):
            torch.manual_seed(0)  # of dropout
            b = b | dict(state_dropout=torch.full((len(b["state"]),), hidden))
            losses.append(loss_of(model, b).item())
        assert (losses[0] == losses[1]) == hidden


def dropout(family, folder, sample, tmp_path):
    "Without dropout two passes in training agree, with it they do not; and the file remembers it."
    model, batch = family.load_model(folder), batch_of(family, folder, sample.steps)
    for p in (0.5, 0.0):
        family.set_dropout(model, p)
        a, b = (loss_of(model.train(), batch).item() for _ in range(2))
        assert (a == b) == (p == 0)
        model.save_pretrained(tmp_path / "again")
        again = family.load_model(tmp_path / "again").train()
        a, b = (loss_of(again, batch).item() for _ in range(2))
        assert (a == b) == (p == 0)


def embodiment_rows(family, folder, sample, tmp_path):
    "Training one robot's rows changes them alone, and the checkpoint stays whole."
    model, batch = family.load_model(folder), batch_of(family, folder, sample.steps)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    row = int(batch["embodiment_id"][0])
    loss = loss_of(model, batch).item()
    assert family.train_rows(model, [row]) > 0
    assert abs(loss_of(model, batch).item() - loss) <= 1e-5 * loss
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    loss_of(model, batch).backward()
    optimizer.step()
    after, held = model.state_dict(), dict(model.named_parameters())
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    tables = [k for k in before if held[k].shape != before[k].shape]
    for k in tables:
        changed = (before[k] != after[k]).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == [row], k
    assert tables
    model.save_pretrained(tmp_path / "rows")
    loaded = family.load_model(tmp_path / "rows").state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in after.items())


def gradient_checkpointing(family, folder, sample, tmp_path):
    "Computing blocks again changes no number: those of a part, or all."
    batch, found = batch_of(family, folder, sample.steps), []
    last = list(family.blocks)[-1:]
    for parts in ([], last, None):  # nothing, a part, all
        model = family.load_model(folder).train()
        family.recompute(model, parts)
        on = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        assert on if parts is None else len(on) == len(parts)
        torch.manual_seed(0)
        loss = loss_of(model, batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for other in found[1:]:
        assert len(found[0]) == len(other) > 1 and all(map(torch.equal, found[0], other))


def widening(family, folder, sample, tmp_path):
    "A wider model from the same checkpoint gives the old answer in the old places."
    config, batch = family.read_config(folder), batch_of(family, folder, sample.steps)
    horizon, width = family.chunk_shape(config)
    sizes = dict(max_state_dim=config.max_state_dim + 4, max_action_dim=width + 8)
    wide = family.load_model(folder, widen=True, **sizes)
    pad = lambda x, n: torch.nn.functional.pad(x, (0, n))
    wider = batch | {k: pad(batch[k], 8) for k in ("action", "action_mask", "noise") if k in batch}
    wider["state"] = pad(batch["state"], 4)
    losses = [loss_of(m, b).item() for m, b in ((family.load_model(folder), batch), (wide, wider))]
    assert abs(losses[0] - losses[1]) <= 1e-5 * losses[0]
    assert family.chunk_shape(wide.config) == (horizon, width + 8)


def _moved_by_padding(family, folder, sample, **changes) -> float:
    "How far an answer moves when a longer prompt stands beside it in the batch, in its own scale."
    model, processor = family.load_model(folder, **changes), family.load_processor(folder)
    key = sample.robot["language"].modality_keys[0]
    long = sample.steps[1] | {key: " ".join([sample.steps[1][key]] * 5)}
    noise = torch.randn(2, *family.chunk_shape(model.config))
    def answer(steps):
        batch = processor.collate([processor(s, TAG) for s in steps])
        return model.get_action(batch, noise=noise[:len(steps)])["action_pred"][0]
    alone, beside = answer(sample.steps[:1]), answer([sample.steps[0], long])
    return ((alone - beside).abs().max() / alone.abs().max()).item()


def padding_matters(family, folder, sample, tmp_path):
    "An answer changes with the length of the prompts beside it."
    assert _moved_by_padding(family, folder, sample) > 1e-4


def padding_does_not_matter(family, folder, sample, tmp_path):
    "What holds for a family that does not declare `padding_matters`."
    assert _moved_by_padding(family, folder, sample) < 1e-4


def mask_padding(family, folder, sample, tmp_path):
    "With the switch an answer no longer depends on the prompts beside it; and the file remembers it."
    assert _moved_by_padding(family, folder, sample, mask_padding=True) < 1e-4
    family.load_model(folder, mask_padding=True).save_pretrained(tmp_path / "masked")
    assert family.load_model(tmp_path / "masked").config.mask_padding


def _continued(policy, steps, before, noise, **how):
    "An answer that continues the chunk before, of which nine rows are known and three are under way."
    left = {g: a[:, :9] for g, a in before.items()}
    answer = policy.predict(steps, noise, prev_actions=left, rtc=RTC(3, **how))
    return answer, {g: a[:, :3] for g, a in left.items()}


def rtc(family, folder, sample, tmp_path):
    "Rows under way are held or approached, accelerated or not; with none of them the answer is its own."
    policy = Gr00tPolicy(TAG, folder, device="cpu", round_inputs=False)
    steps, noise = sample.steps[:2], policy.draw_noise(1)
    before, alone = policy.predict(steps, policy.draw_noise(0)), policy.predict(steps, noise)
    none = policy.predict(steps, noise, prev_actions=before, rtc=RTC(0, "guidance"))
    assert all(np.array_equal(none[g], a) for g, a in alone.items())
    def gap(chunk, due): return sum(np.abs(chunk[g][:, :3] - a).mean() for g, a in due.items())
    for how in (dict(), dict(method="guidance"), dict(method="guidance", use_vjp=True)):
        answer, due = _continued(policy, steps, before, noise, **how)
        assert gap(answer, due) < (0.5 if how else 1e-4) * gap(alone, due), how
        policy.accelerate()
        again, _ = _continued(policy, steps, before, noise, **how)
        policy.graphs = None
        for g, a in answer.items(): np.testing.assert_allclose(again[g], a, atol=1e-4, err_msg=g)
    three = policy.predict(steps, np.stack([noise] * 3)[:, None], prev_actions=before, rtc=RTC(3))
    one = policy.predict(steps, noise, prev_actions=before, rtc=RTC(3))
    for g, a in one.items(): np.testing.assert_allclose(three[g][1], a, atol=1e-4 * max(1, np.abs(a).max()))
    for given in (dict(rtc=RTC(3)), dict(prev_actions=before)):
        with pytest.raises(InputError, match="give both, or none"): policy.predict(steps, noise, **given)


def mixed_images(family, folder, sample, tmp_path):
    "Samples with one and with two images share a batch, and each sees its own."
    processor, model = family.load_processor(folder), family.load_model(folder)
    alone = sample.robot | dict(video=ModalityConfig([0], ["front"]))
    other = next(t for t, row in processor.embodiment_ids.items() if row != processor.embodiment_ids[TAG])
    processor.set_embodiment(other, alone, processor.statistics[TAG])
    rng, tags = np.random.default_rng(0), (TAG, other, TAG)
    made = [processor(s, tag, True, rng) for s, tag in zip(sample.steps, tags)]
    def losses(samples):
        batch = processor.collate(samples)
        draws = family.draw_flow(model.config, range(3), 0, batch["action"].shape[1:])
        with torch.no_grad(): out = model(batch | draws)
        return batch, out["action_loss"].flatten(1).sum(1)
    batch, before = losses(made)
    assert batch["image_counts"].tolist() == [2, 1, 2]
    for i in range(3):
        blind = made[i] | dict(images=[np.zeros_like(x) for x in made[i]["images"]])
        _, after = losses([blind if k == i else s for k, s in enumerate(made)])
        moved = ((after - before).abs() > 1e-5 * before.abs()).tolist()
        assert moved == [k == i for k in range(3)]


def _unpadded(part: dict) -> dict:
    told = part["attention_mask"][0] == 1
    return part | {k: part[k][:, told] for k in ("input_ids", "attention_mask")}


def frozen_front(family, folder, sample, tmp_path):
    """The loss of what was seen alone is that of images. A longer prompt beside it pads a sample: where padding
    stands in front, the rotary angles of its tokens differ by float32 rounding, and the loss by less than 1e-5."""
    key, model = sample.robot["language"].modality_keys[0], family.load_model(folder)
    long = sample.steps[2] | {key: " ".join([sample.steps[2][key]] * 3)}
    data = SimpleNamespace(processor=family.load_processor(folder))
    look = FirstLook(family, model, data, torch.device("cpu"), size=1, autocast=nullcontext)
    for steps, within in ((sample.steps[:3], 0), ([*sample.steps[:2], long], 1e-5)):
        batch = batch_of(family, folder, steps)
        padding = look._padding(batch)
        if within and padding is None and "padding_matters" in family.capabilities: continue  # is refused
        rows = [look._look(_unpadded(part))[0] for part in split_batch(batch, 1)]
        for i, row in enumerate(rows): row |= {k: batch[k][i].numpy() for k in ("state", "action", "action_mask")}
        known = dict(embodiment_id=int(batch["embodiment_id"][0])) | ({} if padding is None else dict(padding=padding))
        seen = feature_batch([row | known for row in rows], data.processor.encoder)
        assert len(set(seen["features_mask"].sum(1).tolist())) == 1 + bool(within)
        drawn = {k: v for k, v in batch.items() if k not in seen and k != "pixel_values"}
        with torch.no_grad(): direct, kept = (loss_of(model, b).item() for b in (batch, seen | drawn))
        assert abs(direct - kept) <= within * direct


TESTS = dict(
    flow=flow,
    denoising=denoising,
    state_dropout=state_dropout,
    dropout=dropout,
    embodiment_rows=embodiment_rows,
    gradient_checkpointing=gradient_checkpointing,
    widening=widening,
    padding_matters=padding_matters,
    rtc=rtc,
    mask_padding=mask_padding,
    mixed_images=mixed_images,
    frozen_front=frozen_front,
)
