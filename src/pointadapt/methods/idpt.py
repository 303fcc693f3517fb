"""IDPT: a prompt generated from the tokens of the instance itself, put in before one of the last blocks.

Zha et al.: Instance-aware Dynamic Prompt Tuning for Pre-trained Point Cloud Models. ICCV 2023, arXiv 2304.07221.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.prompts import Prompt, drawn, joined, keys_and_values
from pointadapt.methods.sites import Site, Unfit, attention, in_decoder, matches, plain_modules, width
from pointadapt.ops.amax import amax
from pointadapt.ops.batchnorm import RowNorm
from pointadapt.ops.neighbors import gather
from pointadapt.ops.order import curve_order
from pointadapt.point import Point
from pointadapt.tokens import Tokens

#: What the head reads, by the published names.
READS = {
    "all": ["cls", "prompt", "max patch"],
    "promptonly": ["prompt"],
    "promptcls": ["cls", "prompt"],
    "pointcls": ["cls", "max patch"],
}
#: Part segmentation: generated prompts, and what their blocks make of them.
PROMPTS, OUTPUTS = "idpt prompts", "idpt outputs"


@peft_method("idpt")
@dataclass
class IDPTConfig(AdapterConfig):
    """Defaults: one DGCNN of 9 C^2 + 8 C parameters (1,330,176 on Point-MAE) before the last block, three-part head.

    On scenes, which have no groups, the DGCNN sees ``tokens`` points of each cloud, taken evenly along the curve, as
    they enter the attention of one block (published and here: of the last stage). Its prompt passes the frozen
    projection to keys and values that every window of the cloud sees in that block: 2,363,392 parameters on
    Sonata-base. PointTPA's table prints 2.61 M, which is their sum with a head for 200 classes (246,600), while its
    other rows fit a head for 20 (24,660): we infer that ScanNet200's head was counted.
    For part segmentation one light generator stands before each block the head taps; its prompt lives for that block,
    and the prompts with their outputs take the place of the maximum and mean that the head reads.
    """

    paper: ClassVar[str] = "Zha et al. 2023, arXiv 2304.07221"
    default_targets: ClassVar[tuple[str, ...]] = ("block",)
    needs: ClassVar[str] = "attention, which a convolutional network does not have"
    #: The prompt is new to the backbone.
    identity: ClassVar[bool] = False

    layer: int = field(
        default=-1,
        metadata={"help": "Block that the prompt enters, from 0 or (negative) from the end (published: -1, 6)."},
    )
    module: Literal["dgcnn", "dgcnn_light", "mlp", "transformer"] | None = field(
        default=None,
        metadata={"help": "Generator. Default: dgcnn; dgcnn_light (one layer) for part segmentation."},
    )
    neighbors: int = field(default=20, metadata={"help": "Neighbours in feature space, the token itself included."})
    tokens: int = field(default=128, metadata={"help": "Points of a scene that its generator sees."})
    cls_type: Literal["all", "promptonly", "promptcls", "pointcls"] = field(
        default="all", metadata={"help": "Parts a classification head reads: class token, prompt, maximum of groups."}
    )
    prompt_pos: Literal["frozen", "trained"] | None = field(
        default=None,
        metadata={
            "help": "The prompt's position stays as drawn or is trained. Default as published: frozen (by mistake), "
            "trained for part segmentation."
        },
    )
    read: list[str] | None = field(
        default=None, metadata={"help": "Parts that the head reads. Default: what cls_type stands for."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("module", self.module, (None, *GENERATORS))
        one_of("cls_type", self.cls_type, tuple(READS))
        one_of("prompt_pos", self.prompt_pos, (None, "frozen", "trained"))
        at_least(1, neighbors=self.neighbors)
        at_least(2, tokens=self.tokens)
        if self.read is None:
            self.read = READS[self.cls_type]

    def prepare(self, model: Any) -> None:
        backbone = getattr(model, "backbone", model)
        self.on_points = getattr(backbone, "kind", "points") == "points"
        taps = getattr(model, "taps", None)
        #: The blocks that the head of a part segmentation taps (a backbone's ``taps`` is a function).
        self.taps: tuple[int, ...] = taps if isinstance(taps, tuple) else ()
        if self.on_points:
            self.read = None
        elif self.taps and self.read == READS[self.cls_type]:
            self.read = [f"extra {PROMPTS}", f"extra {OUTPUTS}"]
        super().prepare(model)
        named = plain_modules(backbone)
        blocks = [name for name in named if matches(name, "block", backbone.slots) and not in_decoder(name)]
        if not -len(blocks) <= self.layer < len(blocks):
            raise UserError(f"layer must be a block of the backbone, which has {len(blocks)}, not {self.layer}")
        #: In a tuple: a reference, not a part. What a part segmentation's head gets has passed the final norm.
        self.final_norm = (getattr(backbone, "final_norm", None),)
        if self.target_modules == ["block"]:
            inside = r"\.mix\.attn" if self.on_points else ""
            self.target_modules = [re.escape(blocks[layer]) + inside for layer in self.taps or (self.layer,)]

    def shared(self, sites: list[Site]) -> nn.Module | None:
        if not self.taps:
            return None
        return Position(cast(Any, self.final_norm[0]).weight.shape[0], self.prompt_pos != "frozen")

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        if self.on_points:
            attention(frozen)
        elif not site.is_block:
            raise Unfit(f"{type(frozen).__name__} is no block, which is what a prompt can be put in front of")
        generator = GENERATORS[self.module or ("dgcnn_light" if self.taps else "dgcnn")](width(frozen), self.neighbors)
        if self.on_points:
            return ScenePrompt(frozen, generator, self.tokens)
        if self.taps:
            return TapPrompt(generator, cast(nn.Module, self.final_norm[0]), site.block == self.taps[0], shared)
        return InstancePrompt(generator, Position(width(frozen), self.prompt_pos == "trained"))


METHODS["idpt"] = IDPTConfig


class Position(nn.Module):
    """The position embedding of a prompt, [1, 1, C]."""

    pos: Tensor

    def __init__(self, channels: int, trained: bool) -> None:
        super().__init__()
        start = drawn(1, 1, channels)
        if trained:
            self.pos = start
        else:
            self.register_buffer("pos", start.detach())


class InstancePrompt(Adapter):
    """Token "prompt" [B, 1, C] in front of the groups, from here to the end."""

    def __init__(self, generator: nn.Module, place: Position) -> None:
        super().__init__()
        self.generator, self.place = generator, place

    def forward(self, base, tokens: Tokens) -> Tokens:
        prompt = self.generator(tokens.part("patch"))
        return base(tokens.insert("prompt", prompt, self.place.pos, before="patch"))


class TapPrompt(Adapter):
    """A prompt for one block. It and its output, both normed, go behind those of the blocks before, into ``extra``."""

    def __init__(self, generator: nn.Module, norm: nn.Module, is_first: bool, shared: Shared) -> None:
        super().__init__()
        self.generator, self.is_first, self.shared = generator, is_first, shared
        self.norm = (norm,)  # in a tuple: a reference, not a part

    def forward(self, base, tokens: Tokens) -> Tokens:
        prompt = self.generator(tokens.part("patch"))
        out = base(tokens.insert("prompt", prompt, self.shared().pos, before="patch"))
        found = {PROMPTS: self.norm[0](prompt).flatten(1), OUTPUTS: self.norm[0](out.part("prompt")).flatten(1)}
        if not self.is_first:
            found = {name: torch.cat([out.extra[name], value], 1) for name, value in found.items()}
        return out.drop("prompt").but(extra={**out.extra, **found})


class ScenePrompt(Adapter):
    """Keys and values of one prompt per cloud, generated from ``count`` of its points, for one block's attention."""

    def __init__(self, attn: nn.Module, generator: nn.Module, count: int) -> None:
        super().__init__()
        self.attn: tuple[Any] = (attn,)  # in a tuple: a reference, not a part
        self.generator, self.count = generator, count

    def forward(self, base, point: Point, prompt: Prompt | None = None) -> Point:
        filled = [b for b, n in enumerate(point.counts) if n]
        generated = self.generator(point.feat[rows_along(point, point.extra["curve"], self.count)])
        prompts = generated.new_zeros(point.num_clouds, *generated.shape[1:])
        prompts[filled] = generated
        return base(point, prompt=joined(prompt, keys_and_values(self.attn[0], prompts)))


