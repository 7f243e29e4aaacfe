"""The attention kernel in Triton's interpreter: what a GPU computes, without one."""
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

CASES = """
import torch
import torch.nn.functional as F
from gr00t_nb.replay.attending import attend_few

torch.manual_seed(0)
for b, heads, rows, keys, d in ((1, 3, 51, 51, 48), (2, 2, 5, 130, 64), (1, 2, 17, 64, 8), (1, 1, 1, 200, 128)):
    lying = lambda n: torch.randn(b, n, heads, d).transpose(1, 2)
    q, k, v = lying(rows), lying(keys), torch.randn(b, heads, keys, d)
    seen = torch.rand(b, 1, 1, keys) > 0.3
    seen[0] = rows % 2 == 0  # the first of a batch sees nothing, or all
    if keys > 128: seen[-1, ..., :128], seen[-1, ..., 128:] = False, True  # no key of the first piece
    empty = ~seen.any(-1, keepdim=True)
    hidden = torch.zeros(seen.shape).masked_fill(~(seen | empty), -torch.inf)
    for bias, gone in ((None, None), (hidden, None), (hidden, empty), (torch.randn(b, heads, rows, keys), None)):
        expected = F.scaled_dot_product_attention(q, k, v, bias, scale=0.2)
        if gone is not None: expected = expected.masked_fill(gone, 0)
        found = attend_few(q, k, v, bias, gone, 0.2)
        assert found.shape == (b, rows, heads, d) and found.is_contiguous()
        torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
print("all are right")
"""


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed: pip install triton")
def test_the_kernel_computes_attention():
    env = os.environ | dict(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    ran = subprocess.run([sys.executable, "-c", CASES], env=env, capture_output=True, text=True)
    assert "all are right" in ran.stdout, ran.stderr
