"""The one exception that stands for a mistake in what the user gave us."""


class InputError(ValueError):
    """Bad input: the message is one line that names the input and the way out.

    The command line prints the message alone and exits with code 2; a library caller
    gets a ``ValueError`` like any other.
    """


class OutOfMemory(InputError):
    """Memory that a model, a cache or a step takes is not there; the message says how much, and what to
    lower."""
