"""The sinusoid codes that a bundle of N1.5 was computed with, and from them its frequencies.

The bundle does not hold the codes, but its gradients do: that of a linear map's weight is a sum over
the samples of (gradient at its output) x (its input), and the input is a code. The gradients at the
output come from our own backward pass; with more output channels than samples the codes follow.
"""
import frequencies
import torch

DIT = "action_head.model.timestep_encoder.timestep_embedder.linear_1"
ENCODER = "action_head.action_encoder.W2"


def at_outputs(model, batch: dict, names: list[str]) -> dict[str, torch.Tensor]:
    "The gradients of the loss at the outputs of these modules."
    kept = {}
    def keep(name):
        def hook(module, given, out):
            out.register_hook(lambda g: kept.__setitem__(name, g))
        return hook
    hooks = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    model(batch)["loss"].backward()
    for h in hooks: h.remove()
    model.zero_grad()
    return kept


def inputs_of(weight: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    "x [B, in] from the gradients of a weight [out, in] and at the outputs [B, out]."
    return torch.linalg.lstsq(output.T.double(), weight.double()).solution


def tables(model, batch: dict, gradients: dict) -> dict[tuple[int, bool], torch.Tensor]:
    "The bundle's frequencies, as `frequencies.tables` gives them for N1.6."
    c = model.config
    buckets = (batch["time"] * c.num_timestep_buckets).long()
    at = at_outputs(model, batch, [DIT, ENCODER])
    cos, sin = inputs_of(gradients[f"{DIT}.weight"], at[DIT]).chunk(2, -1)
    found = {(2 * cos.shape[-1], True): frequencies.stored_frequencies(buckets, cos, sin, True)}
    weights, robots, codes = gradients[f"{ENCODER}.W"], batch["embodiment_id"], []
    for robot in robots.unique():
        summed = at[ENCODER][robots == robot].sum(1)
        codes.append(inputs_of(weights[robot][c.input_embedding_dim :].T, summed))
    order = torch.cat([(robots == r).nonzero()[:, 0] for r in robots.unique()])
    sin, cos = torch.cat(codes).chunk(2, -1)
    own = frequencies.stored_frequencies(buckets[order], cos, sin, False)
    return found | {(c.input_embedding_dim, False): own}
