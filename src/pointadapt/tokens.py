"""Tokens: a batch of token sequences, the value that flows through transformers over groups of points.

It is to those networks what :class:`~pointadapt.point.Point` is to networks over single points, and has the same
protocol (``feat``, ``but``, ``plus``, ``remember``, ``extra``, ``cache``), so an adapter that works on ``feat`` alone
works on both. Legend: B clouds, T tokens, G groups of K points, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

Layout = tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """B sequences of T tokens; never mutated, copies are made by :meth:`but`, :meth:`insert` and :meth:`drop`.

    feat    [B, T, C]
    layout  what the T tokens are, in order: (("cls", 1), ("prompt", 10), ("patch", 64)); each name stands once
    pos     [B, T, C] position embedding that every block adds to its input; None: nothing is added
    center  [B, G, 3] centres of the "patch" tokens
    point   the clouds themselves
    mask    [T, T] or [B, 1, T, T] additive attention mask; None: every token sees every token
    extra   state of one forward pass (an adapter's); what a task may read of it is said there
    cache   what depends on the clouds' coordinates alone, shared by all copies
    """

    feat: Tensor
    layout: Layout
    pos: Tensor | None = None
    center: Tensor | None = None
    point: Any = None
    mask: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        names = [name for name, _ in self.layout]
        if len(set(names)) != len(names) or sum(count for _, count in self.layout) != self.feat.shape[1]:
            raise ValueError(f"Tokens.layout {self.layout} does not describe {self.feat.shape[1]} tokens")

    def __len__(self) -> int:
        return len(self.feat)

    def but(self, **changes: Any) -> Tokens:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def plus(self, branch: Tokens) -> Tokens:
        """The residual sum: these features plus the branch's; the branch's ``extra`` goes on."""
        return replace(self, feat=self.feat + branch.feat, extra=branch.extra)

    def placed(self) -> Tokens:
        """The tokens with their position embedding added."""
        return self if self.pos is None else replace(self, feat=self.feat + self.pos)

    def remember(self, key: Any, make: Any) -> Any:
        """``cache[key]``, made by calling ``make()`` once for these clouds."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def remember_centers(self, key: Any, make: Any) -> Any:
        """``make()`` once for these very centres: another tokenizer may have cut the same clouds otherwise.

        ``cache[key]`` is then the pair (center, what was made).
        """
        known = self.cache.get(key)
        if known is None or known[0] is not self.center:
            known = self.cache[key] = (self.center, make())
        return known[1]

    def count(self, name: str) -> int:
        """How many tokens of that name there are; 0 for none."""
        return dict(self.layout).get(name, 0)

    def rows(self, name: str) -> slice:
        """Where the tokens of that name are along T. Raises KeyError when there are none."""
        start = 0
        for other, count in self.layout:
            if other == name:
                return slice(start, start + count)
            start += count
        raise KeyError(name)

    def part(self, name: str) -> Tensor:
        """[B, n, C] features of the tokens of that name."""
        return self.feat[:, self.rows(name)]

    def with_part(self, name: str, feat: Tensor) -> Tokens:
        """A copy with other features in the tokens of that name."""
        rows = self.rows(name)
        return replace(self, feat=torch.cat([self.feat[:, : rows.start], feat, self.feat[:, rows.stop :]], 1))

    def insert(
        self, name: str, feat: Tensor, pos: Tensor | None = None, before: str | None = None, after: str | None = None
    ) -> Tokens:
        """New tokens [B or 1, n, C] next to those named ``before`` or ``after``; at the end if neither is given.

        Without ``pos`` they get zeros where the others have positions. They must stand beside older ones of the same
        name, with which they become one part. An attention mask must be None.
        """
        if self.mask is not None:
            raise ValueError("tokens under an attention mask cannot be inserted: give the new mask with but()")
        at = self.feat.shape[1]
        if before is not None:
            at = self.rows(before).start
        elif after is not None:
            at = self.rows(after).stop
        batch, _, channels = self.feat.shape
        feat = feat.to(self.feat.dtype).expand(batch, -1, channels)
        names = [part for part, count in self.layout for _ in range(count)]
        names[at:at] = [name] * feat.shape[1]
        layout = tuple((part, len(list(run))) for part, run in groupby(names))
        new_pos = None
        if self.pos is not None:
            added = torch.zeros_like(feat) if pos is None else pos.to(self.pos.dtype).expand(batch, -1, channels)
            new_pos = torch.cat([self.pos[:, :at], added, self.pos[:, at:]], 1)
        whole = torch.cat([self.feat[:, :at], feat, self.feat[:, at:]], 1)
        return replace(self, feat=whole, layout=layout, pos=new_pos)

    def drop(self, name: str) -> Tokens:
        """Without the tokens of that name; the same when there are none."""
        if not self.count(name):
            return self
        rows = self.rows(name)

        def without(value: Tensor) -> Tensor:
            return torch.cat([value[:, : rows.start], value[:, rows.stop :]], 1)

        layout = tuple(part for part in self.layout if part[0] != name)
        pos = None if self.pos is None else without(self.pos)
        return replace(self, feat=without(self.feat), pos=pos, layout=layout)
