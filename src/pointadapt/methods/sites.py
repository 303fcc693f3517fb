"""Where adapters go: slot names resolved to modules, and the stage and block that a module's name stands for.

Backbones and methods meet here and nowhere else: a backbone says which names its slots have
(``backbone.slots``), a method says which slots it wants. Names are always those of the plain model, whatever
adapters wrap it by now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pointadapt.errors import UserError

#: ``<stage>.blocks.<i>`` with anything behind it: the text before "blocks" names the stage.
BLOCK = re.compile(r"^(?:(?P<stage>.*?)\.)?(?:blocks|layers?)\.(?P<block>\d+)(?:\.|$)")
DECODER = re.compile(r"(?:^|\.)(?:dec|decoder)(?:\.|$)")


@dataclass(frozen=True)
class Site:
    """One module that gets an adapter.

    name    dotted module name as in the plain model
    slot    the entry of ``target_modules`` it matched
    stage   its stage among all that the network has, in its order, and block its place there; None outside of blocks
    blocks  number of blocks its stage has, whether they are sites or not
    """

    name: str
    slot: str
    stage: int | None = None
    block: int | None = None
    blocks: int = 1

    @property
    def is_block(self) -> bool:
        """Whether it is a whole block and not a part of one."""
        found = BLOCK.match(self.name)
        return found is not None and found.end() == len(self.name)


def matches(name: str, slot: str, slots: dict[str, str]) -> bool:
    """Whether ``slot`` (a slot name, or a regular expression) matches the end of the dotted ``name``."""
    return re.fullmatch(rf"(?:.*\.)?(?:{slots.get(slot, slot)})", name) is not None


def in_decoder(name: str) -> bool:
    return DECODER.search(name) is not None


def below(name: str, parents: Iterable[str]) -> bool:
    """Whether ``name`` is one of ``parents`` or lies inside of one."""
    return any(name == p or name.startswith(f"{p}.") for p in parents)


class Unfit(UserError):
    """Why a method cannot stand at a module; the tuner adds which method and module, and what to target instead."""


def width(frozen: nn.Module) -> int:
    """Channels of the features a branch module takes and returns. Raises Unfit when it does not say."""
    for module in frozen.modules():
        channels = getattr(module, "channels", None)
        if isinstance(channels, int):
            return channels
    raise Unfit(f"{type(frozen).__name__} is no branch, which would say how many channels it takes and returns")


def attention(frozen: nn.Module) -> nn.Module:
    """The module itself, when it takes a prompt and projects it to keys and values. Raises Unfit when it does not."""
    if not hasattr(frozen, "qkv"):
        raise Unfit(f"{type(frozen).__name__} is no attention, which is what takes prompts")
    return frozen


def bare(module: Any) -> Any:
    """The frozen module that an adapter layer wraps; any other module itself."""
    return module._modules.get("base_layer", module)


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Dotted name -> module as in the plain model: a wrapper stands for what it wraps, adapters are left out."""
    found: dict[str, nn.Module] = {"": model}

    def walk(module: nn.Module, path: str) -> None:
        if "original_module" in module._modules:  # peft's wrapper of a fully trained module
            return
        for name, child in bare(module).named_children():
            child_path = f"{path}.{name}" if path else name
            found[child_path] = child
            walk(child, child_path)

    walk(model, "")
    return found


def find_sites(modules: dict[str, nn.Module], config: Any) -> list[Site]:
    """The modules of the backbone (or of the model, when it is one) that an AdapterConfig wants, in network order.

    Raises UserError when targets were named and none was found.
    """
    root = "backbone" if "backbone" in modules else ""
    slots = getattr(modules[root], "slots", {})
    inside = {n: module for n, module in modules.items() if (n.startswith(f"{root}.") if root else n)}
    wanted = []
    for name, module in inside.items():
        if below(name, config.modules_to_save or ()):
            continue
        if config.targets == "encoder" and in_decoder(name):
            continue
        slot = config.slot_of(name, bare(module), slots)
        if slot is not None:
            wanted.append((name, slot))
    sites = [s for s in make_sites(wanted, inside) if config.stages is None or s.stage in config.stages]
    if config.target_modules and not sites:
        raise UserError(
            f"no module of {type(modules[root]).__name__} matches target_modules={config.target_modules} "
            f"(targets={config.targets!r}, stages={config.stages}); its slots are: {', '.join(slots) or 'none'}"
        )
    return sites


