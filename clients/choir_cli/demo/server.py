"""Start, watch and stop `choir serve` as a process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from choir_cli.console import UsageError, out
from choir_client import Choir, ChoirError

READY_WITHIN = 300.0
STOP_WITHIN = 90.0


class ServerFailed(ChoirError):
    """The server ended or did not become ready. The message holds the last line of its log."""


class Server:
    """A server for `bundle` on 127.0.0.1. Leaving the context stops it."""

    def __init__(self, bundle: Path, port: int, store: Path, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._log = log
        self._command: Sequence[str] = (
            *(sys.executable, "-m", "choir_cli.main", "serve", str(bundle)),
            *("--port", str(port), "--store", str(store)),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        require_free(self._port)
        with self._log.open("wb") as log:
            # In a session of its own, so that Ctrl-C reaches only the demo, which then stops the server.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_until_ready(self) -> float:
        """Wait until `/ready` answers 200. Returns the seconds that it took. Raises ServerFailed if the server
        ends or is not ready in time."""
        started = time.monotonic()
        with (
            Choir(self.url) as choir,
            out.status("starting Ray Serve and vLLM (about a minute) ...") as status,
        ):
            while (waited := time.monotonic() - started) < READY_WITHIN:
                self._require_alive()
                try:
                    if choir.ready().ok:
                        return waited
                except ChoirError:
                    pass  # The server does not listen yet.
                status.update(f"starting Ray Serve and vLLM (about a minute) ... {waited:.0f} s")
                time.sleep(0.5)
        raise ServerFailed(f"the server was not ready after {READY_WITHIN:.0f} s; see {self._log}")

    def wait(self) -> None:
        """Wait for the server to end by itself. Raises ServerFailed when it does."""
        assert self._process is not None
        self._process.wait()
        self._require_alive()

    def stop(self) -> int | None:
        """Stop the server, with SIGKILL if it takes too long. Returns its status, None if it never started."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return process.returncode

    def _require_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            return
        lines = self._log.read_text(errors="replace").strip().splitlines() or ["its log is empty"]
        raise ServerFailed(f"the server ended: {lines[-1]} (full log: {self._log})")


def require_free(port: int) -> None:
    """Raises UsageError if the port of 127.0.0.1 is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"port {port} of 127.0.0.1 cannot be used ({os.strerror(error.errno or 0)}): "
                "stop the process that uses it, or set DEMO_PORT to another port."
            ) from None
