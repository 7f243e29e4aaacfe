"What is promised of memory for every family: plans that torch's own count confirms, batches in parts."
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from batches import ROOT
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._pytree import tree_leaves, tree_map

from gr00t_nb.model.memory import step_memory
from gr00t_nb.processing.batches import split_batch
from gr00t_nb.settings.config import FinetuneConfig
from gr00t_nb.training.plan import plan_run


def is_tensor(x) -> bool: return isinstance(x, torch.Tensor)


def without_dropout(family, model):
    "On a CPU its masks are of another size than on a GPU."
    if "dropout" in family.capabilities: family.set_dropout(model, 0.0)
    return model


def no_hook(hook): return SimpleNamespace(remove=lambda: None)


def counted_by_torch(family, checkpoint, batch) -> int:
    "The largest sum of two real steps in float32, the second with the optimizer's averages."
    model = without_dropout(family, family.load_model(checkpoint)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in model.parameters():  # the tracker asks every parameter for its gradient
        if not p.requires_grad: p.register_hook = p.register_post_accumulate_grad_hook = no_hook
    optimizer = torch.optim.AdamW(trained, fused=True)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, *filter(is_tensor, tree_leaves(batch)))
    with tracker:
        for _ in range(2):
            model(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.reset_mod_stats()  # of modules; the largest sum stays
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def test_memory_is_what_torch_counts(family, checkpoint, batch):
    "Within 5 %, of a batch and of one that is three times as large."
    for times in (1, 3):
        many = lambda x: x.repeat(times, *[1] * (x.dim() - 1)) if is_tensor(x) else x
        large = tree_map(many, batch)
        large["embodiment_id"] = int(batch["embodiment_id"][0])
        outline = without_dropout(family, family.outline(checkpoint))
        on_meta = tree_map(lambda x: x.to("meta") if is_tensor(x) else x, large)
        planned = step_memory(outline, on_meta, family.parts, bf16=False).peak
        counted = counted_by_torch(family, checkpoint, large)
        assert abs(planned - counted) <= 0.05 * counted, (times, planned, counted)


def test_an_outline_is_the_model_without_its_weights(family, checkpoint):
    kinds = lambda m: {n: (p.shape, p.dtype, p.requires_grad) for n, p in m.named_parameters()}
    outline, model = family.outline(checkpoint), family.load_model(checkpoint, dtype="config")
    assert kinds(outline) == kinds(model)
    assert all(p.is_meta for p in outline.parameters())


def test_parts_of_a_batch_make_its_loss_and_gradients(family, checkpoint, batch):
    "Weighted by the numbers that count, within 1e-6."
    model = without_dropout(family, family.load_model(checkpoint)).train()
    batch["action_mask"][0, 3:] = 0
    def gradients(parts):
        model.zero_grad()
        counts = [p["action_mask"].sum() for p in parts]
        losses = [model(p)["loss"] * n / sum(counts) for p, n in zip(parts, counts)]
        sum(losses).backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat([sum(losses).detach()[None], *grads])
    whole = gradients([batch])
    for size in (1, 4):
        parts = gradients(split_batch(batch, size))
        assert (parts - whole).norm() <= 1e-6 * whole.norm()
        assert abs(parts[0] - whole[0]) <= 1e-6 * whole[0]


def sample_run(family, batch: int) -> FinetuneConfig:
    place = ROOT / "data_samples/cube_to_bowl"
    words = family.tiny_name, str(place), "NEW_EMBODIMENT", f"{place}_config.py"
    return FinetuneConfig(*words, global_batch_size=batch)


def test_a_plan_of_every_family(family):
    "In its tiny size, with the levers that it has."
    config = sample_run(family, 16)
    plan = plan_run(config, gpu="24gb", pace=100)
    assert plan.fits and plan.micro == 16 and family.name in str(plan)
    assert plan.hours == 16 * plan.config.max_steps / 100 / 3600
    tight = plan.peak / 0.92 / 1e9 * 0.999
    smaller = plan_run(replace(config, memory=f"{tight:.6f}gb"))
    assert smaller.fits and smaller.peak < plan.peak


def test_a_plan_with_adapters_takes_less(family):
    "Adapters in every block that can have some, planned without any weights."
    if not family.blocks: pytest.skip("this family has no blocks")
    config = sample_run(family, 4)
    adapted = replace(config, lora_parts=list(family.blocks), lora_rank=2)
    whole, few = plan_run(config), plan_run(adapted)
    held = lambda plan: sum(plan.memory.optimizer.values())
    assert 0 < held(few) < held(whole)
    assert few.checkpoint - held(few) >= whole.checkpoint - held(whole)  # whole maps are written out
