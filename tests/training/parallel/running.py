"""Runs `choir train` in another process, because Ray reads its options once in a process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

POLL_SECONDS = 0.05


class Running:
    """A run in the background. Its output goes into a file beside the bundle."""

    def __init__(
        self, recipe: Path, out: Path, *options: str, env: Mapping[str, str] = os.environ
    ) -> None:
        self._log = out.with_suffix(".log")
        command = [sys.executable, "-m", "choir_cli.main", "train", str(recipe), "--out", str(out)]
        command.append("--no-timing")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *options], stdout=log, stderr=log, env={**env, "OMP_NUM_THREADS": "1"}
            )

    def end(self) -> tuple[int, str]:
        """Wait for its end. Returns its exit status and its output."""
        return self._process.wait(), self._log.read_text()

    def succeed(self) -> str:
        """Its output so far."""
        status, printed = self.end()
        assert status == 0, printed
        return printed

    def processes(self, title: str) -> list[psutil.Process]:
        """Those of the command's Ray whose titles begin so."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    def goes_on(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


def finished(printed: str, title: str) -> int:
    """In how many rows work is done whose title begins so; what runs for long has more of them."""
    lines = printed.splitlines()
    return sum(line.startswith(title) and " done " in line for line in lines)
