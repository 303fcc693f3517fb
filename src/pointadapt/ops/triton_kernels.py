"""Triton kernels of sparse convolutions: the neighbour search, the product over taps, and the gradient of the weight.

Importing this file needs triton. Row counts are not specialised: triton turns an argument of 1 into a constant, and
compiles anew for multiples of 16. Kernels use language built-ins only, none of triton's own jitted helpers, so that
they run in its interpreter (TRITON_INTERPRET=1 when this file is imported) whoever imported triton before.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "steps"])
def find_neighbors(
    key_ptr,  # [N] int64, the key of each row
    sorted_ptr,  # [N] int64, the keys sorted
    row_ptr,  # [N] int64, the row that each sorted key came from
    stride_ptr,  # [3] int64, what one step along x, y, z adds to a key (along z: 1)
    source_ptr,  # [K, N] int32, out: the first row of each neighbouring voxel, or -1
    rows,
    steps,  # halvings until the search has one place left
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (b, t) looks up tap t for its block of rows; the centre is each row's own, also among duplicates."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap = tl.program_id(1)
    inside = row < rows
    x = tap // (KERNEL * KERNEL) - KERNEL // 2
    y = tap // KERNEL % KERNEL - KERNEL // 2
    z = tap % KERNEL - KERNEL // 2
    wanted = tl.load(key_ptr + row, mask=inside, other=0) + x * tl.load(stride_ptr) + y * tl.load(stride_ptr + 1) + z
    low = tl.full((BLOCK,), 0, tl.int32)
    high = low + rows
    for _ in range(steps):  # the first place whose key is not below the one wanted
        middle = (low + high) // 2
        value = tl.load(sorted_ptr + middle, mask=middle < rows, other=0)
        below = (low < high) & (value < wanted)
        high = tl.where(below, high, middle)
        low = tl.where(below, middle + 1, low)
    hit = inside & (low < rows)
    hit = hit & (tl.load(sorted_ptr + low, mask=hit, other=0) == wanted)
    source = tl.load(row_ptr + low, mask=hit, other=-1).to(tl.int32)
    source = tl.where(tap == KERNEL * KERNEL * KERNEL // 2, row, source)
    tl.store(source_ptr + (row + tap * rows.to(tl.int64)), source, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def tap_product(
    x_ptr,  # [*, inner] rows that are read
    w_ptr,  # weight of tap t, from channel c to channel n: w_ptr + t * w_tap + c * w_inner + n * w_outer
    bias_ptr,  # [outer], when BIAS
    out_ptr,  # [splits, rows, outer]
    order_ptr,  # TapTable.order
    tap_ptr,  # TapTable.tiles
    count_ptr,
    source_ptr,
    heavy_ptr,
    rows,
    inner,
    outer,
    taps,
    w_tap,
    w_inner,
    w_outer,
    BIAS: tl.constexpr,
    MIRROR: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[order[m]] = sum over taps t of x[sources[t, m]] @ w[t], over the taps that any row of the tile has.

    Program (p, s) computes one tile of rows and channels, over the s-th part of its steps. One flat loop over (tap,
    block of channels) with a known number of steps, so that loads are pipelined across taps; a load that waits for
    another one halves how far ahead they run, which is why sources are not looked up by tap.
    """
    columns = (outer + BLOCK_N - 1) // BLOCK_N
    tile = tl.load(heavy_ptr + tl.program_id(0) // columns)
    first = tile.to(tl.int64) * taps
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    blocks = (inner + BLOCK_K - 1) // BLOCK_K
    steps = tl.load(count_ptr + tile) * blocks
    splits = tl.num_programs(1)
    part = (steps + splits - 1) // splits
    begin = tl.program_id(1) * part
    end = tl.minimum(begin + part, steps)
    total = tl.full((BLOCK_M, BLOCK_N), 0, tl.float32)
    for step in range(begin, end):
        tap = tl.load(tap_ptr + (first + step // blocks))
        source = tl.load(source_ptr + ((first + step // blocks) * BLOCK_M + tl.arange(0, BLOCK_M))).to(tl.int64)
        c = step % blocks * BLOCK_K + k
        x = tl.load(
            x_ptr + (source[:, None] * inner + c[None, :]),
            mask=(source[:, None] >= 0) & (c[None, :] < inner),
            other=0.0,
        )
        w_at = tap
        if MIRROR:
            w_at = taps - 1 - tap
        w = tl.load(
            w_ptr + (w_at * w_tap + c[:, None] * w_inner + n[None, :] * w_outer),
            mask=(c[:, None] < inner) & (n[None, :] < outer),
            other=0.0,
        )
        w = w.to(x.dtype)
        if WIDEN:  # the interpreter multiplies bfloat16 as if its bits were integers
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    if BIAS:  # noqa: SIM102  without a bias the inside must not be compiled
        if tl.program_id(1) == 0:
            total += tl.load(bias_ptr + n, mask=n < outer, other=0.0).to(tl.float32)[None, :]
    row = tl.load(order_ptr + m, mask=m < rows, other=0).to(tl.int64) + tl.program_id(1) * rows.to(tl.int64)
    tl.store(
        out_ptr + (row[:, None] * outer + n[None, :]),
        total.to(out_ptr.dtype.element_ty),
        mask=(m[:, None] < rows) & (n[None, :] < outer),
    )


@triton.jit(do_not_specialize=["rows"])
def tap_weight_gradient(
    x_ptr,  # [*, inner] rows that were read
    grad_ptr,  # [*, outer] gradient of the rows that were written
    out_ptr,  # [splits, outer, taps, inner] float32
    written_ptr,  # TapTable.pairs
    read_ptr,
    count_ptr,
    rows,
    inner,
    outer,
    taps,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out[s, :, t, :] = sum over the s-th part of tap t's pairs of grad[written] x[read]^T; one tile a program."""
    across = (inner + BLOCK_I - 1) // BLOCK_I
    down = (outer + BLOCK_O - 1) // BLOCK_O
    tile = tl.program_id(0) % (across * down)
    tap = tl.program_id(0) // (across * down)
    o = tile // across * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tile % across * BLOCK_I + tl.arange(0, BLOCK_I)
    count = tl.load(count_ptr + tap)
    splits = tl.num_programs(1)
    part = (count + splits - 1) // splits
    begin = tl.program_id(1) * part
    end = tl.minimum(begin + part, count)
    first = tap * rows.to(tl.int64)
    total = tl.full((BLOCK_O, BLOCK_I), 0, tl.float32)
    for start in range(begin, end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        written = tl.load(written_ptr + (first + r), mask=r < end, other=0).to(tl.int64)
        read = tl.load(read_ptr + (first + r), mask=r < end, other=0).to(tl.int64)
        grad = tl.load(
            grad_ptr + (written[:, None] * outer + o[None, :]),
            mask=(r[:, None] < end) & (o[None, :] < outer),
            other=0.0,
        )
        x = tl.load(
            x_ptr + (read[:, None] * inner + i[None, :]),
            mask=(r[:, None] < end) & (i[None, :] < inner),
            other=0.0,
        )
        if WIDEN:
            grad = grad.to(tl.float32)
            x = x.to(tl.float32)
        total = tl.dot(tl.trans(grad), x, total, input_precision=PRECISION)
    at = ((tl.program_id(1).to(tl.int64) * outer + o[:, None]) * taps + tap) * inner + i[None, :]
    tl.store(out_ptr + at, total, mask=(o[:, None] < outer) & (i[None, :] < inner))
