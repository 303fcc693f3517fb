"""PointGST: a bottleneck beside every feed-forward branch that mixes channels in the spectral domain of point graphs.

Liang et al.: Parameter-Efficient Fine-Tuning in Spectral Domain for Point Cloud Learning. arXiv 2410.08114. Objects:
one graph over all centres of a cloud and local graphs along a Morton curve; scenes (PTv3): local graphs along the
block's own curve. Where the released code differs from the paper there is an option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.sites import Site, Unfit, width
from pointadapt.ops.order import curve_order, interleave
from pointadapt.ops.segment import segment_count
from pointadapt.point import Point
from pointadapt.tokens import Tokens

BASES = ("graph", "dct")


@peft_method("pointgst")
@dataclass
class PointGSTConfig(AdapterConfig):
    """Defaults: 355,296 parameters on Point-MAE (r=36), 1,030,128 on Sonata-base (r=64).

    ``graphs`` says which graphs a block sees, each with a LayerNorm of its own. On scenes a graph over all points
    is out of reach, and two lengths of local graphs (those of the released detection code) take its place;
    graphs=[32] is one alone, 1,027,056 parameters. The default is clean: exact distances, normalised graph by graph,
    so that a cloud does not depend on its batch mates, and eigenvectors with a canonical sign.
    ``compat="released"`` has the batch-wide normalisation by a rounding error that published weights were trained
    with. ``basis="dct"`` is an ablation that no paper reports: a fixed cosine basis along the curve, no geometry.
    """

    paper: ClassVar[str] = "Liang et al. 2024, arXiv 2410.08114"
    default_targets: ClassVar[tuple[str, ...]] = ("ffn",)

    rank: int | None = field(
        default=None, metadata={"help": "Width of the bottleneck. Default: 36 on objects, 64 on scenes."}
    )
    graphs: list[int] | None = field(
        default=None,
        metadata={
            "help": "Nodes of each kind of graph; 0: all centres of a cloud (objects only). "
            "Default: 0 32 on objects, 16 32 on scenes."
        },
    )
    basis: Literal["graph", "dct"] = field(
        default="graph",
        metadata={
            "help": "graph: eigenvectors of the Laplacian; dct: a fixed cosine basis along the curve (ablation)."
        },
    )
    transpose_basis: bool = field(
        default=False, metadata={"help": "Project with the transposed basis, as in the paper but not in its code."}
    )
    compat: Literal["clean", "released"] = field(
        default="clean", metadata={"help": "released: graphs scaled by the batch's smallest distance, as published."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("basis", self.basis, BASES)
        one_of("compat", self.compat, ("clean", "released"))
        at_least(1, rank=self.rank)
        if self.graphs is not None:
            self.graphs = list(self.graphs)
            if not self.graphs or any(size == 1 or size < 0 for size in self.graphs):
                raise UserError(f"graphs must list lengths of at least 2 (or 0 for all centres), not {self.graphs}")

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        self.on_points = getattr(getattr(model, "backbone", model), "kind", "points") == "points"
        self.rank = self.rank or (64 if self.on_points else 36)
        self.graphs = self.graphs or ([16, 32] if self.on_points else [0, 32])
        if self.on_points and 0 in self.graphs:
            raise UserError("graphs: 0 (all centres of a cloud) is for objects; a scene has too many points for it")
        if self.on_points and self.compat == "released":
            raise UserError("compat='released' is for objects: no code for scenes was released")

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        assert self.rank is not None and self.graphs is not None  # prepare has set them
        if self.on_points and site.is_block:
            raise Unfit(f"{type(frozen).__name__} chooses the curve of its graphs inside")
        settings = Settings(tuple(self.graphs), self.basis, self.compat == "released")
        return SpectralAdapter(width(frozen), self.rank, settings, self.transpose_basis)


METHODS["pointgst"] = PointGSTConfig


@dataclass(frozen=True)
class Settings:
    """What decides the graphs of a cloud, and is the key under which they are remembered."""

    sizes: tuple[int, ...]
    basis: str = "graph"
    released: bool = False


@dataclass(frozen=True, eq=False)
class Graphs:
    """P graphs of up to L nodes, each node in exactly one of them.

    index     [P, L] int64: rows of the nodes; 0 where a graph has fewer
    position  [M] int64: where each row stands in index.flatten()
    basis     [P, L, L] float32: basis vectors in columns, smooth ones first; zero outside of a graph's own nodes
    """

    index: Tensor
    position: Tensor
    basis: Tensor

    def spectrum(self, nodes: Tensor, transpose: bool) -> Tensor:
        """[M, C] -> [P, L, C]."""
        return self.turned(transpose) @ nodes[self.index].to(self.basis.dtype)

    def back(self, spectrum: Tensor, transpose: bool) -> Tensor:
        """[P, L, C] -> [M, C]."""
        return (self.turned(not transpose) @ spectrum).flatten(0, 1)[self.position]

    def turned(self, transpose: bool) -> Tensor:
        return self.basis.mT if transpose else self.basis


class SpectralAdapter(Adapter):
    """PCSA: h = silu(d) + sum over graphs of U^T (s + silu(mix(norm s))), s = U d, d = down(x); branch = up(h).

    Tokens without a place in space (class tokens) pass through the bottleneck alone. ``up`` and ``mix`` start at
    zero: the adapted model starts as an exact identity.
    """

    def __init__(self, channels: int, rank: int, settings: Settings, transpose: bool = False) -> None:
        super().__init__()
        self.settings, self.transpose = settings, transpose
        self.down, self.up = nn.Linear(channels, rank), nn.Linear(rank, channels)
        self.mix = nn.Linear(rank, rank)
        self.norms = nn.ModuleList(nn.LayerNorm(rank) for _ in settings.sizes)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        for linear in (self.up, self.mix):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, base, x):
        out = base(x)
        return out.but(feat=out.feat + self.branch(x))

    def branch(self, x: Tokens | Point) -> Tensor:
        """What is added to the stream, in the shape of ``x.feat``."""
        low = self.down(x.feat)
        hidden = F.silu(low)
        if isinstance(x, Point):
            return self.up(hidden + self.filtered(low, point_basis(x, self.settings)))
        rows = x.rows("patch")
        nodes = low[:, rows]
        change = self.filtered(nodes.flatten(0, 1), token_basis(x, self.settings)).view_as(nodes)
        parts = [hidden[:, : rows.start], hidden[:, rows] + change, hidden[:, rows.stop :]]
        return self.up(torch.cat(parts, 1))

    def filtered(self, nodes: Tensor, basis: tuple[Graphs, ...]) -> Tensor:
        """[M, R] -> [M, R], in the nodes' precision."""
        total = torch.zeros_like(nodes)
        for graphs, norm in zip(basis, self.norms, strict=True):
            spectrum = graphs.spectrum(nodes, self.transpose)
            spectrum = spectrum + F.silu(self.mix(norm(spectrum)))
            total = total + graphs.back(spectrum, self.transpose).to(nodes.dtype)
        return total


