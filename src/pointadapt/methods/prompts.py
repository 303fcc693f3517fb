"""Learned prompts that do not depend on the input: VPT has tokens in the sequence, prefix tuning keys and values.

Jia et al.: Visual Prompt Tuning. ECCV 2022, arXiv 2203.12119; deep form for point clouds as in the IDPT repository.
Li and Liang: Prefix-Tuning. ACL 2021, arXiv 2101.00190.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, peft_method
from pointadapt.methods.sites import Site, Unfit, attention, width
from pointadapt.point import Point
from pointadapt.tokens import Tokens

#: Keys and values of extra tokens, both [n, C], or one set per cloud [B, n, C].
Prompt = tuple[Tensor, Tensor]


@peft_method("vpt")
@dataclass
class VPTConfig(AdapterConfig):
    """Visual prompt tuning: learned tokens before every block, or before the first.

    Deep: 2 n C parameters per block, 92,160 on Point-MAE; shallow: n C once. The prompts are
    tokens "prompt", which the usual read-out ("cls", "max patch") leaves out. On scenes, whose windows along a curve
    have no room, tokens are deep and stand in front of every window: they pass the block's frozen projection to keys
    and values, which all points of the window see. n C parameters per block, 71,520 on Sonata-base.
    """

    paper: ClassVar[str] = "Jia et al. 2022, arXiv 2203.12119"
    needs: ClassVar[str] = "attention, which a convolutional network does not have"
    #: Attention is spread over more tokens from the beginning.
    identity: ClassVar[bool] = False

    n: int = field(default=10, metadata={"help": "Prompts in front of a block (published: 10, few-shot 20)."})
    deep: bool = field(
        default=True,
        metadata={
            "help": "New prompts with positions of their own for every block, at the end of the sequence; if not, one "
            "set behind the class token that goes through all blocks."
        },
    )

    def __post_init__(self) -> None:
        at_least(1, n=self.n)
        if self.target_modules is None:
            self.target_modules = ["block" if self.deep else r"blocks\.0"]
        super().__post_init__()

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        self.on_points = getattr(getattr(model, "backbone", model), "kind", "points") == "points"
        if self.on_points:
            if not self.deep:
                raise UserError(
                    "method 'vpt' with deep=False cannot work on a scene backbone: it needs one sequence that goes "
                    "through all blocks, and points are pooled between them"
                )
            self.target_modules = ["attn" if target == "block" else target for target in self.target_modules or ()]

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if self.on_points or hasattr(frozen, "qkv"):
            return WindowPrompts(attention(frozen), self.n)
        if not site.is_block:
            raise Unfit(f"{type(frozen).__name__} is no block, which is what tokens can be put in front of")
        return DeepPrompts(width(frozen), self.n) if self.deep else ShallowPrompts(width(frozen), self.n)


METHODS["vpt"] = VPTConfig


def drawn(*shape: int) -> nn.Parameter:
    """A truncated normal start of standard deviation 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


class DeepPrompts(Adapter):
    """The block sees its own prompts in place of those of the block before; what becomes of them is not used."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.token, self.pos = drawn(1, count, channels), drawn(1, count, channels)

    def forward(self, base, tokens: Tokens) -> Tokens:
        token = self.token if tokens.pos is not None else self.token + self.pos
        return base(tokens.drop("prompt").insert("prompt", token, self.pos))


class WindowPrompts(Adapter):
    """Tokens [n, C] in the place of normed points, of which every window sees the keys and values."""

    def __init__(self, attn: nn.Module, count: int) -> None:
        super().__init__()
        self.attn: tuple[Any] = (attn,)  # in a tuple: a reference, not a part
        self.token = drawn(count, width(attn))

    def forward(self, base, point: Point, prompt: Prompt | None = None) -> Point:
        return base(point, prompt=joined(prompt, keys_and_values(self.attn[0], self.token)))


def keys_and_values(attn: Any, tokens: Tensor) -> Prompt:
    """Each [..., n, C]: what a frozen attention makes of tokens [..., n, C]."""
    _, key, value = attn.qkv(tokens).chunk(3, -1)
    return key, value


def joined(given: Prompt | None, own: Prompt) -> Prompt:
    """Keys and values of an adapter above and an adapter's own, [n, C] or [B, n, C] each, behind each other."""
    if given is None:
        return own
    parts = []
    for above, mine in zip(given, own, strict=True):
        if above.ndim < mine.ndim:
            above = above.expand(len(mine), -1, -1)
        elif mine.ndim < above.ndim:
            mine = mine.expand(len(above), -1, -1)
        parts.append(torch.cat([above, mine], -2))
    return parts[0], parts[1]


class ShallowPrompts(Adapter):
    """Prompts behind the class token, before the first block."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.token = drawn(1, count, channels)

    def forward(self, base, tokens: Tokens) -> Tokens:
        return base(tokens.insert("prompt", self.token, before=first_after_cls(tokens)))


def first_after_cls(tokens: Tokens) -> str:
    """Name of the part that stands behind what every sequence begins with: PointGPT's "sos", and "cls"."""
    return next(name for name, _ in tokens.layout if name not in ("sos", "cls"))


@peft_method("prefix")
@dataclass
class PrefixConfig(AdapterConfig):
    """Prefix tuning: learned keys and values for every attention.

    2 n C parameters per block: 92,160 on Point-MAE; with n=4, the published 57,216 on Sonata-base. On scenes
    every attention window sees them. In ReCon they are for the groups, not for the global tokens.
    """

    paper: ClassVar[str] = "Li and Liang 2021, arXiv 2101.00190"
    default_targets: ClassVar[tuple[str, ...]] = ("attn",)
    #: Attention is spread over more keys from the beginning.
    identity: ClassVar[bool] = False

    n: int = field(default=10, metadata={"help": "Learned keys and values per attention."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, n=self.n)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        return Prefix(width(attention(frozen)), self.n)


METHODS["prefix"] = PrefixConfig


class Prefix(Adapter):
    """Further keys and values, the same for every input."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.key, self.value = drawn(count, channels), drawn(count, channels)

    def forward(self, base, x: Point | Tokens, prompt: Prompt | None = None) -> Point | Tokens:
        """prompt: what an adapter above has given."""
        return base(x, prompt=joined(prompt, (self.key, self.value)))
