"""Implementations that are commands: they speak the JSON-lines protocol."""

import shlex
from collections.abc import Sequence
from typing import cast

from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.protocol import replies
from pagedkv.conformance.protocol.errors import ProtocolError
from pagedkv.conformance.protocol.remote_manager import RemoteManager
from pagedkv.conformance.protocol.session import Session
from pagedkv.reference.interfaces import SyncKVCacheManager
from pagedkv.traces.manager_setup import ManagerSetup

REPLY_TIMEOUT_S = 60.0
"""Longest wait for a reply by default, in seconds: an interpreter has to start in that time."""


def implementation_of_command(
    command: str, *, timeout_s: float = REPLY_TIMEOUT_S
) -> Implementation:
    """The implementation that a command serves over the JSON-lines protocol.

    The process is started at once, to introduce itself, and ends when nothing refers to the
    implementation and its managers any more. One that dies is started anew for the next manager.

    Args:
        command: The program and its arguments, quoted as for a shell; there is no shell.
        timeout_s: Longest wait for a reply, in seconds.

    Raises:
        ProtocolError: It cannot be run, or does not speak the protocol.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ProtocolError(f"{command!r} is no command: {error}") from error
    if not words:
        raise ProtocolError("the command is empty; give a program and its arguments")
    source = ManagerSource(words, timeout_s)
    who = source.introduction
    return Implementation(
        name=who.name,
        version=who.implementation_version,
        make=source.make,
        capabilities=frozenset(who.capabilities),
        follows=frozenset(who.follows),
        write_policies=tuple(who.write_policies),
        hash_algorithms=tuple(who.hash_algorithms),
        page_size=who.page_size,
    )


class ManagerSource:
    """Makes managers that live in one process, as many at once as wanted.

    Raises:
        ProtocolError: See :func:`implementation_of_command`.
    """

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._session = Session(command, timeout_s)

    @property
    def introduction(self) -> replies.Introduction:
        """What the process says of itself."""
        return self._session.introduction

    def make(self, setup: ManagerSetup) -> SyncKVCacheManager:
        """A fresh manager.

        Raises:
            ProtocolError: The process does not do what it should.
            Exception: What the manager's own constructor raises.
        """
        if not self._session.process.is_alive:
            self._session = Session(self._command, self._timeout_s)
        # A remote manager offers the methods that its process names: no type can know them.
        return cast("SyncKVCacheManager", RemoteManager(self._session, setup))
