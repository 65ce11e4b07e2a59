"""Copies a folder of this machine. Follows no links, even if the folder changes meanwhile."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from serve.control.artifacts.quota import Quota
from serve.control.artifacts.store import StoreError

_PIECE = 1 << 20


def copy_folder(
    source: Path, target: Path, quota: Quota, takes: Callable[[Path], bool] | None = None
) -> None:
    """Copy plain files and folders into the existing folder `target`, read-only. Raises StoreError and OSError.

    `takes` says of a file's name whether the file is copied; then folders in `source` are left out. Folders are walked
    by descriptor, so that a folder that becomes a link meanwhile is not followed."""
    for folder, folders, names, descriptor in os.fwalk(source, onerror=_give_up):
        below = Path(folder).relative_to(source)
        if takes is not None:
            folders.clear()
            names = [name for name in names if takes(Path(name))]
        for name in folders:
            if stat.S_ISLNK(os.lstat(name, dir_fd=descriptor).st_mode):
                raise _no_plain_file(below / name, source)
            (target / below / name).mkdir()
        for name in names:
            _copy_file(name, descriptor, target / below / name, source, quota)
    quota.done()


def _give_up(error: OSError) -> None:
    """Raise the error of a folder that cannot be read, which `os.fwalk` would ignore."""
    raise error


def _copy_file(name: str, folder: int, target: Path, source: Path, quota: Quota) -> None:
    quota.add_file()
    if not stat.S_ISREG(os.lstat(name, dir_fd=folder).st_mode):
        raise _no_plain_file(target.name, source)
    # The file may have become a link or a pipe since then. The system refuses links, and reads pipes without waiting.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with open(descriptor, "rb") as reader, target.open("xb") as writer:
        while piece := reader.read(_PIECE):
            quota.add_bytes(len(piece))
            writer.write(piece)
    target.chmod(0o444)


def _no_plain_file(name: str | Path, source: Path) -> StoreError:
    return StoreError(
        f"{name} in {source.name} is a link or no regular file; an adapter consists of plain files."
    )
