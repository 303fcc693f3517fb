"""APPT: points become tokens and prompts for a frozen transformer of any other modality.

Adaptive Point-Prompt Tuning, arXiv 2509.00374 (code: wish254/APPT). A small point network makes the tokens; their
maximum plus mean is the prompt, put in front of the points again before every frozen block. Clean by default; what the
released classifier does otherwise, and why not all of that is kept, is said at :class:`APPTConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.adapter import hold
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.point_pn import PointPN
from pointadapt.methods.sites import Site, width
from pointadapt.ops.batchnorm import RowNorm
from pointadapt.point import Point
from pointadapt.tokens import Tokens


@peft_method("appt")
@dataclass
class APPTConfig(AdapterConfig):
    """Defaults: a point network of width 36, projected and normed to the transformer's width.

    Nothing depends on the order of the points: sampling begins with the point farthest from the centroid, and each
    sample is read out for itself. ``compat="released"`` is the published classifier (3,951,698 trained parameters with
    15 classes on ViT-B): a network as wide as the transformer, sampling from row 0, a position table by sampling rank,
    and the last block's prompt put back raw. Its evaluation, where all clouds get the first one's mean, is not
    reproduced. Controls: layers=0 (the point network alone), train_tokens=False, prompts="none", read_prompts=False,
    and a transformer loaded with weights=None.
    """

    paper: ClassVar[str] = "APPT 2025, arXiv 2509.00374"
    default_targets: ClassVar[tuple[str, ...]] = ("tokenizer", "cls", "enter", "block", "final_norm")
    regroups: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("tokens",)
    needs: ClassVar[str] = "a transformer over tokens: a foundation model, or one over groups of points"
    #: The frozen model never sees points otherwise, so there is nothing to start from unchanged.
    identity: ClassVar[bool] = False

    width: int = field(default=36, metadata={"help": "Channels of the point network's stem; its output has 8 times."})
    widen: bool = field(
        default=False, metadata={"help": "Take width = channels / 8 and no projection (the published recipe)."}
    )
    groups: int = field(default=64, metadata={"help": "Tokens per cloud; 8 times as many points in the first stage."})
    neighbors: int = field(default=40, metadata={"help": "Points around each centre, in every stage."})
    scale: Literal["patch", "cloud"] = field(
        default="patch", metadata={"help": "Relative coordinates are normalised within each patch, or each cloud."}
    )
    up: Literal["x", "y", "z"] | None = field(
        default="y", metadata={"help": "Axis of the height channel, y in object data sets; none: coordinates alone."}
    )
    match: Literal["layer", "batch", "none"] = field(
        default="layer", metadata={"help": "Norm behind the projection; batch: tokens differ as much as they can."}
    )
    pos: Literal["none", "mlp", "learned"] = field(
        default="mlp", metadata={"help": "Positions: of the centres (mlp), a table by sampling rank (learned), none."}
    )
    prompts: Literal["deep", "shallow", "none"] = field(
        default="deep", metadata={"help": "A prompt before every block, before the first, or none."}
    )
    prompt_mode: Literal["static", "repooled"] = field(
        default="static", metadata={"help": "repooled: pooled anew from the tokens that leave each block."}
    )
    keep_prompts: bool = field(
        default=True, metadata={"help": "Outputs of earlier prompts stay in the sequence, or go."}
    )
    read_prompts: bool = field(default=True, metadata={"help": "The read-out sees the prompts as well."})
    final_norm: Literal["trained", "native"] = field(
        default="trained", metadata={"help": "LayerNorm before the read-out: a new one, or the frozen model's."}
    )
    layers: int | None = field(
        default=None, metadata={"help": "Use only that many blocks; 0: the point network alone."}
    )
    train_tokens: bool = field(default=True, metadata={"help": "False: the point network stays as it was drawn."})
    read: list[str] | None = field(
        default_factory=lambda: ["max+mean"],
        metadata={"help": "What a classification head reads of the tokens (of each frame)."},
    )
    head: str | None = field(
        default="appt",
        metadata={"help": "Head of a classification; none, and appt on videos: the one the model was given."},
    )
    compat: Literal["clean", "released"] = field(
        default="clean", metadata={"help": "released: the published classifier, dependent on the order of points."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, width=self.width, groups=self.groups, neighbors=self.neighbors)
        at_least(0, layers=self.layers)
        one_of("scale", self.scale, ("patch", "cloud"))
        one_of("up", self.up, ("x", "y", "z", None))
        one_of("match", self.match, ("layer", "batch", "none"))
        one_of("pos", self.pos, ("none", "mlp", "learned"))
        one_of("prompts", self.prompts, ("deep", "shallow", "none"))
        one_of("prompt_mode", self.prompt_mode, ("static", "repooled"))
        one_of("final_norm", self.final_norm, ("trained", "native"))
        one_of("compat", self.compat, ("clean", "released"))
        if self.compat == "released":
            self.widen, self.pos, self.scale = True, "learned", "patch"
            self.prompts, self.prompt_mode, self.keep_prompts = "deep", "static", True

    def slot_of(self, name: str, module: nn.Module, slots: dict[str, str]) -> str | None:
        slot = super().slot_of(name, module, slots)
        needed = {
            "cls": self.pos == "learned",
            "enter": self.layers == 0,
            "final_norm": self.final_norm == "trained" or self.layers == 0,
        }
        return slot if slot is not None and needed.get(slot, True) else None

    def choose_read(self, model: Any) -> None:
        """Of a classification, of shapes or clips; a segmentation goes on reading features of points or frames."""
        heads = getattr(model, "heads", ())
        if heads:
            own = None if self.head == "appt" and "appt" not in heads else self.head
            model.read_from(self.read or model.read, own)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if site.slot == "tokenizer":
            return PointTokens(width(frozen), self)
        if site.slot == "cls":
            return ClassPosition(width(frozen))
        if site.slot == "enter":
            return Skip()
        if site.slot == "final_norm":
            norm = frozen if isinstance(frozen, nn.LayerNorm) else None
            return NewNorm(norm.normalized_shape[0] if norm else width(frozen))
        return PromptedBlock(self, site)


METHODS["appt"] = APPTConfig


def pooled(feat: Tensor) -> Tensor:
    """[B, T, D] -> [B, 1, D], the prompt: maximum plus mean over tokens. It has no parameters."""
    return feat.amax(1, keepdim=True) + feat.mean(1, keepdim=True)


class Mix(nn.Module):
    """t + a t + b (t - mean of tokens) + c: APPT's permutation-invariant position feature; three scalars."""

    def __init__(self) -> None:
        super().__init__()
        drawn = nn.Linear(2, 1)
        self.weight, self.bias = nn.Parameter(drawn.weight.detach().flatten()), nn.Parameter(drawn.bias.detach())

    def forward(self, feat: Tensor) -> Tensor:
        own, deviation = self.weight
        return feat + own * feat + deviation * (feat - feat.mean(1, keepdim=True)) + self.bias


