"""GEM, the Geometry Encoding Mixer: spatial adapters beside the position encoding, context adapters beside attention.

Tang, Chen, Tao: On Geometry-Enhanced Parameter-Efficient Fine-Tuning for 3D Scene Segmentation. NeurIPS 2025,
arXiv 2505.22444. What the paper leaves open is an option here. Adapters are not mergeable: they always cost latency.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.adapters import ACTIVATIONS
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.sites import Site, width
from pointadapt.ops.sparse_conv import neighbors, subm_conv
from pointadapt.point import Point


@peft_method("gem")
@dataclass
class GEMConfig(AdapterConfig):
    """Defaults: r=32, m=4, one latent state for the whole network; 1,815,152 parameters on Sonata-base.

    ``share="kv"`` (keys = values in the reading step) is our reading of the published count of 1.8 M; ``"none"`` with
    ``up_bias=False`` is the paper's literal formula, 2,036,864. With ``num_latents=1`` the softmax over latents is 1
    and the context adapter adds one vector per scene. In a convolutional network both stand beside the convolutions of
    every residual block and read its input: 785,792 parameters on the sparse U-Net.
    """

    paper: ClassVar[str] = "Tang et al. 2025, arXiv 2505.22444"
    works_on: ClassVar[tuple[str, ...]] = ("points", "voxels")
    stand_ins: ClassVar[dict[str, str]] = {"cpe": "convs", "attn": "mix"}
    needs: ClassVar[str] = "voxel neighbourhoods, which groups of points do not have"

    rank: int = field(default=32, metadata={"help": "Width r of both bottlenecks."})
    rank_sa: int | None = field(default=None, metadata={"help": "Width of the spatial adapters alone."})
    rank_ca: int | None = field(default=None, metadata={"help": "Width of the context adapters and latents alone."})
    num_latents: int = field(default=4, metadata={"help": "Latent tokens m that carry scene context."})
    share: Literal["kv", "qk", "none"] = field(
        default="kv", metadata={"help": "Which two of the query, key and value projections are one: kv, qk or none."}
    )
    latent_sharing: Literal["global", "stage", "block"] = field(
        default="global", metadata={"help": "Learned latents per network, per stage or per block."}
    )
    latent_update: bool = field(default=True, metadata={"help": "Hand L + L_c on to the next block, not L."})
    latent_init_std: float = field(
        default=1.0, metadata={"help": "Spread of the learned latents at the start; 0.02 makes all of them alike."}
    )
    norm_latents: bool = field(default=False, metadata={"help": "Layer-normalise the latents before they read."})
    step2: Literal["read", "updated"] = field(
        default="read", metadata={"help": "Points attend to L_c (read) or to L + L_c (updated)."}
    )
    step2_norm: Literal["latents", "points", "sigmoid"] = field(
        default="latents", metadata={"help": "What the second attention sums to one over; sigmoid: nothing."}
    )
    ca_scale: Literal["rsqrt", "none"] = field(
        default="rsqrt", metadata={"help": "Scale attention logits by 1 / sqrt(r), or not."}
    )
    context_slot: Literal["attn", "mix"] = field(
        default="attn",
        metadata={
            "help": "Context adapter beside attn (normed input, inside layer scale and drop path) or beside mix "
            "(the block's own features, outside of both)."
        },
    )
    use_sa: bool = field(default=True, metadata={"help": "Insert spatial adapters."})
    use_ca: bool = field(default=True, metadata={"help": "Insert context adapters."})
    kernel_size: int = field(default=3, metadata={"help": "Edge of the spatial adapter's cube of voxels, odd."})
    sa_act: Literal["relu", "gelu", "none"] = field(
        default="relu", metadata={"help": "Nonlinearity after the sum over neighbours."}
    )
    up_bias: bool = field(default=True, metadata={"help": "Bias on the context adapter's up projection."})
    sa_bias: bool = field(default=False, metadata={"help": "Biases in the spatial adapter."})
    alpha: float = field(default=1.0, metadata={"help": "Factor on every adapter's output."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout before the up projections."})
    init: Literal["zero", "small"] = field(
        default="zero", metadata={"help": "Up projections start at zero (exact identity) or at std 1e-3."}
    )

    def __post_init__(self) -> None:
        if self.target_modules is None:
            self.target_modules = ["cpe"] * self.use_sa + [self.context_slot] * self.use_ca
        super().__post_init__()
        at_least(1, rank=self.rank, rank_sa=self.rank_sa, rank_ca=self.rank_ca, num_latents=self.num_latents)
        at_least(1, kernel_size=self.kernel_size)
        one_of("share", self.share, ("kv", "qk", "none"))
        one_of("latent_sharing", self.latent_sharing, ("global", "stage", "block"))
        one_of("step2", self.step2, ("read", "updated"))
        one_of("step2_norm", self.step2_norm, ("latents", "points", "sigmoid"))
        one_of("ca_scale", self.ca_scale, ("rsqrt", "none"))
        one_of("context_slot", self.context_slot, ("attn", "mix"))
        one_of("sa_act", self.sa_act, tuple(ACTIVATIONS))
        one_of("init", self.init, ("zero", "small"))
        one_of("kernel_size % 2", self.kernel_size % 2, (1,))
        if not self.use_sa and not self.use_ca:
            raise UserError("use_sa and use_ca are both false, which leaves no adapter: use method linear")

    def shared(self, sites: list[Site]) -> nn.Module | None:
        """The latents, by bank. All sites being known, raises UserError for those that other options rule out."""
        readers = [s for s in sites if not is_spatial(s)]
        for option, ruled_out in (
            ("use_sa=False", [s for s in sites if is_spatial(s) and not self.use_sa]),
            ("use_ca=False", [s for s in readers if not self.use_ca]),
            ("context_slot='mix'", [s for s in readers if self.context_slot == "mix" and not s.name.endswith("mix")]),
        ):
            if ruled_out:
                raise UserError(
                    f"{option} contradicts target_modules={self.target_modules}, which asks for an adapter at "
                    f"{ruled_out[0].name}: leave one of the two out"
                )
        first: dict[str, str] = {}
        for site in readers:
            first.setdefault(self.bank(site), site.name)
        #: The sites where a bank's latents start.
        self.starts = set(first.values())
        if not readers or self.latent_sharing == "block":
            return None
        return nn.ParameterDict({bank: new_latents(self) for bank in first})

    def bank(self, site: Site) -> str:
        """Which latents a context adapter reads with."""
        return {"global": "start", "stage": f"stage{site.stage}", "block": site.name}[self.latent_sharing]

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if is_spatial(site):
            return SpatialAdapter(width(frozen), self)
        return ContextAdapter(width(frozen), self, self.bank(site), site.name in self.starts, shared)


METHODS["gem"] = GEMConfig


def is_spatial(site: Site) -> bool:
    return site.name.endswith(("cpe", "convs"))


def new_latents(config: GEMConfig) -> nn.Parameter:
    """[L, R]: a learned start of the latent state."""
    return nn.Parameter(torch.randn(config.num_latents, config.rank_ca or config.rank) * config.latent_init_std)


def start_up(up: nn.Linear, init: str) -> nn.Linear:
    """Initialise an up projection: zero makes the adapter an exact identity."""
    if init == "zero":
        nn.init.zeros_(up.weight)
    else:
        nn.init.normal_(up.weight, std=1e-3)
    if up.bias is not None:
        nn.init.zeros_(up.bias)
    return up


def scaled(feat: Tensor, alpha: float) -> Tensor:
    """alpha * feat, without a way through memory for a factor of 1."""
    return feat if alpha == 1.0 else alpha * feat


def product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a @ b @ c, by the way round that is less work."""
    (p, q), (r, s) = a.shape, c.shape
    return (a @ b) @ c if p * r * (q + s) <= q * s * (p + r) else a @ (b @ c)


