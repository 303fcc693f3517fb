"""PointGPT: groups of points in a chain, read from its beginning by causal attention.

It differs from Point-MAE in the order of the groups, the position embedding, the mask, the residual of the attention
and what stands in front. Quirks that its checkpoints need, and that are therefore kept: positions
have a single frequency; the position learned for "cls" stands on "sos" and the other way round; "cls" sees only
itself and "sos", so that without prompts it is the same for every cloud. The generator of its pretraining is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.backbones.point_vit import RENAMED, Attention, Block, ClassTokens, PointViT, PointViTConfig, Tokenizer
from pointadapt.ops.neighbors import gather
from pointadapt.point import Point
from pointadapt.tokens import Tokens

#: Tokens of the network itself; all others were put in by a method.
OWN = ("sos", "cls", "patch")


class SinePosition(nn.Module):
    """sin and cos of 2 pi x, then of y and z, each pair repeated over the axis' channels; zeros up to C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.pairs = channels, channels // 6

    def forward(self, center: Tensor) -> Tensor:
        angle = 2 * math.pi * center
        waves = torch.stack([angle.sin(), angle.cos()], -1)  # [B, G, 3, 2]
        waves = waves[..., None, :].expand(*waves.shape[:-1], self.pairs, 2).flatten(-3)
        return F.pad(waves, (0, self.channels - waves.shape[-1]))


class ChainTokenizer(Tokenizer):
    """Groups in the order of :func:`chain`, with fixed positions."""

    position: ClassVar[type[nn.Module]] = SinePosition

    def tokens(self, coord: Tensor, center: Tensor, point: Point) -> Tokens:
        order = chain(center)
        shape = coord.shape
        coord = gather(coord.flatten(2), order).view(shape)
        return super().placed(self.reduce(self.embed(coord)), gather(center, order), point)

    def placed(self, feat: Tensor, center: Tensor, point: Point) -> Tokens:
        order = chain(center)
        return super().placed(gather(feat, order), gather(center, order), point)


@torch.no_grad()
def chain(center: Tensor) -> Tensor:
    """[B, G] order of centres [B, G, 3]: from the first one always to the nearest that is left."""
    batch, groups, _ = center.shape
    lines = torch.arange(batch, device=center.device)
    distance = (center[:, :, None] - center[:, None]).square().sum(-1)
    last = center.new_zeros(batch, dtype=torch.long)
    order = [last]
    for _ in range(groups - 1):
        distance[lines, :, last] = math.inf
        last = distance[lines, last].argmin(-1)
        order.append(last)
    return torch.stack(order, 1)


class CausalAttention(Attention):
    """A token sees itself, those before it, and wherever they stand the tokens that a method inserted.

    So an inserted prompt works at any place, like the further keys and values of prefix tuning.
    """

    def mask(self, tokens: Tokens) -> Tensor:
        return tokens.remember(("causal", tokens.layout), lambda: self.make_mask(tokens))

    @staticmethod
    def make_mask(tokens: Tokens) -> Tensor:
        """[T, T] bool: row may look at column."""
        own = [name in OWN for name, count in tokens.layout for _ in range(count)]
        is_inserted = ~torch.tensor(own, device=tokens.feat.device)
        return torch.ones(len(own), len(own), device=is_inserted.device).tril().bool() | is_inserted


class CausalBlock(Block):
    """y = norm1(x + position), y = y + attention(y), y = y + feed-forward(norm2(y))."""

    attention: ClassVar[type[Attention]] = CausalAttention
    has_norm: ClassVar[tuple[bool, bool]] = (False, True)

    def __init__(self, config: PointViTConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        self.norm1 = nn.LayerNorm(config.channels)

    def forward(self, tokens: Tokens) -> Tokens:
        tokens = tokens.placed()
        tokens = tokens.but(feat=self.norm1(tokens.feat))
        tokens = tokens.plus(self.mix(tokens))
        return tokens.plus(self.ffn(tokens))


class StartToken(ClassTokens):
    """Puts a learned token "sos" in front of "cls". The two have each other's position, as in the released code."""

    def forward(self, tokens: Tokens) -> Tokens:
        assert tokens.pos is not None
        own, rest = tokens.pos[:, tokens.rows("cls")], tokens.pos[:, tokens.rows("cls").stop :]
        tokens = tokens.insert("sos", self.token, before="cls")
        return tokens.but(pos=torch.cat([own, self.pos.to(own.dtype).expand_as(own), rest], 1))


class PointGPT(PointViT):
    """PointViT with PointGPT's groups, blocks and tokens ("sos", "cls", then "patch").

    "cls" and its position, and the norm ``cls_norm`` behind the final one, are always trained: the published rule.
    """

    slots: ClassVar[dict[str, str]] = {**PointViT.slots, "norm1": r"blocks\.\d+\.norm1"}
    block: ClassVar[type[nn.Module]] = CausalBlock
    tokenizer_class: ClassVar[type[nn.Module]] = ChainTokenizer
    renamed: ClassVar[list[tuple[str, str]]] = [
        *RENAMED[:3],
        (r"^sos_pos$", "start.pos"),
        (r"^blocks\.sos$", "start.token"),
        (r"^blocks\.ln_f\.", "final_norm."),
        (r"^blocks\.cls_norm\.", "cls_norm."),
        (r"^blocks\.layers\.", "blocks."),
        (r"^(blocks\.\d+)\.ln_1\.", r"\1.norm1."),
        (r"^(blocks\.\d+)\.ln_2\.", r"\1.ffn.norm."),
        (r"^(blocks\.\d+)\.attn\.in_proj_", r"\1.mix.attn.qkv."),
        (r"^(blocks\.\d+)\.attn\.out_proj\.", r"\1.mix.attn.proj."),
        (r"^(blocks\.\d+)\.mlp\.0\.", r"\1.ffn.mlp.fc1."),
        (r"^(blocks\.\d+)\.mlp\.2\.", r"\1.ffn.mlp.fc2."),
    ]

    def __init__(self, config: PointViTConfig) -> None:
        if config.cls_tokens != 1:
            raise ValueError(f"PointViTConfig.cls_tokens is {config.cls_tokens}; PointGPT has 1")
        super().__init__(config)
        self.start = StartToken(1, config.channels)
        self.cls_norm = nn.LayerNorm(config.channels)
        self.fresh = ["cls", "cls_norm"]

    def enter(self, point: Point) -> Tokens:
        return self.start(super().enter(point))

    def leave(self, tokens: Tokens) -> Tokens:
        tokens = super().leave(tokens)
        return tokens.but(feat=self.cls_norm(tokens.feat))

    @classmethod
    def from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without the unused final norm and what belongs to the generator and to the head."""
        aside = ("norm.", "blocks.increase_dim.", "blocks.cls_head_finetune.", "generator_blocks.")
        found = super().from_official({k: v for k, v in state.items() if not k.startswith(aside)})
        return {k: v.view(1, 1, -1) if k == "start.token" else v for k, v in found.items()}
