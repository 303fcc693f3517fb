"""Exceptions for things a user can mend: a sentence naming the file or argument, the cause and the cure."""


class UserError(ValueError):
    """Bad input or a wrong argument. The command line prints its text alone and exits with code 2."""


class Diverged(UserError):
    """Training whose loss is no number any more."""