class PointTokens(Adapter):
    """In place of the tokenizer: Point -> Tokens "prompt" (if there are any) and "patch"."""

    def __init__(self, channels: int, config: APPTConfig) -> None:
        super().__init__()
        stem = config.width
        if config.widen:
            if channels % 24:
                raise UserError(
                    f"widen=True needs a transformer whose width is a multiple of 24 (its geometry code has sines and "
                    f"cosines of three axes at a quarter of the width), this one has {channels}: leave widen out"
                )
            stem = channels // 8
        sampling: Any = config.compat
        self.trunk = PointPN(stem, config.up, config.neighbors, config.groups, config.scale, sampling)
        self.project: nn.Module = nn.Identity()
        if not config.widen:
            self.project = nn.Linear(self.trunk.channels, channels)
            if config.match != "none":
                norm = nn.LayerNorm if config.match == "layer" else RowNorm
                self.project = nn.Sequential(self.project, norm(channels))
        self.mix = Mix()
        self.pos = None
        if config.pos == "learned":
            self.pos = nn.Parameter(torch.zeros(1, config.groups, channels))
        self.locate = Locate(channels) if config.pos == "mlp" else None
        self.prompted = config.prompts != "none" and config.layers != 0
        if not config.train_tokens:
            hold(self)

    def forward(self, base, point: Point) -> Tokens:
        feat, center = self.trunk(point)
        feat = self.project(feat)
        prompt = pooled(feat) if self.prompted else None
        pos = self.pos if self.pos is not None else self.locate(center) if self.locate is not None else None
        feat = self.mix(feat)
        pos = torch.zeros_like(feat) if pos is None else pos.to(feat.dtype).expand_as(feat)
        tokens = Tokens(feat, (("patch", feat.shape[1]),), pos, center, point, extra=point.extra, cache=point.cache)
        return tokens if prompt is None else tokens.insert("prompt", prompt, before="patch")


class Locate(nn.Sequential):
    """[B, G, 3] centres -> [B, G, D] positions; nothing at the start."""

    def __init__(self, channels: int) -> None:
        last = nn.Linear(128, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(3, 128), nn.GELU(), last)


class ClassPosition(Adapter):
    """The class token's row of the position table."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, base, tokens: Tokens) -> Tokens:
        out = base(tokens)
        rows = out.rows("cls")
        return out.but(
            pos=torch.cat([out.pos[:, : rows.start], out.pos[:, rows] + self.pos, out.pos[:, rows.stop :]], 1)
        )


class PromptedBlock(Adapter):
    """A frozen block with a prompt in front of the points, or none of it (``layers``)."""

    def __init__(self, config: APPTConfig, site: Site) -> None:
        super().__init__()
        self.index, self.layers = site.block or 0, site.blocks if config.layers is None else config.layers
        self.last = self.index == min(self.layers, site.blocks) - 1
        self.deep, self.repooled = config.prompts == "deep", config.prompt_mode == "repooled"
        self.keep, self.read = config.keep_prompts, config.read_prompts
        self.put_back = config.compat == "released"

    def forward(self, base, tokens: Tokens) -> Tokens:
        if self.index >= self.layers:
            return tokens.drop("cls") if self.layers == 0 else tokens
        key = f"appt {self.adapter_name}"
        if self.index == 0 and tokens.count("prompt"):
            tokens = tokens.but(extra={**tokens.extra, key: tokens.part("prompt")})
        elif self.deep and key in tokens.extra:
            prompt = pooled(tokens.feat) if self.repooled else tokens.extra[key]
            tokens = (tokens if self.keep else tokens.drop("prompt")).insert("prompt", prompt, before="patch")
        out = base(tokens)
        if self.last and self.put_back:
            out = out.with_part("prompt", torch.cat([out.part("prompt")[:, :-1], out.extra[key]], 1))
        return out if self.read or not self.last else out.drop("prompt")


class Skip(Adapter):
    """Nothing in place of the frozen module."""

    def forward(self, base, feat: Tensor) -> Tensor:
        return feat


class NewNorm(Adapter):
    """A trained LayerNorm in place of the frozen model's final one; [..., D] -> [..., D]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, base, feat: Tensor) -> Tensor:
        return self.norm(feat)
