"""The frequencies of the sinusoid codes that a bundle was computed with.

The codes multiply a position of up to 999 by a frequency that comes out of a float32 `exp`, and two
CPUs may round that `exp` differently: one unit in the last place of a frequency moves a phase by
6e-5, more than the parity tests allow. So the frequencies of the machine that made the bundle are
determined from its stored codes, and the model under test computes with them; everything else is
held to the tolerances as they are. The product keeps torch's own `exp`.
"""
import math
import sys

import torch

from gr00t_nb.model import layers

PLACES = 4  # units in the last place that the search looks at, to each side


def own_frequencies(half: int, include_last: bool) -> torch.Tensor:
    "Float32 [half]: what this machine's `sinusoid` multiplies a position by, its order of operations kept."
    i = torch.arange(half, dtype=torch.float32)
    if include_last: return torch.exp(-math.log(10000.0) * i / (half - 1))
    return torch.exp(-i * (math.log(10000.0) / half))


def stored_frequencies(
    positions: torch.Tensor,  # [N]
    cos: torch.Tensor,  # [N, half], the stored cosines
    sin: torch.Tensor,  # [N, half]
    include_last: bool,
) -> torch.Tensor:
    "Float32 [half]: for each component the float32 number whose codes are nearest to the stored ones."
    bits = own_frequencies(cos.shape[1], include_last).view(torch.int32)
    near = torch.stack([bits + k for k in sorted(range(-PLACES, PLACES + 1), key=abs)])
    candidates = near.view(torch.float32)  # [2 PLACES + 1, half]; of equals the one nearest to ours
    phase = positions.float()[:, None, None] * candidates
    error = ((phase.cos() - cos[:, None]).abs() + (phase.sin() - sin[:, None]).abs()).amax(0)
    return candidates.gather(0, error.argmin(0, keepdim=True))[0]


def tables(modules: dict[str, torch.Tensor]) -> dict[tuple[int, bool], torch.Tensor]:
    "By (width, include_last), from the single modules of a bundle."
    tau, code = modules["action_encoder.in.timesteps"], modules["action_encoder.time_encoding"]
    sin, cos = code[:, 0].chunk(2, -1)
    found = {(code.shape[-1], False): stored_frequencies(tau, cos, sin, False)}
    buckets, code = modules["timestep_encoder.in"], modules["timestep_encoder.sinusoid"]
    cos, sin = code.chunk(2, -1)
    return found | {(code.shape[-1], True): stored_frequencies(buckets, cos, sin, True)}


def sinusoid_by(table: dict[tuple[int, bool], torch.Tensor]):
    "`layers.sinusoid` with these frequencies; a width that the table lacks falls back to torch's `exp`."
    ours = layers.sinusoid

    def sinusoid(position, width, cos_first=False, include_last=False):
        if (width, include_last) not in table: return ours(position, width, cos_first, include_last)
        phase = position.float()[..., None] * table[width, include_last]
        return torch.cat([phase.cos(), phase.sin()][:: 1 if cos_first else -1], -1)
    return sinusoid


def use(monkeypatch, found: dict[tuple[int, bool], torch.Tensor]):
    "Every module of the kit computes its codes with these frequencies, of a bundle."
    ours, theirs = layers.sinusoid, sinusoid_by(found)
    for name, module in list(sys.modules.items()):
        if name.startswith("gr00t_nb.") and getattr(module, "sinusoid", None) is ours:
            monkeypatch.setattr(module, "sinusoid", theirs)