def rows_along(point: Point, curve: str, count: int) -> Tensor:
    """[B', count] rows of the clouds that have any, even along the curve; a cloud of fewer points repeats them.

    So the number of rows does not depend on batch mates. Found once per set of coordinates.
    """

    def make() -> Tensor:
        order = curve_order(point, curve)[0]
        step, found, start = torch.arange(count, device=order.device), [], 0
        for n in point.counts:
            if n:
                found.append(order[start + step * n // count])
            start += n
        return torch.stack(found) if found else order.new_zeros(0, count)

    return point.remember(("along", curve, count), make)


class RowsLayer(nn.Module):
    """Linear without bias, BatchNorm over all rows, LeakyReLU 0.2; [..., C_in] -> [..., C]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_channels, channels, bias=False), RowNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.linear(x))

    def activate(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x), 0.2)


class Edges(RowsLayer):
    """DGCNN's layer: maximum over the neighbours n of a token c of the layer on [f_n - f_c, f_c].

    The Linear is run on tokens, not on edges: W [f_n - f_c, f_c] = W_1 f_n + (W_2 - W_1) f_c.
    """

    def __init__(self, channels: int, neighbors: int) -> None:
        super().__init__(2 * channels, channels)
        self.neighbors = neighbors

    def forward(self, x: Tensor) -> Tensor:
        index = feature_neighbors(x, min(self.neighbors, x.shape[1]))
        of_neighbor, of_center = self.linear.weight.split(x.shape[2], 1)
        near = gather(F.linear(x, of_neighbor), index)  # [B, G, k, C]
        own = F.linear(x, of_center - of_neighbor)
        return amax(self.activate(near + own[:, :, None]), 2)


@torch.no_grad()
def feature_neighbors(x: Tensor, count: int) -> Tensor:
    """[B, G, count] nearest tokens of each token of its own cloud x [B, G, C], itself included."""
    x = x.float()
    # Differences, not products: with products the result would depend on the size of the batch.
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").topk(count, -1, largest=False).indices


class DGCNN(nn.Module):
    """Three layers over neighbours in feature space, one over their joint output, maximum; [B, G, C] -> [B, 1, C]."""

    def __init__(self, channels: int, neighbors: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(Edges(channels, neighbors) for _ in range(3))
        self.join = RowsLayer(3 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for layer in self.edges:
            x = layer(x)
            found.append(x)
        return self.join(torch.cat(found, -1)).amax(1, keepdim=True)


class Light(RowsLayer):
    """One layer over single tokens, maximum."""

    def __init__(self, channels: int, neighbors: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).amax(1, keepdim=True)


class TokenMLP(nn.Sequential):
    """Two layers over single tokens, maximum. The paper names an MLP and gives no sizes."""

    def __init__(self, channels: int, neighbors: int) -> None:
        super().__init__(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).amax(1, keepdim=True)


class Mixer(nn.Module):
    """One pre-norm transformer block, maximum. The paper names a transformer and gives no sizes."""

    def __init__(self, channels: int, neighbors: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        heads = max(h for h in range(1, max(channels // 64, 1) + 1) if channels % h == 0)
        self.attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return (x + self.mlp(self.norm2(x))).amax(1, keepdim=True)


#: Name -> class of (channels, neighbors), [B, G, C] -> [B, 1, C].
GENERATORS: dict[str, Any] = {"dgcnn": DGCNN, "dgcnn_light": Light, "mlp": TokenMLP, "transformer": Mixer}
