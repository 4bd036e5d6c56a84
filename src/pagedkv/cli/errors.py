"""What a command says when it cannot do what it was asked."""


class CommandError(Exception):
    """A request that cannot be served; its message is one sentence for the user."""
