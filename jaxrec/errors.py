"""The one exception for bad input, so that a command can tell it from a bug."""


class InputError(ValueError):
    """What a caller or a file gave is wrong: expected, got, where, what to do.

    Commands print its message as one line and exit with status 2; any other exception
    is a bug of ours and keeps its traceback.
    """
