"""The one exception for a user's mistake, and the exit codes that scripts can trust."""

EXIT_MISTAKE = 2  # the command line printed an InputError: trying again does not help
EXIT_STOPPED = 75  # a run stopped because it was asked to, its checkpoint written (EX_TEMPFAIL of sysexits.h)
EXIT_HUNG = 76  # a rank made no progress for guard.hang_after seconds; its stacks are in the run folder's hang/


class InputError(Exception):
    """A mistake in what the user gave; its text names where, what was found, what was expected, what to do."""
