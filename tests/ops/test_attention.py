import pytest
import torch
import torch.nn.functional as F

from pointadapt.ops.attention import attend, quick_attention, window_attention, windows
from pointadapt.ops.order import curve_order
from pointadapt.point import collate
from scenes import cloud


def reference(point, qkv, heads, curve, size):
    """Window by window in plain softmax: the last window of a cloud is its last ``size`` points."""
    order, _ = curve_order(point, curve)
    out, start = torch.empty_like(qkv[:, : qkv.shape[1] // 3]), 0
    for count in point.counts:
        rows = order[start : start + count]
        start += count
        for first in range(0, count, size):
            own = rows[first : first + size]
            seen = rows if count <= size else rows[min(first, count - size) :][:size]
            width = qkv.shape[1] // 3
            q = qkv[own, :width].view(len(own), heads, -1)
            k = qkv[seen, width : 2 * width].view(len(seen), heads, -1)
            v = qkv[seen, 2 * width :].view(len(seen), heads, -1)
            weight = (torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5).softmax(2)
            out[own] = torch.einsum("hqk,khd->qhd", weight, v).flatten(1)
    return out


@pytest.mark.parametrize("size", [16, 64, 1000])
def test_attention_is_softmax_inside_windows(size):
    point = collate([cloud(150, 12), cloud(0), cloud(40, 8, seed=1), cloud(40, 8, seed=2), cloud(1, 3), cloud(64, 30)])
    qkv = torch.randn(len(point), 3 * 24)
    mine = window_attention(qkv, 4, windows(point, "hilbert", size))
    torch.testing.assert_close(mine, reference(point, qkv, 4, "hilbert", size), atol=1e-5, rtol=1e-5)


def test_shrink_takes_the_smallest_cloud():
    point = collate([cloud(150, 12), cloud(20, 8, seed=1), cloud(0)])
    smallest = min(n for n in point.counts if n)
    assert {m.shape[1] for m in windows(point, "z", 64, shrink=True).members} == {smallest}


def test_every_point_is_in_a_window_of_its_cloud():
    point = collate([cloud(150, 12), cloud(40, 8, seed=1)])
    where = windows(point, "z-trans", 32)
    for members in where.members:
        clouds = point.batch[members]
        assert (clouds == clouds[:, :1]).all()
    slots = torch.cat([m.flatten() for m in where.members])
    assert torch.equal(slots[where.own], torch.arange(len(point)))


def test_gradients_of_rows_that_are_in_two_windows():
    point = collate([cloud(19, 8), cloud(5, 4, seed=1), cloud(0), cloud(16, 6, seed=2)])
    where = windows(point, "z", 8)
    assert len(where.again) == sum(-count % 8 for count in point.counts if count > 8) > 0
    qkv = torch.randn(len(point), 3 * 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: window_attention(rows, 2, where), qkv)


def test_prompt_tokens_take_part():
    point = cloud(50, 8)
    qkv = torch.randn(len(point), 3 * 8)
    where = windows(point, "z", 64)
    keys, values = torch.full((2, 8), -100.0), torch.ones(2, 8)
    far = window_attention(qkv.abs(), 2, where, prompt=(keys, values))
    torch.testing.assert_close(far, window_attention(qkv.abs(), 2, where), atol=1e-4, rtol=1e-4)
    near = window_attention(qkv.abs(), 2, where, prompt=(-keys, values))
    torch.testing.assert_close(near, torch.ones_like(near), atol=1e-3, rtol=1e-3)


def test_prompt_tokens_of_a_cloud_are_for_its_own_windows():
    point = collate([cloud(50, 8), cloud(20, 8, seed=1), cloud(70, 8, seed=2)])
    qkv, prompt = torch.randn(len(point), 3 * 8), (torch.randn(3, 2, 8), torch.randn(3, 2, 8))

    def bias(members):
        return torch.sin(members.float())[:, None, None].expand(-1, 2, members.shape[1], -1)

    for extra in (None, bias):
        where = windows(point, "z", 16)
        mine = window_attention(qkv, 2, where, bias=extra, prompt=prompt, batch=point.batch)
        for b in range(3):
            own = (prompt[0][b], prompt[1][b])
            alone = window_attention(qkv, 2, where, bias=extra, prompt=own)
            torch.testing.assert_close(mine[point.batch == b], alone[point.batch == b])


def test_bias_is_added_to_the_logits():
    point = cloud(50, 8)
    qkv = torch.randn(len(point), 3 * 8)
    where = windows(point, "z", 64)

    def only_self(members):
        return torch.full((*members.shape[:1], 2, members.shape[1], members.shape[1]), -1e9) * (
            1 - torch.eye(members.shape[1])
        )

    mine = window_attention(qkv, 2, where, bias=only_self)
    torch.testing.assert_close(mine, qkv[:, 16:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prompted", [False, True])
def test_bfloat16_with_a_gradient_is_computed_in_float32(prompted):
    """Where the fused kernel is slow; the results keep their dtype and are as near as bfloat16 gets."""
    torch.manual_seed(0)
    shape = (2, 3, 20, 8)
    parts = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
    mask = torch.zeros(20, 20).masked_fill(torch.rand(20, 20) < 0.3, -1e9) if prompted else None
    exact = [p.detach().double().requires_grad_() for p in parts]
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*parts, mask=mask)
    expected = F.scaled_dot_product_attention(*exact, attn_mask=None if mask is None else mask.double())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)
    wanted = torch.randn(shape)
    out.backward(wanted.bfloat16())
    expected.backward(wanted.bfloat16().double())
    for part, other in zip(parts, exact, strict=True):
        assert part.grad is not None and part.grad.dtype == torch.bfloat16
        torch.testing.assert_close(part.grad.double(), other.grad, rtol=3e-2, atol=3e-2)


def test_modules_of_others_are_kept_from_the_slow_kernel():
    """quick_attention acts in half precision with a gradient alone."""
    feat = torch.randn(2, 4, 8)
    seen = []

    def used(feat):
        with quick_attention(feat):
            seen.append(torch.backends.cuda.flash_sdp_enabled())

    used(feat.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        used(feat)
        used(feat.detach())
    assert seen == [True, False, True]