def make_sites(wanted: list[tuple[str, str]], names: Iterable[str]) -> list[Site]:
    """(name, slot) pairs -> Sites that know their place among all ``names`` of the network, which are in its order."""
    blocks: dict[str | None, int] = {}
    for found in filter(None, map(BLOCK.match, names)):
        blocks[found["stage"]] = max(blocks.get(found["stage"], 0), 1 + int(found["block"]))
    stages, sites = list(blocks), []
    for name, slot in wanted:
        if match := BLOCK.match(name):
            stage = match["stage"]
            sites.append(Site(name, slot, stages.index(stage), int(match["block"]), blocks[stage]))
        else:
            sites.append(Site(name, slot))
    return sites


def slots_in_blocks(modules: dict[str, nn.Module]) -> list[Site]:
    """For each slot of the backbone that lies in its blocks, the first module it names."""
    root = "backbone" if "backbone" in modules else ""
    slots = getattr(modules[root], "slots", {})
    inside = [name for name in modules if name.startswith(root) and BLOCK.match(name)]
    first = [(next((name for name in inside if matches(name, slot, slots)), None), slot) for slot in slots]
    return [Site(name, slot) for name, slot in first if name]


def linear_slots(modules: dict[str, nn.Module], slots: dict[str, str]) -> list[str]:
    """Slots whose modules hold a matrix, like Linear (or GPT-2's Conv1D): what low-rank updates are for."""
    matrices = [name for name, module in modules.items() if getattr(module._parameters.get("weight"), "ndim", 0) == 2]
    return [slot for slot in slots if any(matches(name, slot, slots) for name in matrices)]


def check_names(adapter_name: str, prefix: str, modules: dict[str, nn.Module], adapters: Iterable[nn.Module]) -> None:
    """Refuse names with which peft would drop weights from the file without a word.

    peft leaves out every key that contains ".<name of another adapter>.", and takes every module whose path holds
    the method's prefix for an adapter. Raises UserError.
    """
    taken = {part for name in modules for part in name.split(".")} | {"modules_to_save", "original_module"}
    taken |= {part for adapter in adapters for key in adapter.state_dict() for part in key.split(".")}
    if not re.fullmatch(r"[\w-]+", adapter_name) or adapter_name in taken:
        raise UserError(
            f"adapter name {adapter_name!r} is also the name of a module, or not made of letters, digits, '_' and '-': "
            "weights would be lost on save. Name adapters after data, for example 'scannet' or 'site-a'"
        )
    clash = next((name for name in modules if prefix in name), None)
    if clash:
        raise UserError(f"module {clash!r} holds the method's prefix {prefix!r} in its name: rename it in the backbone")


def leaves(modules: dict[str, nn.Module], names: Iterable[str]) -> list[str]:
    """``names`` with lists of modules replaced by their entries (peft cannot wrap a ModuleList).

    peft matches by ``endswith`` and accepts typos silently, so names must be full and unambiguous. Raises UserError.
    """
    found: list[str] = []
    for name in names:
        if name not in modules:
            raise UserError(f"modules_to_save names {name!r}, which the model does not have (give full dotted names)")
        other = next((n for n in modules if n.endswith(name) and n != name), None)
        if other:
            raise UserError(f"modules_to_save={name!r} also matches {other!r}: rename one of the two modules")
        if isinstance(modules[name], nn.ModuleList | nn.ModuleDict):
            found += leaves(modules, [f"{name}.{child}" for child, _ in modules[name].named_children()])
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def has_parts(backbone: Any, names: Iterable[str]) -> bool:
    """Whether the backbone has these children, with something in them to train; "" is the backbone itself."""
    return all(any(True for _ in getattr(backbone, n, nn.ModuleList()).parameters()) for n in names if n)


def trained_parts(model: Any, trains: tuple[str, ...]) -> list[str]:
    """What is trained in full: the head, fresh parts of the backbone, and the children that a method ``trains``.

    An empty string stands for the whole backbone.
    """
    backbone = getattr(model, "backbone", model)
    head = ["head"] if hasattr(model, "head") else []
    if backbone is model:
        return [*head, *backbone.__dict__.get("fresh", ())]
    if "" in trains:
        return [*head, "backbone"]
    return [*head, *(f"backbone.{name}" for name in dict.fromkeys([*getattr(backbone, "fresh", ()), *trains]))]
