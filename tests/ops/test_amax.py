"""The maximum's gradient is torch's, ties included."""

import pytest
import torch

from pointadapt.ops.amax import Amax, amax


@pytest.mark.parametrize("dim", [0, 1, -2, -1])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_torch_s(dim, keepdim, dtype):
    torch.manual_seed(0)
    feat = torch.randn(5, 6, 7).relu().to(dtype).requires_grad_()  # zeros: equal maxima
    found, wanted = amax(feat, dim, keepdim), feat.amax(dim, keepdim)
    grad = torch.randn_like(wanted)
    assert (
        torch.equal(found, wanted)
        and "AmaxBackward" in type(found.grad_fn).__name__ + type(found.grad_fn.next_functions[0][0]).__name__
    )
    ours, theirs = (torch.autograd.grad(out, feat, grad)[0] for out in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)


def test_numbers_that_hardly_differ_are_no_ties():
    feat = torch.tensor([[1.0, 1.0 + 2**-23, 1e-45, 0.0]], requires_grad=True)
    assert torch.autograd.grad(Amax.apply(feat, 1).sum(), feat)[0].tolist() == [[0, 1, 0, 0]]
    feat = torch.tensor([[1e-45, 0.0, -1e-45]], requires_grad=True)
    assert torch.autograd.grad(Amax.apply(feat, 1).sum(), feat)[0].tolist() == [[1, 0, 0]]


def test_without_a_graph_nothing_is_kept():
    feat = torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        assert amax(feat, 1).grad_fn is None
    assert amax(feat.detach(), 1).grad_fn is None
