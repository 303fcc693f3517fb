"""PointATA, align then adapt: a frozen 3D transformer understands point-cloud video.

arXiv 2602.23069. Known of it: two stages; a Point Align Embedder (PAE) trained against the optimal-transport distance
of data sets; then a Point-Video Adapter (PVA: bottleneck with a depthwise-separable convolution) and a Spatial-Context
Encoder (SCE) with shared parameters in frozen blocks. Everything else is inferred, and each choice is an option here.
Stage 1 itself is pointadapt/align.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.adapter import hold
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.pae import PAE, NewEmbed, sincos, tube_of
from pointadapt.methods.sites import Site, width
from pointadapt.ops.amax import amax
from pointadapt.ops.frames import anchor_frames, frames_in, take_clouds, times, tracks
from pointadapt.ops.neighbors import gather, nearest
from pointadapt.point import Point
from pointadapt.tokens import Tokens


@peft_method("pointata")
@dataclass
class PointATAConfig(AdapterConfig):
    """Defaults on Point-MAE: PVA 478,080 + SCE 2,688 + time 24,960 + class token 768 are trained, beside the head.

    The PAE's 149,152 are held as Stage 1 left them; without Stage 1 it is the frozen tokenizer, exactly. Clouds without
    ``extra["frames"]`` are clips of one frame each. ``target_modules``: "mix" puts a PVA between attention and MLP of
    every block, "ffn" behind the MLP (inferred: mix); ReCon and PointGPT work as Point-MAE does. Where a pyramid makes
    the tokens (segmentation of points), there is no PAE: Stage 1 aligns the pyramid, Stage 2 goes on training it.
    """

    paper: ClassVar[str] = "PointATA 2026, arXiv 2602.23069"
    default_targets: ClassVar[tuple[str, ...]] = ("tokenizer", "mix")
    works_on: ClassVar[tuple[str, ...]] = ("tokens",)
    needs: ClassVar[str] = "a tokenizer of its own that cuts clouds into groups of points (point-mae and its family)"

    pae: Literal["residual", "replace", "none"] = field(
        default="residual",
        metadata={
            "help": "Point Align Embedder (inferred): a correction of the frozen tokenizer's tokens, a trained copy of "
            "its network with time as a fourth channel (replace), or none."
        },
    )
    train_pae: bool = field(
        default=False, metadata={"help": "Go on training the PAE in Stage 2 (inferred: no, it stays aligned)."}
    )
    motion: int = field(default=64, metadata={"help": "Width of the PAE's motion branch (inferred)."})
    aligner: int = field(default=96, metadata={"help": "Width of the PAE's correction (inferred)."})
    stride: int = field(
        default=1,
        metadata={"help": "Tokens of every frame (1), or of every other one (2: P4Transformer's on MSR-Action3D)."},
    )
    time: bool = field(default=True, metadata={"help": "A trained position in time, zero at the start (inferred)."})
    rank: int = field(default=48, metadata={"help": "Width r of the Point-Video Adapters (inferred)."})
    kernel: int = field(default=3, metadata={"help": "Frames a PVA sees, odd (inferred)."})
    follow: Literal["nearest", "slot"] = field(
        default="nearest",
        metadata={
            "help": "Whom a PVA mixes (inferred): the nearest anchor of the other frame, or the token of the same "
            "place in the sequence (slot), which depends on the order of sampling."
        },
    )
    scale: float = field(default=1.0, metadata={"help": "Factor s on a PVA's output (inferred)."})
    sce: Literal["knn", "global", "none"] = field(
        default="knn",
        metadata={
            "help": "Spatial-Context Encoder, shared by all blocks (inferred): context of the nearest anchors, of the "
            "whole frame, or none."
        },
    )
    neighbors: int = field(default=8, metadata={"help": "Anchors that the SCE sees, itself among them (inferred)."})

    align: str = field(
        default="none",
        metadata={
            "help": "Stage 1, before training: align the PAE to procedural shapes (procedural), to a folder of "
            "labelled shapes, or none. For pointadapt adapt and pa.train; pointadapt.align has more choices."
        },
    )
    align_epochs: int = field(default=50, metadata={"help": "Most epochs of Stage 1 (inferred)."})
    align_steps: int = field(default=40, metadata={"help": "Steps of such an epoch (inferred)."})
    align_objective: Literal["full", "classwise"] = field(
        default="full", metadata={"help": "Distance of the whole sets, or ORCA's of each class (inferred: full)."}
    )
    align_clusters: int = field(
        default=0,
        metadata={
            "help": "Labels of Stage 1: the data's own (0, inferred), or so many clusters of their features, as ORCA "
            "has for dense tasks (10)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.align != "none" and self.pae == "none":
            raise UserError(f'align is {self.align!r}, but pae is "none": there is nothing to align')
        one_of("align_objective", self.align_objective, ("full", "classwise"))
        at_least(1, align_epochs=self.align_epochs, align_steps=self.align_steps)
        if self.align_clusters < 0 or self.align_clusters == 1:
            raise UserError(f"align_clusters is 0 (the data's own labels) or at least 2, not {self.align_clusters}")
        one_of("pae", self.pae, ("residual", "replace", "none"))
        one_of("follow", self.follow, ("nearest", "slot"))
        one_of("sce", self.sce, ("knn", "global", "none"))
        one_of("kernel % 2", self.kernel % 2, (1,))
        at_least(1, motion=self.motion, aligner=self.aligner, rank=self.rank, kernel=self.kernel)
        at_least(1, neighbors=self.neighbors)
        one_of("stride", self.stride, (1, 2))

    def prepare(self, model: Any) -> None:
        backbone = getattr(model, "backbone", model)
        if not hasattr(getattr(backbone, "tokenizer", None), "embed"):
            raise UserError(f"method 'pointata' cannot work on {type(backbone).__name__}: it needs {self.needs}")
        super().prepare(model)
        if hasattr(model, "widen"):
            adapters = len([target for target in self.target_modules or () if target != "tokenizer"])
            model.widen(backbone.depth * adapters * (self.kernel // 2) * self.stride + 1, self.stride)

    def slot_of(self, name: str, module: nn.Module, slots: dict[str, str]) -> str | None:
        slot = super().slot_of(name, module, slots)
        is_unused = self.pae == "none" and not self.time and self.stride == 1
        return None if slot == "tokenizer" and is_unused else slot

    def shared(self, sites: list[Site]) -> nn.Module | None:
        return None if self.sce == "none" else SCE(self.rank, self.sce, self.neighbors)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if site.slot == "tokenizer":
            return ClipTokens(frozen, self)
        return PVA(width(frozen), self, shared)

    def counts(self, model: nn.Module, adapter_name: str) -> dict[str, int | float]:
        """Parameters of Stage 1 (held or trained on), of Stage 2's adapters (class tokens among them), of the head, of
        a pyramid if there is one, all of them, and that as a share of the frozen backbone."""
        found = dict.fromkeys(("stage 1", "adapters", "head"), 0)
        own, frozen = rf"(pointata_(adapter|shared)|modules_to_save)\.{re.escape(adapter_name)}\.", 0
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            is_weight = isinstance(value, nn.Parameter)
            if f".pointata_adapter.{adapter_name}.pae." in name and not re.search("running_|num_batches", name):
                found["stage 1"] += value.numel()
            elif is_weight and f".head.modules_to_save.{adapter_name}." in name:
                found["head"] += value.numel()
            elif is_weight and f".pyramid.modules_to_save.{adapter_name}." in name:
                found["pyramid"] = found.get("pyramid", 0) + value.numel()
            elif is_weight and re.search(own, name):
                found["adapters"] += value.numel()
            elif is_weight and ".backbone." in name and "_adapter." not in name and ".modules_to_save." not in name:
                frozen += value.numel()
        total = sum(found.values())
        return {**found, "total": total, "% of backbone": 100 * total / max(frozen, 1)}


METHODS["pointata"] = PointATAConfig


def new_pae(tokenizer: Any, config: PointATAConfig) -> PAE | NewEmbed:
    """An embedder to be trained, for a frozen tokenizer. Raises UserError when the config has none."""
    if config.pae == "none":
        raise UserError('pae is "none": there is nothing to align; choose "residual" or "replace"')
    return NewEmbed(tokenizer) if config.pae == "replace" else PAE(tokenizer.channels, config.motion, config.aligner)


class ClipTokens(Adapter):
    """Tokens of the anchor frames: the frozen tokenizer's, corrected by the PAE; positions also say when.

    The PAE is held (buffers, saved with the adapter) unless Stage 2 trains it.
    """

    def __init__(self, tokenizer: nn.Module, config: PointATAConfig) -> None:
        super().__init__()
        self.tokenizer: tuple[Any] = (tokenizer,)  # in a tuple: a reference, not a part
        self.stride = config.stride
        self.padding = (1, 1) if config.stride == 1 else (1, 0)  # P4Transformer's
        has_none = config.pae == "none" or getattr(tokenizer, "is_fed", False)  # a pyramid is aligned itself
        self.pae = None if has_none else new_pae(tokenizer, config)
        self.is_held = not config.train_pae
        if self.pae is not None and self.is_held:
            hold(self.pae)
        self.time = nn.Linear(64, width(tokenizer)) if config.time else None
        if self.time is not None:
            nn.init.zeros_(self.time.weight)
            nn.init.zeros_(self.time.bias)

    def forward(self, base, point: Point) -> Tokens:
        is_idle = self.pae is None or (self.is_held and self.pae.is_idle)  # not aligned: twice the work for nothing
        out, seen, time = self.observe(base, point, look=not is_idle)
        if self.pae is not None and seen is not None:
            out = out.but(feat=self.pae(seen).to(out.feat.dtype))
        if self.time is not None:
            when = self.time(sincos(time, self.time.in_features)).to(out.feat.dtype)[:, None]
            out = out.but(pos=when.expand_as(out.feat) if out.pos is None else out.pos + when)
        return out

    def observe(self, base: Any, point: Point, look: bool = True) -> tuple[Tokens, Tensor | None, Tensor]:
        """The frozen tokens of the anchor frames, what the PAE sees if it looks, the frames' times [R]."""
        frames = frames_in(point, point.num_clouds)
        chosen = anchor_frames(frames, self.stride, self.padding)
        clips = point.num_clouds // frames
        device = point.coord.device
        first = torch.arange(clips, device=device)[:, None] * frames
        clouds = (first + torch.tensor(chosen, device=device)).flatten()
        time = times(point)[clouds]
        if len(chosen) == frames:
            out = base(point)
        else:
            anchors = point.remember(("clouds", tuple(chosen)), lambda: take_clouds(point, clouds))
            out = base(anchors.but(extra={**point.extra, **anchors.extra, "frames": len(chosen)}))
        if self.pae is None or not look:
            return out, None, time
        tokenizer = self.tokenizer[0]
        key = ("tube", tokenizer.group_size, frames)
        groups = out.remember_centers(
            key,
            lambda: tube_of(point, out.center, clouds, frames, tokenizer.group_size),  # type: ignore[arg-type]
        )
        return out, self.pae.observe(tokenizer, groups, out.feat), time


