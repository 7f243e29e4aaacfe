"What LoRA promises for every family that has blocks; one that has none refuses it in a sentence."
import shutil
from dataclasses import replace

import pytest
import torch
from batches import ROOT, TAG
from capabilities import loss_of
from test_conformance import some_steps
from test_training import STEPS, train, weights, without_dropout

from gr00t_nb.errors import InputError
from gr00t_nb.checkpoints.adapters import ADAPTERS, add_adapters, frozen_flags
from gr00t_nb.checkpoints.adapters import load_adapters, narrow_frozen, save_adapters
from gr00t_nb.checkpoints.export import export_adapters, export_full
from gr00t_nb.checkpoints.on_a_base import NAMED_BASE, load_answering
from gr00t_nb.checkpoints.widen import WidenConfig, widen
from gr00t_nb.files import read_json, write_json
from gr00t_nb.policy.policy import Gr00tPolicy
from gr00t_nb.training.plan import plan_run
from gr00t_nb.training.prepare import choose_base
from gr00t_nb.settings.config import FinetuneConfig


@pytest.fixture
def parts(family) -> list[str]:
    "All that can have adapters."
    if not family.blocks: pytest.skip("no part with blocks; see test_without_blocks")
    return list(family.blocks)


def adapted(family, folder, parts, **options):
    model = family.load_model(folder)
    add_adapters(model, parts, rank=4, **options)
    return model


def trains(model) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_without_blocks(family, checkpoint):
    if family.blocks: return  # the tests below
    model = family.load_model(checkpoint)
    for refused in (
        lambda: add_adapters(model, ["DiT"]),
        lambda: choose_base(FinetuneConfig(str(checkpoint), "", "", lora_parts=["DiT"])),
    ):
        with pytest.raises(InputError, match="has no part with blocks"): refused()
    assert not [n for n, _ in model.named_parameters() if "lora" in n]


def test_each_part_has_flags_that_freeze_it(family, checkpoint):
    "Or has none and trains always: then adapters freeze it."
    assert set(family.frozen_by) == set(family.blocks)
    for part, blocks in family.blocks.items():
        flags = frozen_flags(family, [part])
        assert set(flags) <= set(family.flags)
        model = family.load_model(checkpoint)
        family.set_trainable(model, **{k: v or True for k, v in family.flags.items()})
        family.set_trainable(model, **flags)
        assert any(n.startswith(blocks) for n in trains(model)) == (not flags), part
        if not flags: add_adapters(model, [part], rank=4)
        assert all(".lora_" in n for n in trains(model) if n.startswith(blocks)), part
        for word in part.split():
            if sum(word in p.split() for p in family.blocks) == 1:
                assert family.block_parts([word]) == [part]


def test_only_adapters_and_full_parts_change(family, checkpoint, batch, parts):
    "Part by part: adapters in all of its blocks, nothing else in them, and what the flags say."
    for part in parts:
        model = adapted(family, checkpoint, [part])
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        plain = family.load_model(checkpoint, **frozen_flags(family, [part]))
        full = {n for n in trains(plain) if not n.startswith(family.blocks[part] + ".")}
        lora = {n for n in trains(model) if ".lora_" in n}
        assert trains(model) == full | lora
        assert {n.startswith(family.blocks[part] + ".") for n in lora} == {True}
        numbers = {n[len(family.blocks[part]) + 1 :].split(".")[0] for n in lora}
        assert len(numbers) == len(family.stacks(model)[part])
        some_steps(model, batch)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert moved <= full | lora and len(moved) > 0.9 * len(full | lora), part
        assert {n for n in lora if "lora_B" in n} <= moved


