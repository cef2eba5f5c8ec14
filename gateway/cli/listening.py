"""The port and the signals of a serving process: what is taken before anything heavy is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Generator

from gateway.cli.common import AWAY, Problem
from gateway.config import Settings
from gateway.sections import ServerSettings

# A client whose machine vanished without a word is found out after two minutes; and what a slow client has not taken
# stays with us, where it is counted, in place of the 4 MB of kernel memory that Linux would give each connection.
_OPTIONS = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
    (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", 128 * 1024),
)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def bind(settings: Settings) -> Generator[list[socket.socket], None, None]:
    """Take the ports before anything is started for them: the first, and the admin's if there is one.

    Raises: Problem that says what to do."""
    _many_files()
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(_bound(settings.server))]
        if settings.server.admin_port is not None:
            bound.append(stack.enter_context(_bound(settings.server.admin_listener)))
        yield bound


def _many_files() -> None:
    """Each stream takes two descriptors, and common shells allow 1,024 in all where the system allows many more."""
    with contextlib.suppress(OSError, ValueError):  # not allowed here: then it stays as the operator has it
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _bound(server: ServerSettings) -> socket.socket:
    host, port = server.host, server.port
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for level, option, value in _OPTIONS:
        if (number := getattr(socket, option, None)) is not None:  # each connection inherits it
            bound.setsockopt(level, number, value)
    if server.reuse_port:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        fix = "stop the program that uses the port, or choose another with --port (or PORT)"
        raise Problem(f"cannot listen on {host}:{port}: {error.strerror or error}", fix=fix, code=AWAY) from error
    return bound


@contextlib.contextmanager
def on_signal(action: Callable[[], object], *numbers: signal.Signals) -> Generator[None, None, None]:
    """Call `action` for each of these signals while inside; none named: for each SIGTERM and Ctrl-C."""
    loop = asyncio.get_running_loop()
    for number in numbers or SIGNALS:
        loop.add_signal_handler(number, action)
    try:
        yield
    finally:
        for number in numbers or SIGNALS:
            loop.remove_signal_handler(number)
