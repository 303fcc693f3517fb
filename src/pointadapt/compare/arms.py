"""Arms of a comparison: a method with its options, on pretrained or on random weights.

gem    gem[rank=8,share=qk]    random:linear
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pointadapt.domains.domain import Domain
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
            raise UserError("this is no method: write name, name[option=value,...], random:name or label = name")
        label, random, method, inside = found.groups()
        options = dict(parse_option(part) for part in split_options(inside or ""))
        method_config(method, options)  # says what is wrong
        return cls(label or text.strip(), method, options, "random" if random else "default")

    @property
    def slug(self) -> str:
        return slug(self.name)

    @property
    def is_renamed(self) -> bool:
        """Whether the name does not tell what it stands for."""
        try:
            return Arm.parse(self.name).meaning != self.meaning
        except UserError:
            return True

    @property
    def meaning(self) -> str:
        """What the name stands for: random:gem[rank=8,share="qk"]."""
        options = ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(self.options.items()))
        return f"{'random:' * (self.weights == 'random')}{self.method}" + (f"[{options}]" if options else "")


def meanings(arms: Sequence[Arm]) -> list[str]:
    """A sentence on each name that does not tell what it stands for."""
    return [f"{arm.name} is {arm.meaning}." for arm in arms if arm.is_renamed]


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")


def split_options(text: str) -> list[str]:
    """At commas that stand in no list."""
    return [part for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"option {text!r} needs a value, as in rank=8")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), {"True": True, "False": False, "None": None}.get(value.strip(), value.strip())


def choose_arms(wanted: Sequence[str], domain: Domain) -> tuple[list[Arm], dict[str, str]]:
    """(arms to run, method -> why it cannot work on the backbone). "all" stands for every method that can.

    Raises UserError for an arm that was asked for by name and cannot work, and when none is left.
    """
    from pointadapt.domains.models import adapted, build_task, copied
    from pointadapt.methods import METHODS

    task = build_task(domain)

    def tried(text: str) -> Arm:
        arm = Arm.parse(text)
        adapted(copied(task), domain.settled(replace(domain.run, method=arm.method, options=arm.options)))
        return arm

    every = sorted(METHODS, key=lambda n: (ORDER.index(n) if n in ORDER[:-1] else len(ORDER), n == "full", n))
    arms: list[Arm] = []
    refused: dict[str, str] = {}
    for asked in wanted:
        for text in every if asked == "all" else [asked]:
            try:
                arms.append(tried(text))
            except UserError as error:
                if asked != "all":
                    raise UserError(f"{text}: {error}") from error
                refused[text] = str(error)
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise UserError(f"a method is asked for twice: {', '.join(names)}")
    if not arms:
        raise UserError("there is no method to compare: give --methods all, or names")
    return arms, refused
