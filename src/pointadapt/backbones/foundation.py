"""Foundation models of other modalities (images, text, audio) as frozen backbones: Hugging Face transformers' blocks.

Only the blocks, the norms around them and the vector of the model's own start token are kept; embeddings of pixels and
words go. Whoever makes tokens out of points takes the place of ``tokenizer`` (method appt). What differs
between their architectures is in :class:`Family`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pointadapt.backbones.backbone import Backbone
from pointadapt.errors import UserError
from pointadapt.ops.attention import quick_attention
from pointadapt.point import Point
from pointadapt.tokens import Tokens


@dataclass(frozen=True)
class Family:
    """Where an architecture of transformers keeps what is used here; all are dotted names inside the model.

    model   its class;  blocks  the ModuleList;  enter, leave  norms before and after the blocks
    start   the parameter of its class token, or the table of words whose row ``word`` starts a text
    word    that row, or the entry of the config that says it
    causal  natively, no token sees later ones
    rotary  what makes rotary positions;  options  further arguments of the class
    """

    model: str
    blocks: str
    enter: str | None = None
    leave: str | None = None
    start: str | None = None
    word: int | str | None = None
    causal: bool = False
    rotary: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


VIT = Family("ViTModel", "layers", leave="layernorm", start="embeddings.cls_token")
BERT = Family(
    "BertModel",
    "encoder.layer",
    enter="embeddings.LayerNorm",
    start="embeddings.word_embeddings.weight",
    word=101,
    options={"add_pooling_layer": False},
)
LLAMA = Family(
    "LlamaModel",
    "layers",
    leave="norm",
    start="embed_tokens.weight",
    word="bos_token_id",
    causal=True,
    rotary="rotary_emb",
)
CLIP_VISION = Family(
    "CLIPVisionModel", "encoder.layers", "pre_layrnorm", "post_layernorm", "embeddings.class_embedding"
)
CLIP_TEXT = Family(
    "CLIPTextModel",
    "encoder.layers",
    leave="final_layer_norm",
    start="embeddings.token_embedding.weight",
    word="bos_token_id",
    causal=True,
)
#: ``model_type`` in a model's config.json -> its family. 101 is [CLS] in all of BERT's vocabularies.
FAMILIES: dict[str, Family] = {
    "vit": replace(VIT, options={"add_pooling_layer": False}),
    "deit": replace(VIT, model="DeiTModel", options={"add_pooling_layer": False}),
    "vit_mae": replace(VIT, model="ViTMAEModel"),
    "audio-spectrogram-transformer": replace(VIT, model="ASTModel"),
    "dinov2": replace(VIT, model="Dinov2Model", blocks="encoder.layer"),
    "clip_vision_model": CLIP_VISION,
    "clip_text_model": CLIP_TEXT,
    "siglip_vision_model": Family("SiglipVisionModel", "encoder.layers", leave="post_layernorm"),
    "bert": BERT,
    "roberta": replace(BERT, model="RobertaModel", word="bos_token_id"),
    "distilbert": replace(BERT, model="DistilBertModel", blocks="transformer.layer", options={}),
    "gpt2": Family("GPT2Model", "h", leave="ln_f", start="wte.weight", word="bos_token_id", causal=True),
    "llama": LLAMA,
    "qwen2": replace(LLAMA, model="Qwen2Model"),
}


@dataclass(frozen=True)
class FoundationConfig:
    """What decides the network: the ``model_type`` of transformers, its size, and how its blocks are used."""

    architecture: str
    channels: int
    depth: int
    attention: Literal["bidirectional", "native"] = "bidirectional"
    positions: Literal["none", "index"] = "none"


class NoTokenizer(nn.Module):
    """Where tokens would be made out of points, if these models could do that."""

    def __init__(self, channels: int, name: str) -> None:
        super().__init__()
        self.channels, self.name = channels, name

    def forward(self, point: Point) -> Tokens:
        raise UserError(f"{self.name} knows no point clouds: adapt it with method appt")


class StartToken(nn.Module):
    """Puts the model's own class token, or the word that starts its texts, in front as "cls"; frozen."""

    token: Tensor

    def __init__(self, token: Tensor) -> None:
        super().__init__()
        self.channels = token.shape[-1]
        self.register_buffer("token", token.detach().float().reshape(1, 1, -1).clone())

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.insert("cls", self.token, before=tokens.layout[0][0])


