"""Exceptions for things a user can mend: a sentence naming the file or argument, the cause and the cure."""


class UserError(ValueError):
    """Bad input or a wrong argument. The command line prints its text alone and exits with code 2."""


class NoPoints(UserError):
    """A file that can be read and holds no points, which a frame of a video may."""


class Diverged(UserError):
    """Training whose loss is no number any more."""