class SCE(nn.Module):
    """Local geometry for a bottleneck's features: W_s LN(max over neighbours of sigmoid(W_g rel) * u) + b_s.

    rel = (dx, dy, dz, |d|) to each of the nearest anchors of the same frame ("knn"), or to all anchors from the frame's
    mean ("global"). W_s and b_s start at zero. 2,688 parameters at r = 48, once for all blocks.
    """

    def __init__(self, rank: int, kind: str, neighbors: int) -> None:
        super().__init__()
        self.kind, self.neighbors = kind, neighbors
        self.gate, self.norm, self.out = nn.Linear(4, rank), nn.LayerNorm(rank), nn.Linear(rank, rank)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, feat: Tensor, tokens: Tokens) -> Tensor:
        """[R, G, r] of feat [R, G, r]."""
        index, relative = tokens.remember_centers(("sce", self.kind, self.neighbors), lambda: self.around(tokens))
        gate = self.gate(relative.to(feat.dtype)).sigmoid()  # [R, G, k, r], or [R, G, r] from the frame's mean
        context = amax(gate * feat, 1, keepdim=True) if index is None else amax(gate * gather(feat, index), 2)
        return self.out(self.norm(context)).expand_as(feat)

    def around(self, tokens: Tokens) -> tuple[Tensor | None, Tensor]:
        """(index [R, G, k] of the nearest anchors, rel [R, G, k, 4]); (None, rel [R, G, 4]) from the mean."""
        center = tokens.center
        assert center is not None
        if self.kind == "global":
            index, offset = None, center - center.mean(1, keepdim=True)
        else:
            index = nearest(center, center, min(self.neighbors, center.shape[1]))
            offset = gather(center, index) - center[:, :, None]
        return index, torch.cat([offset, offset.norm(dim=-1, keepdim=True)], -1)


