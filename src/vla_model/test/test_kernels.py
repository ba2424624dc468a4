"""The Triton kernels, run by Triton's interpreter on a CPU, against the same expressions in torch."""

import os
import subprocess
import sys

import pytest

pytest.importorskip('triton')

PROGRAM = """
import os
import torch
from vla_model.engines import kernels, kernels_triton, matmuls

def both(function, *arguments):
    ours = function(*arguments)
    os.environ['TRITON_INTERPRET'] = '0'
    exact = function(*arguments)
    os.environ['TRITON_INTERPRET'] = '1'
    return ours, exact

torch.manual_seed(0)
x, weight = torch.randn(5, 100) * 3, torch.rand(100) + 0.5
assert kernels.available(x.device)
for function, arguments in ((kernels.norm, (x, weight, 1e-5)), (kernels.gate, (x,))):
    ours, exact = both(function, *arguments)
    assert torch.allclose(ours, exact, atol=1e-5), function
for kind, limit in (('int8', 1), ('fp8', 64)):
    for scale in (None, torch.tensor(0.02)):
        for function, arguments in (
            (kernels.norm_round, (x, weight, 1e-5, kind, scale)),
            (kernels.gate_round, (x, kind, scale)),
            (kernels.quantize, (x, kind, scale)),
        ):
            (q, s), (exact, exact_scale) = both(function, *arguments)
            assert q.dtype == exact.dtype and torch.allclose(s, exact_scale, rtol=1e-5)
            assert (q.float() - exact.float()).abs().max() <= limit
            if kind == 'int8':
                assert (q == exact).float().mean() > 0.99  # a half may fall on the other side
heads, angles = torch.randn(5, 6, 16), torch.randn(5, 8)
cos, sin = torch.cat((angles, angles), 1).cos(), torch.cat((angles, angles), 1).sin()
ours, exact = both(lambda: kernels.rotate_heads(heads.clone(), 4, cos, sin))
assert torch.allclose(ours, exact, atol=1e-6) and torch.equal(ours[:, 4:], heads[:, 4:])
for integer in (True, False):
    make = (lambda *n: torch.randint(-127, 128, n, dtype=torch.int8)) if integer else (
        lambda *n: torch.randn(n).to(torch.float8_e4m3fn))
    a, b, sa, sb, out = make(37, 80), make(50, 80), torch.rand(37), torch.rand(50), torch.empty(37, 50)
    kernels_triton.scaled_matmul[(3 * 4,)](a, b, sa, sb, out, 37, 50, 80, integer, 16, 16, 32, 8)
    assert torch.allclose(out, a.float() @ b.float().T * sa[:, None] * sb, rtol=1e-5, atol=1e-2)
print('fine')
"""


def test_the_kernels_compute_what_torch_does():
    # Triton decides when it is imported whether it interprets.
    environment = os.environ | {'TRITON_INTERPRET': '1'}
    done = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == 'fine', done.stderr