def test_a_new_adapter_changes_nothing(family, checkpoint, batch, parts):
    plain, model = family.load_model(checkpoint), adapted(family, checkpoint, parts)
    with torch.no_grad(): assert torch.equal(loss_of(plain, batch), loss_of(model, batch))
    state = plain.state_dict()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_adapters_drop_out_in_training(family, checkpoint, batch, parts):
    "Although the part is frozen otherwise."
    for part in parts:
        model = family.load_model(checkpoint)
        if "dropout" in family.capabilities: family.set_dropout(model, 0.0)
        add_adapters(model, [part], rank=4, dropout=0.5)
        some_steps(model, batch)
        with torch.no_grad():
            a, b = (loss_of(model.train(), batch).item() for _ in range(2))
            assert a != b, part
            a, b = (loss_of(model.eval(), batch).item() for _ in range(2))
            assert a == b, part


def test_merged_and_adapted_answer_alike(family, checkpoint, batch, sample, parts, tmp_path):
    "Within 1e-5 in float32; loaded onto the base, to the bit. The policy asks the merged one."
    model = adapted(family, checkpoint, parts)
    some_steps(model, batch)
    family.save(tmp_path, model, family.load_processor(checkpoint))
    save_adapters(model, tmp_path / ADAPTERS)
    merged, again = family.load_model(tmp_path), family.load_model(checkpoint)
    load_adapters(again, tmp_path / ADAPTERS)
    assert trains(again) == trains(model)
    noise = torch.randn(len(batch["state"]), *family.chunk_shape(model.config))
    answers = []
    for m in (model, again, merged):
        with torch.no_grad(): loss = loss_of(m.eval(), batch)
        answers.append((loss, m.get_action(batch, noise=noise)["action_pred"]))
    for first, same, near in zip(*answers):
        assert torch.equal(first, same)
        assert (first - near).abs().max() <= 1e-5 * first.abs().max()
    state = merged.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    policy = Gr00tPolicy("new_embodiment", tmp_path, device="cpu", round_inputs=False)
    held = policy.model.state_dict()
    assert all(torch.equal(v.float(), held[n]) for n, v in state.items())
    assert policy.predict(sample.steps[:1])


def whole_and_alone(family, checkpoint, batch, parts, tmp_path):
    "A checkpoint whose adapters learned some steps, and the export of these alone."
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    model = adapted(family, checkpoint, parts)
    some_steps(model, batch)
    family.save(whole, model, family.load_processor(checkpoint))
    save_adapters(model, whole / ADAPTERS)
    return whole, export_adapters(whole, alone, base=str(checkpoint))


def test_a_policy_opens_adapters_on_their_base(family, checkpoint, batch, sample, parts, tmp_path):
    "It answers as the merged one, within 1e-5 in float32; without its base, or with another, in a sentence."
    whole, alone = whole_and_alone(family, checkpoint, batch, parts, tmp_path)
    assert not [*alone.glob("*.safetensors")]
    ask = lambda folder: Gr00tPolicy("new_embodiment", folder, device="cpu", round_inputs=False)
    policies = ask(whole), ask(alone)
    noise = policies[0].draw_noise(7)
    a, b = (policy.predict(sample.steps, noise=noise) for policy in policies)
    for name, answer in a.items():
        assert abs(answer - b[name]).max() <= 1e-5 * abs(answer).max().clip(1), name
    write_json(alone / NAMED_BASE, dict(base=str(tmp_path / "moved")))
    with pytest.raises(InputError, match="the base on which they were trained is not here"): ask(alone)


def test_another_base_is_refused(family, checkpoint, batch, parts, tmp_path):
    model = adapted(family, checkpoint, parts)
    save_adapters(model, tmp_path)
    for part in parts:
        other = family.load_model(checkpoint)
        blocks = family.stacks(other)[part]
        with torch.no_grad(): next(blocks[-1].parameters()).add_(0.1)
        before = {n: p.detach().clone() for n, p in other.named_parameters()}
        with pytest.raises(InputError, match="trained on another base: 1 of"):
            load_adapters(other, tmp_path)
        after = dict(other.named_parameters())
        assert list(after) == list(before)
        assert all(torch.equal(p, before[n]) for n, p in after.items())


