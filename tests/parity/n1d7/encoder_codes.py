"""The sinusoid codes inside the action encoder that a bundle of N1.7 was computed with.

The bundle holds what the encoder gave, not its code. All rows of a chunk share the code of their
sample, so there are many more outputs than components of it, and one Newton step from our own code
leads to theirs: two machines' codes differ by 1e-4 at most.
"""
import frequencies
import torch

from gr00t_nb.model import layers


def encoder_code(encoder, actions, bucket, embodiment, out) -> torch.Tensor:
    "Float64 [width], of one sample: actions [H, A], bucket and embodiment numbers, out [H, width]."
    ours = layers.sinusoid(bucket[None], encoder.hidden_size)[0].double()

    def given(code):
        u = encoder.W1(actions[None], int(embodiment))
        joined = torch.cat([u, code.expand_as(u)], -1)
        hidden = torch.nn.functional.silu(encoder.W2(joined, int(embodiment)))
        return encoder.W3(hidden, int(embodiment))[0].flatten()

    slope = torch.autograd.functional.jacobian(given, ours)
    return ours + torch.linalg.lstsq(slope, out.flatten() - given(ours)).solution


def tables(encoder, modules: dict[str, torch.Tensor]) -> dict[tuple[int, bool], torch.Tensor]:
    "The bundle's frequencies, as `frequencies.tables` gives them for N1.6; the encoder is float64."
    names = ("in.actions", "in.timesteps", "in.embodiment_id", "out")
    actions, tau, robots, out = (modules[f"action_encoder.{n}"] for n in names)
    rows = zip(actions.double(), tau, robots, out.double())
    sin, cos = torch.stack([encoder_code(encoder, *row) for row in rows]).chunk(2, -1)
    found = {(encoder.hidden_size, False): frequencies.stored_frequencies(tau, cos, sin, False)}
    buckets, code = modules["timestep_encoder.in"], modules["timestep_encoder.sinusoid"]
    cos, sin = code.chunk(2, -1)
    return found | {(code.shape[-1], True): frequencies.stored_frequencies(buckets, cos, sin, True)}