class SpatialAdapter(Adapter):
    """SA(x) = W_up act( sum over the occupied k^3 cells of W_loc[d] W_down x_d ), added to the position encoding.

    It reads the block's own features and uses the neighbour map that the frozen convolution has made.
    """

    def __init__(self, channels: int, config: GEMConfig) -> None:
        super().__init__()
        rank, cube = config.rank_sa or config.rank, (config.kernel_size,) * 3
        self.kernel_size, self.alpha = config.kernel_size, config.alpha
        self.down = nn.Linear(channels, rank, bias=config.sa_bias)
        self.weight = nn.Parameter(torch.empty(rank, *cube, rank))  # W_loc [R, k, k, k, R]
        self.bias = nn.Parameter(torch.zeros(rank)) if config.sa_bias else None
        self.act = ACTIVATIONS[config.sa_act]()
        self.dropout = nn.Dropout(config.dropout)
        self.up = start_up(nn.Linear(rank, channels, bias=config.sa_bias), config.init)
        # A scanned surface fills about k^2 of the k^3 cells: that is the fan-in for unit gain.
        nn.init.trunc_normal_(self.weight, std=(config.kernel_size**2 * rank) ** -0.5)

    def forward(self, base, point: Point) -> Point:
        out = base(point)
        hidden = subm_conv(self.down(point.feat), self.weight, self.bias, neighbors(point, self.kernel_size))
        return out.but(feat=out.feat + scaled(self.up(self.dropout(self.act(hidden))), self.alpha))


