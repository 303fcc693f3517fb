"""Exceptions for things a user can mend: a sentence naming the file or argument, the cause and the cure."""

from collections.abc import Sequence


class UserError(ValueError):
    """Bad input or a wrong argument. The command line prints its text alone and exits with code 2."""


class NoPoints(UserError):
    """A file that can be read and holds no points, which a frame of a video may."""


class Diverged(UserError):
    """Training whose loss is no number any more."""


def few(names: Sequence[str], most: int = 5) -> str:
    """The first names for a sentence, and how many there are more: a folder may hold thousands."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
