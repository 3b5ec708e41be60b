"""Errors that are a user's to resolve."""


class UserError(Exception):
    """A user's mistake. Its message is one line that says what, where and what to do.

    Launchers print the message alone and exit with code 2; every other exception is a bug and keeps its traceback.
    """


class UnreadableImage(ValueError):
    """The bytes are no image that can be used; the message says why."""
