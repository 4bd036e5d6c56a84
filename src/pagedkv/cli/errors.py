"""What a command says when it cannot do what it was asked."""


class CommandError(Exception):
    """A request that cannot be served; its message is one sentence for the user."""

    status = 2
    """Exit status of the process."""


class ImplementationFailedError(CommandError):
    """The request was right, but the implementation that it names has failed."""

    status = 1
