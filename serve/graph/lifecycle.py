"""How a server stops: by a signal, or with an error that ends its start."""

import signal
import threading

from serve.errors import UserError


class ServerError(UserError):
    """Why the server cannot start, in one sentence."""


def stop_on_signals(stop: threading.Event) -> None:
    """Set `stop` on SIGTERM and Ctrl-C.

    Must be called again after `ray.init`, whose own handlers end the process with a stack trace."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
