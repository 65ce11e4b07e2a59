"""Copies a folder of an object store or a hub, through fsspec."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec

from serve.control.artifacts.quota import Quota
from serve.control.artifacts.store import StoreError
from serve.location import Location, Scheme

logger = logging.getLogger(__name__)

DRIVERS: Mapping[Scheme, str] = {
    "s3": "pip install 'choir-serve[s3]', which brings s3fs",
    "gs": "pip install gcsfs",
    "hf": "pip install huggingface_hub",
}
_PIECE = 1 << 20
_MAX_NAME = 255
"""Bytes of a file's name on Linux."""


def copy_remote(
    location: Location, target: Path, quota: Quota, takes: Callable[[Path], bool]
) -> None:
    """Copy the files at `location` that `takes` wants by their names into the existing folder `target`, read-only.
    Folders below it are left out. Raises StoreError.

    The names and sizes that the other side announces are not trusted."""
    try:
        files = _filesystem(location.scheme)
        listing = files.find(location.path, detail=True)
        names = {
            key: _relative(key, location)
            for key in sorted(listing)
            if not key.endswith("/")  # some consoles write an empty object for a folder
        }
        taken = {k: name for k, name in names.items() if len(name.parts) == 1 and takes(name)}
        quota.expect(sum(listing[key].get("size") or 0 for key in taken))
        logger.info("%s: %d files to fetch", location, len(taken))
        for key, name in taken.items():
            _copy_file(files, key, target / name, quota)
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise _nothing(location) from error
    except PermissionError as error:
        raise StoreError(
            f"{location} may not be read with the credentials that the server has."
        ) from error
    except Exception as error:  # drivers raise errors of their own, which may contain signed URLs
        raise StoreError(f"{location} cannot be read ({type(error).__name__}).") from error
    if not names:
        raise _nothing(location)
    quota.done()


def _filesystem(scheme: Scheme) -> Any:
    """The file system of a scheme, without cached listings of earlier requests. Raises StoreError."""
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        raise StoreError(
            f"{scheme}:// needs a package that is not installed where the server runs: {DRIVERS[scheme]}."
        ) from error


def _relative(key: str, location: Location) -> Path:
    """The path of a file below the target. Raises StoreError for a name that leads elsewhere."""
    below = key.removeprefix("/").removeprefix(location.path)
    parts = below.removeprefix("/").split("/")
    if not below.startswith("/"):
        raise StoreError(f"{location} is not a folder of files.")
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or len(part.encode()) > _MAX_NAME:
            raise StoreError(f"{location} holds a file whose name is not a plain path: {below!r}.")
    return Path(*parts)


def _copy_file(files: Any, key: str, target: Path, quota: Quota) -> None:
    quota.add_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.open(key, "rb") as reader, target.open("xb") as writer:
        while piece := reader.read(_PIECE):
            quota.add_bytes(len(piece))
            writer.write(piece)
    target.chmod(0o444)


def _nothing(location: Location) -> StoreError:
    return StoreError(f"There is nothing at {location}, or the server may not see it.")