# ------------------------------------------------------------------------------------------------- which graphs


def token_basis(tokens: Tokens, settings: Settings) -> tuple[Graphs, ...]:
    """Graphs over the centres of the "patch" tokens, rows counted through the batch; made once for these centres.

    Stored ones can be put in place: ``point.cache[settings] = (center, graphs)``.
    Raises UserError when the tokens have no centres.
    """
    center = tokens.center
    if center is None:
        raise UserError("method 'pointgst' needs tokens with centres, which this backbone's tokens do not have")
    return tokens.remember_centers(settings, lambda: make_token_basis(center, settings))


@torch.no_grad()
def make_token_basis(center: Tensor, settings: Settings) -> tuple[Graphs, ...]:
    batch, groups, _ = center.shape
    start = torch.arange(batch, device=center.device)[:, None] * groups
    order = (start + morton_order(center, settings.released)).flatten()
    found = []
    for size in settings.sizes:
        is_whole = size == 0 and settings.basis == "graph"  # nodes of the whole graph keep their order
        nodes = torch.arange(batch * groups, device=center.device) if is_whole else order
        index, position, counts = chunks(nodes, [groups] * batch, min(size or groups, groups))
        basis = make_basis(center.flatten(0, 1)[index], counts, settings)
        found.append(Graphs(index, position, basis))
    return tuple(found)


def point_basis(point: Point, settings: Settings) -> tuple[Graphs, ...]:
    """Graphs over the points of a level, along the block's curve; made once for a level and curve."""
    curve = point.extra["curve"]
    return point.remember((settings, curve), lambda: make_point_basis(point, settings, curve))


@torch.no_grad()
def make_point_basis(point: Point, settings: Settings, curve: str) -> tuple[Graphs, ...]:
    found = []
    for size in settings.sizes:
        index, position, counts = chunks(curve_order(point, curve)[0], point.counts, size)
        nearest = (point.grid_size or 0.0) / 2
        basis = make_basis(point.coord[index], counts, settings, nearest)
        found.append(Graphs(index, position, basis))
    return tuple(found)