class PVA(Adapter):
    """z + s (W_u GELU(W_p v + b_p) + b_u) on the patch tokens z of the stream behind a branch; others pass by.

        u = GELU(W_d z),  u = u + SCE(u),  v[t, g] = b + sum over o of w_o * u[t + o, a_o(t, g)]

    a_o(t, g) is the anchor of frame t + o nearest to anchor g of frame t: tokens of farthest point sampling have no
    identity from frame to frame. Only W_u and b_u start at zero. 2 D r + r + D + (k + 1) r + r^2 + r parameters.
    """

    def __init__(self, channels: int, config: PointATAConfig, shared: Shared) -> None:
        super().__init__()
        rank = config.rank
        self.scale, self.follow = config.scale, config.follow == "nearest"
        self.sce = None if config.sce == "none" else shared
        self.down, self.point = nn.Linear(channels, rank), nn.Linear(rank, rank)
        self.temporal = TemporalConv(rank, config.kernel)
        self.up = nn.Linear(rank, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, base, tokens: Tokens) -> Tokens:
        out = base(tokens)
        hidden = F.gelu(self.down(tokens.part("patch") + out.part("patch")))
        if self.sce is not None:
            hidden = hidden + self.sce()(hidden, tokens)
        hidden = self.temporal(hidden, tracks(tokens, self.temporal.kernel, self.follow))
        delta = self.up(F.gelu(self.point(hidden)))
        return out.with_part("patch", out.part("patch") + self.scale * delta.to(out.feat.dtype))


class TemporalConv(nn.Module):
    """Depthwise convolution over time along tracks: b + sum over o of w_o * u[track_o]."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight, self.bias = nn.Parameter(torch.empty(kernel, channels)), nn.Parameter(torch.zeros(channels))
        nn.init.uniform_(self.weight, -(kernel**-0.5), kernel**-0.5)  # as torch's depthwise convolutions

    def forward(self, feat: Tensor, index: list[Tensor]) -> Tensor:
        """feat [R, G, C], index as :func:`tracks` gives it."""
        flat = feat.flatten(0, 1)
        mixed = self.bias + sum(weight * flat[rows] for weight, rows in zip(self.weight, index, strict=True))
        return mixed.view_as(feat)
