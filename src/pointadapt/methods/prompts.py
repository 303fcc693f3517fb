"""Learned prompts that do not depend on the input: VPT puts tokens into the sequence, prefix tuning keys and values.

Jia et al.: Visual Prompt Tuning. ECCV 2022, arXiv 2203.12119; deep form for point clouds as in the IDPT repository
(specs/rivals.md section 2.1). Li and Liang: Prefix-Tuning. ACL 2021, arXiv 2101.00190 (section 2.6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, peft_method
from pointadapt.methods.sites import Site, width
from pointadapt.point import Point
from pointadapt.tokens import Tokens


@peft_method("vpt")
@dataclass
class VPTConfig(AdapterConfig):
    """Visual prompt tuning: learned tokens before every block, or before the first.

    Deep: 2 n C parameters per block, 92,160 on Point-MAE; shallow: n C once. The prompts are
    tokens "prompt", which the usual read-out ("cls", "max patch") leaves out.
    """

    works_on: ClassVar[tuple[str, ...]] = ("tokens",)
    needs: ClassVar[str] = "a sequence with room for more tokens; on scenes use method prefix"
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

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
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

    default_targets: ClassVar[tuple[str, ...]] = ("attn",)
    #: Attention is spread over more keys from the beginning.
    identity: ClassVar[bool] = False

    n: int = field(default=10, metadata={"help": "Learned keys and values per attention."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, n=self.n)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        return Prefix(width(frozen), self.n)


METHODS["prefix"] = PrefixConfig


class Prefix(Adapter):
    """Further keys and values, the same for every input."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.key, self.value = drawn(count, channels), drawn(count, channels)

    def forward(self, base, x: Point | Tokens, prompt: tuple[Tensor, Tensor] | None = None) -> Point | Tokens:
        """prompt: what an adapter above has given, both [n, C]."""
        own: tuple[Tensor, Tensor] = (self.key, self.value)
        if prompt is not None:
            own = (torch.cat([prompt[0], self.key]), torch.cat([prompt[1], self.value]))
        return base(x, prompt=own)