def chunks(order: Tensor, counts: list[int], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut rows ``order`` [M], sorted cloud by cloud, into pieces of ``length``; the last of a cloud may be shorter.

    Returns index [P, length], position [M] (see :class:`Graphs`) and the number of nodes of each piece [P].
    """
    device = order.device
    total = sum(-(-count // length) for count in counts)  # on the host, which would else wait for the device
    clouds = torch.tensor(counts, device=device)
    pieces = (clouds + length - 1) // length
    first = torch.stack([clouds.cumsum(0) - clouds, pieces.cumsum(0) - pieces])
    first_row, first_piece = first.repeat_interleave(clouds, 1, output_size=len(order))
    place = torch.arange(len(order), device=device) - first_row
    piece = first_piece + place // length
    slot = piece * length + place % length
    index = order.new_zeros(total * length)
    index[slot] = order
    position = torch.empty_like(order)
    position[order] = slot
    return index.view(-1, length), position, segment_count(piece, total)


def morton_order(center: Tensor, released: bool) -> Tensor:
    """[B, G] centres sorted along a Morton curve with y its highest bit, then x, then z.

    Clean: 1024 cells along the longest edge of each cloud's own box. Released: cells of 1/100, truncated toward zero
    and masked to 16 bits, so that negative coordinates follow the positive ones.
    """
    if released:
        cells = (center * 100).long() & 0xFFFF
    else:
        low = center.amin(1, keepdim=True)
        extent = (center - low).amax((1, 2), keepdim=True).clamp(min=torch.finfo(center.dtype).tiny)
        cells = ((center - low) / extent * 1023).long()
    x, y, z = cells.unbind(-1)
    return interleave(y, x, z).argsort(stable=True, dim=1)


# ------------------------------------------------------------------------------------------------- their bases


def make_basis(coord: Tensor, counts: Tensor, settings: Settings, nearest: float = 0.0) -> Tensor:
    """[P, L, L] orthonormal columns over the first ``counts`` [P] of the nodes coord [P, L, 3], zero elsewhere."""
    real = torch.arange(coord.shape[1], device=coord.device) < counts[:, None]
    if settings.basis == "dct":
        basis = cosines(counts, coord.shape[1])
    elif settings.released:
        if int(counts.min()) < coord.shape[1]:
            raise UserError(
                f"compat='released' cuts centres into graphs of {coord.shape[1]}: take a number that divides theirs"
            )
        basis = torch.linalg.eigh(released_laplacian(coord))[1]
    else:
        basis = upright(torch.linalg.eigh(laplacian(coord, real, nearest))[1])
    return basis.float() * (real[:, :, None] & real[:, None])


def laplacian(coord: Tensor, real: Tensor, nearest: float) -> Tensor:
    """[P, L, L] float64 normalised Laplacian of complete graphs, weights d_min / d_ij (and 1 of a node to itself).

    coord    [P, L, 3] nodes; ``real`` [P, L] says which are any
    nearest  smaller distances count as this one; duplicates weigh like the nearest pair
    Nodes that are none have no edges and eigenvalue 4, behind all others. Up to a millionth on the diagonal, rising
    along the nodes, leaves symmetric neighbourhoods (of a regular grid) less choice of a basis; float32 rounds it to
    nine steps, so that nodes of one step stay alike and devices may still differ.
    """
    coord = coord.double()
    distance = torch.zeros(coord.shape[0], coord.shape[1], coord.shape[1], dtype=torch.float64, device=coord.device)
    for axis in coord.unbind(-1):
        distance += (axis[:, :, None] - axis[:, None]).square_()
    distance = distance.sqrt_().clamp_(min=nearest)
    pair = real[:, :, None] & real[:, None]
    itself = torch.eye(coord.shape[1], dtype=torch.bool, device=coord.device)
    smallest = distance.masked_fill(~pair | itself | (distance == 0), torch.inf).amin((1, 2), keepdim=True)
    smallest = torch.where(smallest.isinf(), 1.0, smallest)
    weight = (smallest / torch.maximum(distance, smallest)).masked_fill(itself, 1.0) * pair
    scale = (weight.sum(2) + 1e-6).rsqrt()
    found = -scale[:, :, None] * weight * scale[:, None]
    diagonal = torch.where(real, 1.0, 4.0) + torch.linspace(0, 1e-6, coord.shape[1], device=coord.device)
    return found + torch.diag_embed(diagonal.double())


def released_laplacian(coord: Tensor) -> Tensor:
    """[P, L, L] as published: beyond 25 nodes ``cdist`` leaves rounding errors on the diagonal, and the smallest
    positive distance of the whole batch, which scales all weights, is then such an error."""
    distance = torch.cdist(coord, coord)
    itself = torch.eye(coord.shape[1], device=coord.device)
    smallest = distance[distance > 0].min()
    weight = 1 / (distance / smallest + itself)
    scale = torch.diag_embed((weight.sum(2) + 1e-6).rsqrt())
    return itself - scale @ weight @ scale


def upright(vectors: Tensor) -> Tensor:
    """Columns [P, L, L] turned so that the first of their largest entries (to a thousandth) is positive."""
    size = vectors.abs()
    first = (size >= size.amax(1, keepdim=True) * 0.999).to(torch.uint8).argmax(1, keepdim=True)
    return vectors * vectors.gather(1, first).sign()


def cosines(counts: Tensor, length: int) -> Tensor:
    """[P, length, length] columns of the orthonormal DCT-II over the first ``counts`` [P] nodes."""
    node = torch.arange(length, device=counts.device, dtype=torch.float64)
    total = counts[:, None, None].clamp(min=1).double()
    basis = torch.cos(torch.pi * (node[:, None] + 0.5) * node / total) * (2 / total).sqrt()
    basis[:, :, 0] *= 0.5**0.5
    return basis