def test_frozen_weights_are_narrow(family, checkpoint, parts):
    "Where the family makes models in bfloat16: adapters and what trains in full stay float32."
    model = adapted(family, checkpoint, parts)
    family.frozen_dtype = lambda config: torch.bfloat16
    try: narrow_frozen(model)
    finally: del family.frozen_dtype
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.engine
def test_a_resumed_run_is_the_run_to_the_bit(family, parts, tmp_path):
    "Merged weights, adapters and what trains in full; the run goes on from the unmerged ones."
    run, lora = tmp_path / "run", ["--lora-parts", *parts, "--lora-rank", 4, "--lora-dropout", 0.1]
    if "embodiment_rows" in family.capabilities: lora += ["--embodiment-rows-only"]
    once = train(family, run, *lora, everything=False)
    files = [run / "model.safetensors", *sorted((run / ADAPTERS).iterdir())]
    assert len(files) == 5
    expected = [f.read_bytes() for f in files]
    shutil.rmtree(run / f"checkpoint-{STEPS}")
    again = train(family, run, *lora, everything=False)
    assert again == once
    for f, content in zip(files, expected): assert f.read_bytes() == content, f.name


@pytest.mark.engine
def test_two_processes_train_as_one(family, parts, tmp_path):
    "In float64, as without adapters."
    options = ["--double", *without_dropout(family), "--lora-parts", *parts, "--lora-rank", 4]
    one = train(family, tmp_path / "one", *options, everything=False)
    two = train(family, tmp_path / "two", *options, processes=2, everything=False)
    for step, loss in one.items(): assert abs(loss - two[step]) <= 1e-6 * loss, step
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, v in a.items():
        assert (v - b[name]).abs().max() <= 1e-9 * max(1, v.abs().max()), name


@pytest.mark.engine
def test_adapters_alone_are_a_base(family, parts, tmp_path):
    "Asked for the same, they learn on, and keep their base; else they are merged, and others may learn."
    start, alone = tmp_path / "start", tmp_path / "alone"
    lora = lambda rank: ["--lora-parts", *parts, "--lora-rank", rank]
    train(family, start, *lora(4), everything=False)
    export_adapters(start, alone)
    runs = dict(same=lora(4), others=lora(2), merged=[])
    step = {}
    for name, words in runs.items():
        words += without_dropout(family)
        step[name] = train(family, tmp_path / name, *words, base=alone, everything=False)[1]
    same, others, merged = step.values()
    assert abs(same - others) <= 1e-5 * same and abs(same - merged) <= 1e-5 * same
    digests = lambda folder: read_json(folder / ADAPTERS / NAMED_BASE)
    assert digests(tmp_path / "same") == digests(start) != digests(tmp_path / "others")
    assert not (tmp_path / "merged" / ADAPTERS).exists()
    for name, base in dict(same=family.tiny_name, others=str(alone)).items():
        further = export_adapters(tmp_path / name, tmp_path / f"{name} alone")
        assert read_json(further / NAMED_BASE) == dict(base=base)
        state, trained = load_answering(family, further).state_dict(), weights(tmp_path / name)
        assert all(torch.equal(v, trained[n]) for n, v in state.items())


def test_adapters_alone_are_planned_and_widened(family, checkpoint, batch, parts, tmp_path):
    "A plan says what becomes of them; a wider copy and a whole one are made of both."
    whole, alone = whole_and_alone(family, checkpoint, batch, parts, tmp_path)
    config = FinetuneConfig(str(alone), str(ROOT / "data_samples/cube_to_bowl"), TAG, global_batch_size=2)
    lora = dict(lora_parts=parts, lora_rank=4)
    for asked, said in ((lora, "learn on"), ({}, "are merged"), (lora | dict(lora_rank=2), "ones of rank 2")):
        assert said in str(plan_run(replace(config, max_steps=2, **asked)))
    together = export_full(alone, tmp_path / "together", dtype="float32")
    state = family.load_model(together).state_dict()
    assert all(torch.equal(v, state[n]) for n, v in family.load_model(whole).state_dict().items())
    if "widening" not in family.capabilities: return
    more = family.limits(checkpoint)["max_state_dim"] + 8
    wide = widen(WidenConfig(str(alone), str(tmp_path / "wide"), state=more))
    assert family.limits(wide)["max_state_dim"] == more
