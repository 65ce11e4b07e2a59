"""How a server ends: by a signal, or before it began, with a reason."""

import signal
import threading

from serve.errors import UserError


class ServerError(UserError):
    """Why the server cannot start, in one sentence."""


def stop_on_signals(stop: threading.Event) -> None:
    """Set `stop` on SIGTERM and Ctrl-C.

    To be called again after `ray.init`, which installs handlers of its own that end the process with a stack trace."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
