"""The one exception for a user's mistake: the command line prints it as one line and exits with 2."""


class InputError(Exception):
    """A mistake in what the user gave; its text names where, what was found, what was expected, what to do."""
