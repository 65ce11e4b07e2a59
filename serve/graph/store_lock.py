"""Keeps two servers of one machine from one store."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from serve.graph.lifecycle import ServerError

FILE = "server.lock"


@contextlib.contextmanager
def only_server(store: Path) -> Iterator[None]:
    """Hold the store while a server runs. The lock ends with the process, however that ends; on a file system without
    locks there is none. Raises ServerError if another server holds it: that one could write nothing more."""
    with (store / FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(
                f"Another server uses the store {store}: stop that one, or give this one a store of its own with "
                "--store."
            ) from None
        except OSError:
            pass  # no locks here
        yield
