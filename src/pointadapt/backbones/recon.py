"""ReCon: a ViT over groups of points, and three global tokens (cls, img, text) that only look at them.

Two streams side by side: the groups attend to one another and never see the global tokens; these ask the groups by
cross-attention and have norms and MLPs of their own (``contrast``). In both, the residual starts from the NORMALISED
stream: y = LN(x), x = y + branch(y), so the norms belong to the block and not to its branches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.point_vit import MLP, RENAMED, Attention, Block, PointViT, PointViTConfig
from pointadapt.ops.attention import attend
from pointadapt.tokens import Tokens


def streams(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """(features of the global tokens, of all others: groups and whatever a method inserted)."""
    # of a strided input torch multiplies a frozen weight by another kernel than a trainable one: other last bits
    return tokens.part("cls").contiguous(), tokens.drop("cls").feat


def joined(tokens: Tokens, whole: Tensor, groups: Tensor) -> Tokens:
    """The inverse of :func:`streams`."""
    at = tokens.rows("cls").start
    return tokens.but(feat=torch.cat([groups[:, :at], whole, groups[:, at:]], 1))


class CrossAttention(nn.Module):
    """Queries [B, Q, C] ask tokens [B, T, C]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(channels, 2 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, whole: Tensor, groups: Tensor) -> Tensor:
        parts = (self.q(whole), *self.kv(groups).chunk(2, -1))
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)
        feat = attend(query, key, value)
        return self.proj(feat.transpose(1, 2).flatten(2))


class TwoAttentions(Attention):
    """Attention among the groups (qkv, proj), cross-attention from the global tokens (contrast)."""

    def __init__(self, channels: int, heads: int, qkv_bias: bool = False) -> None:
        super().__init__(channels, heads, qkv_bias)
        self.contrast = CrossAttention(channels, heads)

    def forward(self, tokens: Tokens, prompt: tuple[Tensor, Tensor] | None = None) -> Tokens:
        """prompt: further keys and values for the groups."""
        whole, groups = streams(tokens)
        mixed = super().forward(tokens.drop("cls"), prompt).feat
        return joined(tokens, self.contrast(whole, groups), mixed)


class TwoMLPs(MLP):
    """One MLP for the groups (fc1, fc2), one for the global tokens (contrast)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(channels, hidden)
        layers = (("fc1", nn.Linear(channels, hidden)), ("act", nn.GELU()), ("fc2", nn.Linear(hidden, channels)))
        self.contrast = nn.Sequential(OrderedDict(layers))

    def forward(self, tokens: Tokens) -> Tokens:
        whole, groups = streams(tokens)
        return joined(tokens, self.contrast(whole), self.fc2(F.gelu(self.fc1(groups))))


class ReConBlock(Block):
    """y = norm1(x + position), x = y + attention(y), y = norm2(x), x = y + feed-forward(y), in both streams."""

    attention: ClassVar[type[Attention]] = TwoAttentions
    feed_forward: ClassVar[type[MLP]] = TwoMLPs
    has_norm: ClassVar[tuple[bool, bool]] = (False, False)

    def __init__(self, config: PointViTConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        self.norm1, self.norm1_contrast = nn.LayerNorm(config.channels), nn.LayerNorm(config.channels)
        self.norm2, self.norm2_contrast = nn.LayerNorm(config.channels), nn.LayerNorm(config.channels)

    def forward(self, tokens: Tokens) -> Tokens:
        whole, groups = streams(tokens.placed())
        tokens = joined(tokens, self.norm1_contrast(whole), self.norm1(groups))
        tokens = tokens.plus(self.mix(tokens))
        whole, groups = streams(tokens)
        tokens = joined(tokens, self.norm2_contrast(whole), self.norm2(groups))
        return tokens.plus(self.ffn(tokens))


class ReCon(PointViT):
    """PointViT with ReCon's blocks; ("cls", 3) are its cls, img and text tokens.

    The slots qkv, proj, fc1, fc2, norm1, norm2 are those of the groups' stream, ``*_contrast`` those of the global
    tokens'; tokenizer, block, mix, ffn, attn and mlp hold both. Drop path falls on both streams of a sample at once.
    """

    slots: ClassVar[dict[str, str]] = {
        **PointViT.slots,
        "norm1": r"blocks\.\d+\.norm1",
        "norm2": r"blocks\.\d+\.norm2",
        "norm1_contrast": r"norm1_contrast",
        "norm2_contrast": r"norm2_contrast",
        "q_contrast": r"mix\.attn\.contrast\.q",
        "kv_contrast": r"mix\.attn\.contrast\.kv",
        "proj_contrast": r"mix\.attn\.contrast\.proj",
        "fc1_contrast": r"ffn\.mlp\.contrast\.fc1",
        "fc2_contrast": r"ffn\.mlp\.contrast\.fc2",
    }
    block: ClassVar[type[nn.Module]] = ReConBlock
    part_reads: ClassVar[tuple[str, ...]] = ("max", "mean", "max cls")
    renamed: ClassVar[list[tuple[str, str]]] = [
        *(rule for rule in RENAMED if not rule[1].endswith(".norm.")),
        (r"^(blocks\.\d+)\.attn_contrast\.", r"\1.mix.attn.contrast."),
        (r"^(blocks\.\d+)\.mlp_contrast\.", r"\1.ffn.mlp.contrast."),
    ]

    @classmethod
    def from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        merged = dict(state)
        for what in ("token", "pos"):
            names = [f"{name}_{what}" for name in ("cls", "img", "text")]
            if all(name in merged for name in names):
                merged[names[0]] = torch.cat([merged.pop(name) for name in names], 1)
        return super().from_official(merged)


class ReConAsViT(PointViT):
    """ReCon's groups' stream in Point-MAE's blocks, its global tokens but cls left out.

    It is what published tables call ReCon with DAPT, PointGST or IDPT: 22.1 M parameters, and not the function that
    was pretrained, since the residual of these blocks starts before the norm.
    """

    @classmethod
    def from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {k: v for k, v in state.items() if "_contrast." not in k and not k.startswith(("img_", "text_"))}
        return super().from_official(kept)
