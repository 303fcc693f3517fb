"""DAPT: scaling behind every operation, an adapter whose strength depends on the token, prompts made of its output.

Zhou et al.: Dynamic Adapter Meets Prompt Tuning. CVPR 2024, arXiv 2403.01439. The form for scenes is our reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.prompts import Prompt, first_after_cls, joined, keys_and_values
from pointadapt.methods.sites import Site, width
from pointadapt.methods.ssf import ScaleShift, out_width
from pointadapt.ops.segment import segment_mean
from pointadapt.point import Point
from pointadapt.tokens import Tokens

SCALED = ("tokenizer", "norm1", "qkv", "proj", "norm2", "fc1", "fc2", "final_norm")


@peft_method("dapt")
@dataclass
class DAPTConfig(AdapterConfig):
    """Defaults: 721,164 parameters on Point-MAE, 1,117,272 on Sonata-base.

    Every block makes one prompt of its adapter's output, read by the blocks behind it and by the head. On scenes,
    where a sequence has no room, prompts are one per cloud, keys and values for the later blocks of the same stage;
    that of a stage's last block is added to the cloud's points. The position embedding is added once, before the first
    block, as published. Published for ModelNet40: rank=72, read=["cls", "max patch"].
    """

    paper: ClassVar[str] = "Zhou et al. 2024, arXiv 2403.01439"
    default_targets: ClassVar[tuple[str, ...]] = (*SCALED, "mlp", "block", "attn")
    #: Scales start with noise, tokens are new to the backbone, positions are added once: the published method.
    identity: ClassVar[bool] = False

    rank: int = field(default=64, metadata={"help": "Width of the dynamic adapter."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout in the dynamic adapter (published: 0.2 or 0.5)."})
    prompts: bool = field(default=True, metadata={"help": "Make prompts of the adapters' output."})
    spread: float = field(default=0.02, metadata={"help": "Random start of scales around 1, of shifts around 0."})
    start: Literal["clean", "released"] = field(
        default="clean",
        metadata={
            "help": "Strength of the adapters at first: 1 for every token (clean), or random (released), where a block "
            "whose tokens all fall below zero never learns."
        },
    )
    read: list[str] | None = field(
        default=None,
        metadata={"help": "What a classification head reads. Default: cls, mean prompt, max patch."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        targets = self.target_modules or ()
        if self.prompts and "block" in targets and "mlp" not in targets:
            raise UserError("prompts are made of what adapters at mlp add: put mlp beside block, or set prompts false")
        at_least(1, rank=self.rank)
        one_of("start", self.start, ("clean", "released"))
        at_least(0, spread=self.spread)
        if self.read is None:
            self.read = self.usual

    @property
    def usual(self) -> list[str]:
        """What a classification head reads of tokens."""
        return ["cls", "mean prompt", "max patch"] if self.prompts else ["cls", "max patch"]

    def prepare(self, model: Any) -> None:
        backbone = getattr(model, "backbone", model)
        on_points = getattr(backbone, "kind", "points") == "points"
        unused = {"attn"} if not on_points else set() if self.prompts else {"attn", "block"}
        self.target_modules = [target for target in self.target_modules or () if target not in unused]
        is_parts = isinstance(getattr(model, "taps", None), tuple)  # part segmentation reads its taps
        if on_points or (is_parts and self.read == self.usual):
            self.read = None
        super().prepare(model)
        if self.target_modules and "mean prompt" in (self.read or ()) and "block" not in self.target_modules:
            raise UserError(
                f"method 'dapt' with target_modules={self.target_modules} makes no prompts, which its head reads: add "
                "block, or read something else"
            )

    def slot_of(self, name: str, module: nn.Module, slots: dict[str, str]) -> str | None:
        return super().slot_of(name, module, slots) if any(True for _ in module.parameters()) else None

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if site.slot == "mlp":
            return DynamicAdapter(width(frozen), self)
        if site.slot == "attn":
            return PromptedAttention()
        if site.slot == "block":
            on_points = hasattr(frozen, "cpe")
            return CloudPrompt(frozen, site, self) if on_points else TokenPrompt(width(frozen), self)
        return ScaleShift(out_width(frozen), self.spread)


METHODS["dapt"] = DAPTConfig


def key_of(adapter: Adapter, what: str) -> str:
    """Of state in ``extra``: "delta" a dynamic adapter's output, "prompts" those of this stage, "read" their keys
    and values in this block."""
    return f"dapt.{adapter.adapter_name}.{what}"


def without(extra: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in extra.items() if k != key}


class DynamicAdapter(Adapter):
    """MLP(y) + s (W_up GELU(W_down LN(y)) + b), s = ReLU(w LN(y) + b) one number per token."""

    def __init__(self, channels: int, config: DAPTConfig) -> None:
        super().__init__()
        self.keeps = config.prompts
        self.norm = nn.LayerNorm(channels)
        self.scale = nn.Linear(channels, 1)
        self.down, self.up = nn.Linear(channels, config.rank), nn.Linear(config.rank, channels)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for zero in (self.scale.bias, self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        if config.start == "released":  # 18 of 60 blocks of small random ViTs were dead at this start
            nn.init.kaiming_uniform_(self.scale.weight, a=5**0.5)
        else:
            nn.init.zeros_(self.scale.weight)
            nn.init.ones_(self.scale.bias)

    def forward(self, base, x: Point | Tokens) -> Point | Tokens:
        out = base(x)
        delta = self.delta(x.feat)
        extra = {**out.extra, key_of(self, "delta"): delta} if self.keeps else out.extra
        return out.but(feat=out.feat + delta, extra=extra)

    def delta(self, feat: Tensor) -> Tensor:
        feat = self.norm(feat)
        return self.scale(feat).relu() * self.up(self.dropout(F.gelu(self.down(feat))))


class TokenPrompt(Adapter):
    """Behind a block, its prompt TFTS(mean of GELU(adapter's output)) as the first token "prompt", after "cls".

    Before the first block positions are added, for good.
    """

    def __init__(self, channels: int, config: DAPTConfig) -> None:
        super().__init__()
        self.tfts = ScaleShift(channels, config.spread) if config.prompts else None

    def forward(self, base, tokens: Tokens) -> Tokens:
        out = base(tokens.placed().but(pos=None))
        if self.tfts is None:
            return out
        delta = out.extra[key_of(self, "delta")]
        out = out.but(extra=without(out.extra, key_of(self, "delta")))
        prompt = self.tfts.apply_to(F.gelu(delta).mean(1, keepdim=True))
        return out.insert("prompt", prompt, before=first_after_cls(out))


class CloudPrompt(Adapter):
    """The same for blocks over points: one prompt [B, C] per cloud, for the later blocks of this stage.

    They pass this block's norm and projection, as tokens of the sequence would.
    """

    def __init__(self, block: nn.Module, site: Site, config: DAPTConfig) -> None:
        super().__init__()
        self.block: tuple[Any] = (block,)  # in a tuple: a reference, not a part
        self.is_first, self.is_last = site.block == 0, site.block == site.blocks - 1
        self.tfts = ScaleShift(width(block), config.spread)

    def forward(self, base, point: Point) -> Point:
        key = key_of(self, "prompts")
        earlier = [] if self.is_first else point.extra.get(key, [])
        extra = without(point.extra, key)
        if earlier:
            extra[key_of(self, "read")] = self.as_read(torch.stack(earlier, 1), point)
        out = base(point.but(extra=extra))
        extra = without(without(out.extra, key_of(self, "read")), key_of(self, "delta"))
        delta = out.extra[key_of(self, "delta")]
        prompt = self.tfts.apply_to(segment_mean(F.gelu(delta), point.batch, point.num_clouds))
        if self.is_last:  # there is no attention to read it
            return out.but(feat=out.feat + prompt[point.batch], extra=extra)
        return out.but(extra={**extra, key: [prompt, *earlier]})

    def as_read(self, prompts: Tensor, point: Point) -> Prompt:
        """Each [B, n, C], of prompts [B, n, C] as they would be in this block."""
        mix = self.block[0].mix
        clouds, count, _ = prompts.shape
        rows = Point(
            prompts.new_zeros(clouds * count, 3),
            prompts.flatten(0, 1),
            torch.arange(1, clouds + 1, device=prompts.device) * count,
            condition=point.condition,
        )
        return keys_and_values(mix.attn, mix.norm(rows).unflatten(0, (clouds, count)))


class PromptedAttention(Adapter):
    """Hands the block's prompts to the attention; nothing is trained here."""

    def forward(self, base, point: Point, prompt: Prompt | None = None) -> Point:
        """prompt: what an adapter above has given."""
        read = point.extra.get(key_of(self, "read"))
        prompt = prompt if read is None else joined(prompt, read)
        return base(point) if prompt is None else base(point, prompt=prompt)