class ContextAdapter(Adapter):
    """CA(a): latents read the scene, then the points read the latents; the state goes on to the next block.

        L_c = softmax_points(L K^T / tau) V          [L, R] per scene
        CA  = softmax_latents(Q L_c^T / tau) L_c W_up  [N, C]
        L  <- L + L_c

    The state travels in ``Point.extra`` and starts anew at the first block of its bank, so nothing is left over
    from one forward pass to the next. It is read scene by scene: nothing of size N x L x R is ever made.
    """

    def __init__(self, channels: int, config: GEMConfig, bank: str, starts: bool, shared: Shared) -> None:
        super().__init__()
        rank = config.rank_ca or config.rank
        self.rank, self.share, self.alpha = rank, config.share, config.alpha
        self.scale = rank**-0.5 if config.ca_scale == "rsqrt" else 1.0
        self.update, self.norm_latents = config.latent_update, config.norm_latents
        self.step2, self.step2_norm = config.step2, config.step2_norm
        self.bank, self.starts, self.shared = bank, starts, shared
        self.latents = new_latents(config) if config.latent_sharing == "block" else None
        # W_Q, W_K (and W_V) in one matrix product
        self.read = nn.Linear(channels, rank * (3 if config.share == "none" else 2), bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.up = start_up(nn.Linear(rank, channels, bias=config.up_bias), config.init)

    def forward(self, base, point: Point) -> Point:
        key = f"gem.{self.adapter_name}"
        state = None if self.starts else point.extra.get(key)
        if state is None:
            start = self.shared()[self.bank] if self.latents is None else self.latents
            state = start.expand(point.num_clouds, -1, -1)  # [B, L, R]
        out = base(point)
        change, read = self.attend(point.feat, point.counts, state)
        state = state + read if self.update else state
        feat = out.feat + scaled(change, self.alpha)
        return out.but(feat=feat, extra={**out.extra, key: state})

    def attend(self, feat: Tensor, counts: list[int], state: Tensor) -> tuple[Tensor, Tensor]:
        """(CA [N, C], L_c [B, L, R]) of features [N, C] in scenes of ``counts`` points with state [B, L, R].

        Latents are few and points many: a projection between the two is taken to the latents' side where that is less
        work (:func:`product`), so that neither queries nor keys nor values of points are made.
        """
        parts = self.read.weight.split(self.rank)
        w_query, w_key = (parts[0], parts[0]) if self.share == "qk" else parts[:2]
        w_value = parts[-1]
        if self.norm_latents:
            state = F.layer_norm(state, (self.rank,))
        changes, reads = [], []
        for x, latents in zip(feat.split(counts), state, strict=True):
            latents = latents.to(x.dtype)
            # L_c [L, R]; zeros for an empty scene
            read = product(self.softmax(product(latents, w_key, x.T), 1), x, w_value.T)
            source = latents + read if self.step2 == "updated" else read
            # [L, N]: a softmax over four numbers is quick along the first dimension alone
            logits = product(source, w_query, x.T)
            if self.step2_norm == "sigmoid":
                weights = (at_least_float32(logits) * self.scale).sigmoid().to(logits.dtype)
            else:
                weights = self.softmax(logits, 0 if self.step2_norm == "latents" else 1)
            changes.append(self.raised(weights.T, source))
            reads.append(read)
        return torch.cat(changes), torch.stack(reads)

    def raised(self, weights: Tensor, source: Tensor) -> Tensor:
        """[N, C]: W_up of the points' mixtures of latents, weights [N, L] times source [L, R]."""
        if len(source) > self.rank or (self.training and self.dropout.p):  # dropout acts on every point's mixture
            return self.up(self.dropout(weights @ source))
        return F.linear(weights, self.up.weight @ source.T, self.up.bias)

    def softmax(self, logits: Tensor, dim: int) -> Tensor:
        """In float32: summing exponentials over a large scene overflows float16."""
        return (at_least_float32(logits) * self.scale).softmax(dim).to(logits.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
