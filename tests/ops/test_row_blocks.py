"""Layers in blocks of rows give what the plain modules give: outputs, gradients, running statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pointadapt.ops import row_blocks
from pointadapt.ops.row_blocks import bottleneck, cuts, gather_weigh, max_mean

CHANNELS, SIZE, PATCHES = 12, 5, 23


@pytest.fixture(params=[True, False], ids=["batch statistics", "running statistics"])
def norms(request, monkeypatch):
    """Two equal sets of BatchNorm with statistics and weights of their own; several blocks, the last one short."""
    monkeypatch.setattr(row_blocks, "BLOCK", 4 * SIZE * CHANNELS)
    torch.manual_seed(0)

    def make(channels):
        pair = nn.BatchNorm1d(channels), nn.BatchNorm1d(channels)
        for value in (pair[0].weight, pair[0].bias, pair[0].running_mean):
            nn.init.normal_(value, 0.3, 1.0)
        pair[0].running_var.uniform_(0.5, 2)
        pair[1].load_state_dict(pair[0].state_dict())
        return [p.double().train(request.param) for p in pair]

    return make


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gather_weigh(norms):
    mine, plain = norms(CHANNELS)
    near = torch.randint(0, 17, (PATCHES, SIZE))
    code = torch.randn(PATCHES, SIZE, CHANNELS, dtype=torch.float64)
    parts = cuts(near, CHANNELS)
    assert len(parts) == 6
    neighbor = torch.randn(17, CHANNELS, dtype=torch.float64, requires_grad=True)
    center = torch.randn(PATCHES, CHANNELS, dtype=torch.float64, requires_grad=True)
    out = torch.cat(gather_weigh(neighbor, center, near, [code[p].flatten(0, 1) for p in parts], mine))
    rows = (neighbor[near] + center[:, None]).flatten(0, 1)
    expected = (F.relu(plain(rows)) + code.flatten(0, 1)) * code.flatten(0, 1)
    grad = torch.randn_like(out)
    close([out], [expected])
    close(
        torch.autograd.grad(out, (neighbor, center, *mine.parameters()), grad),
        torch.autograd.grad(expected, (neighbor, center, *plain.parameters()), grad),
    )
    close(mine.buffers(), plain.buffers())


def test_bottleneck(norms):
    (norm1, plain1), (norm2, plain2) = norms(6), norms(CHANNELS)
    down, up = nn.Linear(CHANNELS, 6).double(), nn.Linear(6, CHANNELS).double()
    rows = torch.randn(PATCHES * SIZE, CHANNELS, dtype=torch.float64, requires_grad=True)
    out = torch.cat(bottleneck(rows.split(20), down, norm1, up, norm2))
    expected = F.relu(rows + plain2(up(F.relu(plain1(down(rows))))))
    grad = torch.randn_like(out)
    close([out], [expected])
    weights = (rows, *down.parameters(), *up.parameters())
    close(
        torch.autograd.grad(out, (*weights, *norm1.parameters(), *norm2.parameters()), grad),
        torch.autograd.grad(expected, (*weights, *plain1.parameters(), *plain2.parameters()), grad),
    )
    close([*norm1.buffers(), *norm2.buffers()], [*plain1.buffers(), *plain2.buffers()])


def test_max_mean_shares_the_gradient_of_equal_maxima():
    rows = torch.randint(0, 3, (PATCHES * SIZE, CHANNELS)).double().requires_grad_()
    out = max_mean(rows.split(20), SIZE)
    patches = rows.unflatten(0, (-1, SIZE))
    expected = patches.amax(1) + patches.mean(1)
    grad = torch.randn_like(out)
    close([out], [expected])
    close(torch.autograd.grad(out, rows, grad), torch.autograd.grad(expected, rows, grad))
