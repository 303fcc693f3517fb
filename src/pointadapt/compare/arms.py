"""Arms of a comparison: a method with its options, on pretrained or on random weights.

gem    gem[rank=8,share=qk]    random:linear
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pointadapt.backbones.foundation import NoTokenizer
from pointadapt.errors import UserError

#: Methods in the order of the published tables; others follow by name.
ORDER = ("linear", "decoder", "bitfit", "lora", "adapter", "houlsby", "gem", "pointtpa", "full")


@dataclass(frozen=True)
class Arm:
    """name as it was asked for; method, options and weights ("default" or "random") as a Run has them."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    weights: str = "default"

    @classmethod
    def parse(cls, text: str) -> Arm:
        """Raises UserError for a text that is no arm, an unknown method or option."""
        from pointadapt.run import method_config

        found = re.fullmatch(r"(?:([^=\[\]]+?)\s*=\s*)?(random:)?([\w-]+)(?:\[(.*)\])?", text.strip())
        if not found:
            raise UserError(f"{text!r} is no method: write name, name[option=value,...], random:name or label = name")
        label, random, method, inside = found.groups()
        options = dict(parse_option(text, part) for part in split_options(inside or ""))
        method_config(method, options)  # says what is wrong
        return cls(label or text.strip(), method, options, "random" if random else "default")

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^\w.=-]+", "_", self.name).strip("_")


def split_options(text: str) -> list[str]:
    """At commas that stand in no list."""
    return [part for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def parse_option(arm: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{arm!r}: option {text!r} needs a value, as in rank=8")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), {"True": True, "False": False, "None": None}.get(value.strip(), value.strip())


def choose_arms(wanted: Sequence[str], backbone: Any) -> tuple[list[Arm], dict[str, str]]:
    """(arms to run, method -> why it cannot work on this backbone). "all" stands for every method that can.

    Raises UserError for a method that was asked for by name and cannot work, and when none is left.
    """
    from pointadapt.methods import METHODS

    arms: list[Arm] = []
    refused: dict[str, str] = {}
    for text in wanted:
        if text != "all":
            arm = Arm.parse(text)
            if reason := why_not(METHODS[arm.method], arm.method, backbone):
                raise UserError(f"method {arm.method!r} cannot work on {backbone.name_or_path}: it needs {reason}")
            arms.append(arm)
            continue
        for name in sorted(METHODS, key=lambda n: (ORDER.index(n) if n in ORDER[:-1] else len(ORDER), n == "full", n)):
            reason = why_not(METHODS[name], name, backbone)
            if reason:
                refused[name] = reason
            else:
                arms.append(Arm(name, name))
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise UserError(f"a method is asked for twice: {', '.join(names)}")
    if not arms:
        raise UserError("there is no method to compare: give --methods all, or names")
    return arms, refused


def why_not(config: Any, name: str, backbone: Any) -> str:
    """What a method needs that the backbone does not have; empty when it can work."""
    kind = getattr(backbone, "kind", "points")
    if kind not in getattr(config, "works_on", ("points", "tokens")):
        return config.needs
    if isinstance(getattr(backbone, "tokenizer", None), NoTokenizer) and name != "appt":
        return "a backbone that knows point clouds; on foundation models use appt"
    missing = [part for part in getattr(config, "trains", ()) if part and not part_of(backbone, part)]
    return f"a backbone with a part {missing[0]!r}" if missing else ""


def part_of(backbone: Any, name: str) -> bool:
    """Whether the backbone has a child of that (dotted) name with weights."""
    try:
        return any(True for _ in backbone.get_submodule(name).parameters())
    except AttributeError:
        return False
