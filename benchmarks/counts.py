"""What an answer of a released size asks of a GPU, counted without one.

    python benchmarks/counts.py

The network is made without weights, its answer to one observation (one camera, four denoising steps,
bfloat16) is traced as `policy.accelerate()` traces it on a CPU, and what is left is counted: kernels, bytes that
products of matrices read, floating-point operations. The limit is the larger of bytes over the
card's measured copying rate and operations over its measured matrix rate. Computed, not measured.
"""
import argparse
import tempfile

import torch

from gr00t_nb.checkpoints.registry import families
from gr00t_nb.replay.trace import simplified

CARDS = {"H100": (2.98e12, 779e12)}  # bytes and operations a second, from RESULTS.md
SEEN = {"Gr00tN1d6": (252, 81), "Gr00tN1d7": (256, 64), "Gr00tN1d5": (224, 256)}  # side, image tokens
WORDS, PARTS = 29, ("backbone", "action head")


def question(family, model) -> dict:
    "One robot, one picture, as many tokens as its prompt has, padded to a multiple of 16."
    side, tokens = SEEN[family.model_type]
    length = -(-(tokens + WORDS) // 16) * 16
    config, where = model.config, dict(device="meta")
    whole = dict(dtype=torch.int64, **where)
    return dict(
        input_ids=torch.zeros(1, length, **whole),
        attention_mask=torch.ones(1, length, **whole),
        pixel_values=[torch.zeros(1, 3, side, side, **where)],
        state=torch.zeros(1, 1, config.max_state_dim, **where),
        embodiment_id=0,
        noise=torch.zeros(1, *family.chunk_shape(config), **where),
    )


def work(call) -> tuple[int, int]:  # bytes, operations
    "Of a product of matrices, or an attention."
    name, tensors = call.op._schema.name.split("::")[1], call.ins
    if name in ("addmm", "mm", "bmm", "baddbmm"):
        *_, a, b = tensors
        return b.nbytes, 2 * a.numel() * b.shape[-1]
    if "attention" in name:
        q, k = tensors[:2]
        return 0, 4 * q.numel() * k.shape[-2]
    return 0, 0


def counted(run, inputs) -> tuple[int, int, int, int]:  # traced, kernels, bytes, operations
    calls, _, traced = simplified(run, inputs)
    calls = [c for c in calls if not c.is_view and c.op is not torch.ops.aten.slice.Tensor]
    works = [work(c) for c in calls]
    return traced, len(calls), sum(b for b, _ in works), sum(o for _, o in works)


def rows(family):
    "Of each part: name, calls, kernels, bytes, operations."
    with tempfile.TemporaryDirectory() as folder:
        family.save_outline(folder)
        model = family.outline(folder).to(torch.bfloat16).eval()
    batch = question(family, model)
    noise = batch.pop("noise").to(torch.bfloat16)
    ready = model.prepare(batch)
    yield PARTS[0], *counted(model.see, ready)
    with torch.no_grad(): seen = model.see(ready)
    head = lambda q: model.action_head.get_action(q["seen"], q["batch"], q["noise"])
    yield PARTS[1], *counted(head, dict(seen=seen, batch=ready, noise=noise))


def main():
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    print("| computed | calls traced | kernels left | GB of matrices read | TFLOP | limit on an H100, ms |")
    print("|---|---|---|---|---|---|")
    copying, matrix = CARDS["H100"]
    for family in families():
        if family.model_type not in SEEN or family.released_name is None: continue
        for part, traced, kernels, nbytes, operations in rows(family):
            limit = 1000 * max(nbytes / copying, operations / matrix)
            numbers = f"{nbytes / 1e9:.2f} | {operations / 1e12:.3f} | {limit:.2f}"
            print(f"| {family.name}, {part} | {traced} | {kernels} | {numbers} |", flush=True)


if __name__ == "__main__": main()
