"""Slow reference of the PTv3 family, written from its specification alone and sharing no code with the library.

It takes the official constructor arguments and the official state dict as they are, computes in float64 with loops
over clouds, windows and blocks (the submanifold convolution looks its neighbours up in a dict), and returns the
tensors that the fixtures of the official code record, under the same names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu


def interleave(x: int, y: int, z: int, depth: int) -> int:
    code = 0
    for b in range(depth):
        code |= (x >> b & 1) << (3 * b + 2) | (y >> b & 1) << (3 * b + 1) | (z >> b & 1) << 3 * b
    return code


def hilbert(cell: tuple[int, int, int], depth: int) -> int:
    p = list(cell)
    for b in reversed(range(depth)):
        low = (1 << b) - 1
        for d in range(3):
            if p[d] >> b & 1:
                p[0] ^= low
            else:
                swap = (p[0] ^ p[d]) & low
                p[0], p[d] = p[0] ^ swap, p[d] ^ swap
    bits, code = interleave(*p, depth), 0
    for b in reversed(range(3 * depth)):  # Gray code -> binary
        code |= ((bits >> b & 1) ^ (code >> (b + 1) & 1)) << b
    return code


def curve_codes(grid: Tensor, batch: Tensor, depth: int, orders: list[str]) -> list[list[int]]:
    rows = []
    for order in orders:
        row = []
        for cloud, (x, y, z) in zip(batch.tolist(), grid.tolist(), strict=True):
            if order.endswith("-trans"):
                x, y = y, x
            code = hilbert((x, y, z), depth) if order.startswith("hilbert") else interleave(x, y, z, depth)
            row.append(cloud << (3 * depth) | code)
        rows.append(row)
    return rows


@dataclass
class Level:
    """One resolution: ``codes`` and ``order`` are [orders][N], ``sparse`` is what the next CPE convolution reads."""

    coord: Tensor
    grid: Tensor
    batch: Tensor
    feat: Tensor
    depth: int
    codes: list[list[int]]
    sparse: Tensor
    inverse: Tensor | None = None  # row of the parent level -> row here
    tables: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    @property
    def order(self) -> list[list[int]]:
        return [sorted(range(len(row)), key=row.__getitem__) for row in self.codes]


class Reference:
    """``Reference(config, weights, ...)(coord, grid, batch, feat)`` -> {fixture name without "out.": tensor}.

    ``perms``: order shuffles drawn at the top and after each pooling, in this order; none = no shuffling.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, Tensor],
        *,
        flash: bool = False,
        legacy: bool = False,
        perms: list[Tensor] | None = None,
        condition: str | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.c = config
        self.w = {k: v.double() for k, v in weights.items()}
        self.classic = "embedding.stem.conv.weight" in weights  # m1, otherwise m2 or m3
        self.flash, self.legacy, self.condition = flash, legacy, condition
        self.context = None if context is None else context.double()
        self.perms: Iterator[Tensor] = iter(perms or [])
        self.orders = [config["order"]] if isinstance(config["order"], str) else list(config["order"])
        self.seen: dict[str, Tensor] = {}

    # layers

    def linear(self, x: Tensor, key: str) -> Tensor:
        return linear(x, self.w[f"{key}.weight"], self.w.get(f"{key}.bias"))

    def norm(self, x: Tensor, key: str, batch_norm: bool) -> Tensor:
        """LayerNorm or (m1: stem, poolings, unpoolings) BatchNorm; either may be PDNorm."""
        batch_norm = batch_norm and self.classic
        prompted = self.c.get("pdnorm_bn" if batch_norm else "pdnorm_ln", False) and self.classic
        inner = key
        if prompted:
            inner = f"{key}.norm"
            if self.c.get("pdnorm_decouple", True):
                conditions = list(self.c.get("pdnorm_conditions", ("ScanNet", "S3DIS", "Structured3D")))
                inner += f".{conditions.index(self.condition)}"
        if batch_norm:
            x = (x - self.w[f"{inner}.running_mean"]) / torch.sqrt(self.w[f"{inner}.running_var"] + 1e-3)
        else:
            x = x - x.mean(1, keepdim=True)
            x = x / torch.sqrt((x * x).mean(1, keepdim=True) + 1e-5)
        if not prompted or self.c.get("pdnorm_affine", True):
            x = x * self.w[f"{inner}.weight"] + self.w[f"{inner}.bias"]
        if prompted and self.c.get("pdnorm_adaptive", False):
            assert self.context is not None
            shift, scale = self.linear(silu(self.context), f"{key}.modulation.1").chunk(2, dim=1)
            x = x * (1 + scale) + shift
        return x

    def conv(self, level: Level, x: Tensor, key: str) -> Tensor:
        weight = self.w[f"{key}.weight"]
        size = weight.shape[1]
        if size not in level.tables:
            level.tables[size] = neighbours(level.grid, level.batch, size)
        out = x.new_zeros(len(x), len(weight))
        for tap, (rows, others) in zip(weight.flatten(1, 3).unbind(1), level.tables[size], strict=True):
            out[rows] += x[others] @ tap.T  # rows are unique within a tap
        return out + self.w.get(f"{key}.bias", 0.0)

    def attention(self, level: Level, x: Tensor, key: str, row: list[int], heads: int, patch: int) -> Tensor:
        n, c = x.shape
        q, k, v = self.linear(x, f"{key}.qkv").reshape(n, 3, heads, c // heads).unbind(1)  # each [N, H, D]
        if f"{key}.rope.inv_freq" in self.w:
            q, k = (rotate(t, level.coord, self.w[f"{key}.rope.inv_freq"]) for t in (q, k))
        scale = self.c.get("qk_scale") or (c // heads) ** -0.5
        table = self.w.get(f"{key}.rpe.rpe_table")
        bound = int((4 * patch) ** (1 / 3) * 2)
        sizes = torch.bincount(level.batch).tolist()
        window = patch if self.flash else min(patch, *sizes)
        out, start = torch.zeros_like(x), 0
        for size in sizes:
            cloud, start = row[start : start + size], start + size  # the scene leads the code: clouds stay together
            for first in range(0, size, window):
                own = slots = cloud[first : first + window]
                if len(own) < window and size > window:
                    slots = [cloud[j] if j < size else cloud[j - window] for j in range(first, first + window)]
                logits = torch.einsum("ihd,jhd->hij", q[slots] * scale, k[slots])
                if table is not None:
                    gap = (level.grid[slots][:, None] - level.grid[slots][None]).clamp(-bound, bound) + bound
                    for axis in range(3):
                        logits = logits + table[gap[..., axis] + axis * (2 * bound + 1)].permute(2, 0, 1)
                mixed = torch.einsum("hij,jhd->ihd", logits.softmax(-1), v[slots]).reshape(len(slots), c)
                out[own] = mixed[: len(own)]
        return self.linear(out, f"{key}.proj")

    def block(self, level: Level, key: str, index: int, heads: int, patch: int) -> None:
        pre = self.c.get("pre_norm", True)
        note = self.seen.setdefault if key == "enc.enc0.block0" else lambda name, value: value
        cpe = self.linear(self.conv(level, level.sparse, f"{key}.cpe.0"), f"{key}.cpe.1")
        x = level.feat + note("enc0.block0.cpe", self.norm(cpe, f"{key}.cpe.2", False))

        y = note("enc0.block0.norm1", self.norm(x, f"{key}.norm1.0", False)) if pre else x
        row = level.order[index % len(level.codes)]
        branch = note("enc0.block0.attn", self.attention(level, y, f"{key}.attn", row, heads, patch))
        x = x + self.w.get(f"{key}.ls1.0.gamma", 1.0) * branch
        x = x if pre else note("enc0.block0.norm1", self.norm(x, f"{key}.norm1.0", False))

        y = self.norm(x, f"{key}.norm2.0", False) if pre else x
        hidden = gelu(self.linear(y, f"{key}.mlp.0.fc1"))
        branch = note("enc0.block0.mlp", self.linear(hidden, f"{key}.mlp.0.fc2"))
        branch = self.w.get(f"{key}.ls2.0.gamma", 1.0) * branch
        x = x + branch
        x = x if pre else self.norm(x, f"{key}.norm2.0", False)
        level.feat = note("enc0.block0.out", x)
        level.sparse = branch if self.legacy and pre else x

    # resolutions

    def shuffled(self, codes: list[list[int]]) -> list[list[int]]:
        perm = next(self.perms, None)
        return codes if perm is None else [codes[i] for i in perm.tolist()]

    def depth(self, grid: Tensor) -> int:
        return (int(grid.max()) + (0 if self.legacy else 1)).bit_length()

    def pool(self, parent: Level, stage: int) -> Level:
        stride, key = self.c["stride"][stage - 1], f"enc.enc{stage}.down"
        codes, depth = [], parent.depth
        if self.classic:
            bits = math.ceil(math.log2(stride))
            bits = 0 if bits > depth else bits
            depth -= bits
            shifted = [[code >> 3 * bits for code in row] for row in parent.codes]
            cells = shifted[0]
            heads = [cells.index(cell) for cell in sorted(set(cells))]
            grid = parent.grid[heads] >> bits
            codes = [[row[i] for i in heads] for row in shifted]
            cluster = {cell: i for i, cell in enumerate(sorted(set(cells)))}
            inverse = torch.tensor([cluster[cell] for cell in cells])
            batch = parent.batch[heads]
        else:
            coarse = torch.cat([parent.batch[:, None], parent.grid // stride], 1).tolist()
            unique = sorted({tuple(cell) for cell in coarse})
            number = {cell: i for i, cell in enumerate(unique)}
            inverse = torch.tensor([number[tuple(cell)] for cell in coarse])
            batch, grid = torch.tensor(unique)[:, 0], torch.tensor(unique)[:, 1:]
            depth = self.depth(grid)
            codes = curve_codes(grid, batch, depth, self.orders)
        values = self.linear(parent.feat, f"{key}.proj")
        members = [inverse == i for i in range(len(grid))]
        feat = torch.stack([values[m].amax(0) for m in members])
        coord = torch.stack([parent.coord[m].mean(0) for m in members])
        feat = gelu(self.norm(feat, f"{key}.norm.0", True))
        return Level(coord, grid, batch, feat, depth, self.shuffled(codes), feat, inverse)

    def record(self, level: Level, name: str) -> None:
        self.seen |= {f"{name}.feat": level.feat, f"{name}.coord": level.coord, f"{name}.grid_coord": level.grid}
        self.seen |= {f"{name}.batch": level.batch, f"{name}.order": torch.tensor(level.order)}
        self.seen[f"{name}.code"] = torch.tensor(level.codes)
        if level.inverse is not None:
            self.seen[f"{name}.pooling_inverse"] = level.inverse

    def __call__(
        self, coord: Tensor, grid: Tensor, batch: Tensor, feat: Tensor, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        c, depth = self.c, self.depth(grid)
        codes = curve_codes(grid, batch, depth, self.orders)
        if c.get("shuffle_orders", True):
            codes = self.shuffled(codes)
        level = Level(coord.double(), grid, batch, feat.double(), depth, codes, feat.double())
        stem = "embedding.stem"
        x = self.conv(level, level.feat, f"{stem}.conv") if self.classic else self.linear(level.feat, f"{stem}.linear")
        x = gelu(self.norm(x, f"{stem}.norm", True))
        if mask is not None:
            x = torch.where(mask[:, None], self.w["embedding.mask_token"], x)
        self.seen["embedding.feat"] = level.feat = level.sparse = x

        levels = [level]
        for s, blocks in enumerate(c["enc_depths"]):
            if s:
                levels.append(level := self.pool(level, s))
            for i in range(blocks):
                self.block(level, f"enc.enc{s}.block{i}", i, c["enc_num_head"][s], c["enc_patch_size"][s])
            self.record(level, f"enc{s}")
        if c.get("enc_mode", c.get("cls_mode", False)):
            self.seen["upcast_all"] = upcast(levels, len(levels))
            if len(levels) > 3:
                self.seen["upcast_2"] = upcast(levels, 2)
            return self.seen | {"final": level.feat}

        for s in reversed(range(len(levels) - 1)):
            up, parent = f"dec.dec{s}.up", levels[s]
            coarse = gelu(self.norm(self.linear(level.feat, f"{up}.proj.0"), f"{up}.proj.1", True))
            skip = gelu(self.norm(self.linear(parent.feat, f"{up}.proj_skip.0"), f"{up}.proj_skip.1", True))
            assert level.inverse is not None
            parent.feat = skip + coarse[level.inverse]
            parent.sparse = skip if self.classic else parent.feat
            level = parent
            self.seen[f"dec{s}.up.feat"] = level.feat
            for i in range(c["dec_depths"][s]):
                self.block(level, f"dec.dec{s}.block{i}", i, c["dec_num_head"][s], c["dec_patch_size"][s])
            self.seen[f"dec{s}.feat"] = level.feat
        return self.seen | {"final": level.feat}


def neighbours(grid: Tensor, batch: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Per tap of a size^3 kernel (x slowest): rows that have a neighbour there, and the rows of these neighbours."""
    cells = [(b, *g) for b, g in zip(batch.tolist(), grid.tolist(), strict=True)]
    where = {cell: row for row, cell in enumerate(cells)}
    reach, pairs = range(-(size // 2), size // 2 + 1), []
    for dx in reach:
        for dy in reach:
            for dz in reach:
                near = [where.get((b, x + dx, y + dy, z + dz), -1) for b, x, y, z in cells]
                rows = [i for i, other in enumerate(near) if other >= 0]
                pairs.append((torch.tensor(rows, dtype=torch.long), torch.tensor([near[i] for i in rows]).long()))
    return pairs


def rotate(x: Tensor, coord: Tensor, frequencies: Tensor) -> Tensor:
    """RoPE of [N, H, D]: D is x, y, z thirds; in each, channel i turns with channel i + D/6."""
    thirds = []
    for axis, part in enumerate(x.chunk(3, dim=-1)):
        angle = (coord[:, axis, None] * frequencies)[:, None]  # [N, 1, D/6]
        a, b = part.chunk(2, dim=-1)
        thirds += [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    return torch.cat(thirds, dim=-1)


def upcast(levels: list[Level], count: int) -> Tensor:
    """Features of the coarsest level at the finest: the first ``count`` levels walked are concatenated."""
    feat = levels[-1].feat
    for walked, s in enumerate(reversed(range(1, len(levels)))):
        spread = feat[levels[s].inverse]
        feat = torch.cat([levels[s - 1].feat, spread], 1) if walked < count else spread
    return feat
