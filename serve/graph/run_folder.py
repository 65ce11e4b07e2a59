"""The one temporary folder of a run: everything that the server and its processes leave on this machine lies in it."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

PREFIX = "choir-run-"
LOCK = "lock"
"""A file that the run holds locked, so that the next start sees whether the run still lives."""
LONGEST_PARENT = 14
"""Characters. HAProxy takes paths of sockets of at most 97 bytes, and has 83 behind the parent; Ray takes 107."""
ENDING_SECONDS = 1.0
"""How long processes have to end by themselves."""


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Create the folder of a run, and make it the place of all temporary files of this process and its children.

    At the end it is removed, and so are, before, the folders and processes of runs that were killed."""
    parent = _parent()
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    before = os.environ.get("TMPDIR")
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _use(str(folder))
        try:
            yield folder
        finally:
            _use(before)
            shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what runs that were killed have left: their processes, and their folders in `parent`."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone already
            ours = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            if ours and not _lives(folder):
                end_processes(_processes_of(folder))
                shutil.rmtree(folder, ignore_errors=True)


def end_processes(processes: list[psutil.Process]) -> None:
    """End processes: ask them to, and kill those that do not end soon."""
    for each in processes:
        with contextlib.suppress(psutil.Error):
            each.terminate()
    _, alive = psutil.wait_procs(processes, timeout=ENDING_SECONDS)
    for each in alive:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(alive, timeout=ENDING_SECONDS)


def _lives(folder: Path) -> bool:
    """Return whether a run still holds its lock. A run that begins just now has none yet."""
    lock = folder / LOCK
    if not lock.exists():
        return True
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that were started with this folder as their place of temporary files."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("TMPDIR") == str(folder):
                found.append(process)
    return found


def _parent() -> Path:
    """Return the machine's folder of temporary files, or /tmp if its path is too long for the sockets in it."""
    parent = tempfile.gettempdir()
    return Path(parent if len(parent) <= LONGEST_PARENT else "/tmp")


def _use(folder: str | None) -> None:
    """Make `folder` the place of temporary files; None: the machine's own."""
    if folder is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