class Norm(nn.Module):
    """One of the model's norms, [..., D] -> [..., D]; None: it has none there."""

    def __init__(self, norm: nn.Module | None, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.norm = norm if norm is not None else nn.Identity()

    def forward(self, feat: Tensor) -> Tensor:
        return self.norm(feat)


class Block(nn.Module):
    """One block of the model, Tokens -> Tokens.

    attention  "bidirectional": every token sees every token; "native": as the model was trained
    causal     the family hides later tokens; its blocks take a missing mask for that under one implementation of
               attention and not under another, so they always get one
    positions  of rotary embeddings: "none" turns nothing, "index" counts tokens
    """

    def __init__(
        self,
        layer: nn.Module,
        channels: int,
        causal: bool,
        attention: Literal["bidirectional", "native"],
        rotary: nn.Module | None,
        positions: Literal["none", "index"],
    ) -> None:
        super().__init__()
        self.layer, self.channels, self.rotary = layer, channels, rotary
        self.causal, self.hides = causal, causal and attention == "native"
        self.positions = positions

    def forward(self, tokens: Tokens) -> Tokens:
        tokens = tokens.placed()
        feat = tokens.feat
        extra: dict[str, Any] = {}
        if self.rotary is not None:
            index = torch.arange(feat.shape[1], device=feat.device)[None]
            index = index if self.positions == "index" else torch.zeros_like(index)
            extra = {"position_embeddings": self.rotary(feat, index), "position_ids": index}
        with quick_attention(feat):
            out = self.layer(feat, attention_mask=self.mask(tokens), **extra)
        return tokens.but(feat=out[0] if isinstance(out, tuple) else out)

    def mask(self, tokens: Tokens) -> Tensor | None:
        """Additive [B or 1, 1, T, T]; None only where the model takes that for "everything is seen"."""
        mask = tokens.mask
        if mask is not None:
            mask = mask if mask.ndim == 4 else mask[None, None]
        if not self.causal:
            return mask
        length = tokens.feat.shape[1]
        own = tokens.feat.new_zeros(1, 1, length, length)
        if self.hides:
            own = own + tokens.feat.new_full((length, length), torch.finfo(own.dtype).min).triu(1)
        return own if mask is None else own + mask


class Foundation(Backbone):
    """``forward(Point) -> Tokens`` through the frozen blocks of a transformers model, once a method makes the tokens.

    model      an instance of one of the classes in :data:`FAMILIES`; its blocks and norms are taken over, not copied
    attention  "bidirectional" (default) or "native": causal for GPT-2, Llama, Qwen2 and CLIP's text tower, where a
               class token in front would see nothing and results would depend on the order of the tokens
    positions  rotary positions: "none" (default, free of order) or "index"

    Its parts are always in eval mode, whatever :meth:`train` says: BERT and GPT-2 carry dropout in their configs. The
    pooler is not used. LoRA's slots: qkv, proj, fc1, fc2 are the Linear layers (GPT-2: Conv1D) of all families.
    Raises UserError for an architecture that is not in FAMILIES.
    """

    slots: ClassVar[dict[str, str]] = {
        "tokenizer": r"tokenizer",
        "cls": r"cls",
        "enter": r"entry",
        "block": r"blocks\.\d+",
        "qkv": r"layer\..*(?:[qkv]_proj|query|key|value|[qkv]_lin|c_attn)",
        "proj": r"layer\..*(?:o_proj|out_proj|out_lin|attention\.output\.dense|attn\.c_proj)",
        "fc1": r"layer\..*(?:fc1|intermediate\.dense|lin1|c_fc|up_proj|gate_proj)",
        "fc2": r"layer\.(?:output\.dense|.*(?:fc2|lin2|mlp\.c_proj|down_proj))",
        "final_norm": r"final_norm",
    }
    kind: ClassVar[str] = "tokens"
    reads: ClassVar[tuple[str, ...]] = ("cls", "max patch")

    def __init__(
        self,
        model: nn.Module,
        name: str = "foundation model",
        attention: Literal["bidirectional", "native"] = "bidirectional",
        positions: Literal["none", "index"] = "none",
    ) -> None:
        super().__init__()
        config: Any = model.config
        family = family_of(config.model_type)
        if attention not in ("bidirectional", "native"):
            raise UserError(f'attention must be "bidirectional" or "native", not {attention!r}')
        if positions not in ("none", "index"):
            raise UserError(f'positions must be "none" or "index", not {positions!r}')
        self.name_or_path = name
        channels = self.out_channels = int(config.hidden_size)
        self.in_channels = 3
        rotary = inside(model, family.rotary)
        self.tokenizer = NoTokenizer(channels, name)
        self.cls = StartToken(start_token(model, family, channels))
        self.entry = Norm(inside(model, family.enter), channels)
        self.blocks = nn.ModuleList(
            Block(layer, channels, family.causal, attention, rotary, positions)
            for layer in model.get_submodule(family.blocks).children()
        )
        self.final_norm = Norm(inside(model, family.leave), channels)
        self.depth = len(self.blocks)
        self.config = FoundationConfig(config.model_type, channels, self.depth, attention, positions)
        self.requires_grad_(False)
        self.still = list(self.modules())[1:]  # what adapters bring later is not in it
        self.eval()

    def forward(self, point: Point) -> Tokens:  # type: ignore[override]
        *_, tokens = self.stages(point)
        return self.leave(tokens)

    def stages(self, point: Point) -> Iterator[Tokens]:
        """What leaves the blocks, one by one, before the final norm."""
        tokens = self.enter(self.cls(self.tokenizer(point)))
        for block in self.blocks:
            tokens = self.through(block, tokens)
            yield tokens

    def enter(self, tokens: Tokens) -> Tokens:
        """Positions added, and the norm that stands before the blocks (BERT's and CLIP vision's; else nothing)."""
        tokens = tokens.placed()
        return tokens.but(feat=self.entry(tokens.feat), pos=None)

    def leave(self, tokens: Tokens) -> Tokens:
        """The norm behind the last block; BERT's family has none."""
        return tokens.but(feat=self.final_norm(tokens.feat))

    def taps(self, point: Point, layers: Sequence[int]) -> list[Tokens]:
        """Normed outputs of the blocks ``layers`` (counted from 0), as part segmentation reads them."""
        return [self.leave(tokens) for index, tokens in enumerate(self.stages(point)) if index in layers]

    def train(self, mode: bool = True) -> Foundation:
        super().train(mode)
        for module in self.still:
            module.training = False
        return self


def family_of(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise UserError(
            f"architecture {model_type!r} is not supported as a foundation model; these are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def inside(model: nn.Module, name: str | None) -> nn.Module | None:
    return None if name is None else model.get_submodule(name)


def start_token(model: nn.Module, family: Family, channels: int) -> Tensor:
    """[D] what the model's own sequences start with; where it has nothing of the kind, fixed noise of std 0.02.

    Never zeros: behind a zero row stands a LayerNorm whose gradient is 1 / sqrt(eps) there.
    """
    noise = 0.02 * torch.randn(channels, generator=torch.Generator().manual_seed(0))
    if family.start is None:
        return noise
    owner, _, name = family.start.rpartition(".")
    value = getattr(model.get_submodule(owner), name)
    if family.word is None:
        return value.flatten()
    row = getattr(model.config, family.word, None) if isinstance(family.word, str) else family.word
    return value[row] if isinstance(row, int) and 0 <= row < len(value) else noise
