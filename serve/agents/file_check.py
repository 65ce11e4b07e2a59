"""Compares the files of a version on this machine with their digests."""

from pathlib import Path

from serve.digest import DigestError, file_digest, folder_digest
from serve.engine.interface import PrepareError, Version


def check_files(version: Version) -> None:
    """Read the files of all adapters and of the fitted parameters, and compare their digests.

    Raises PrepareError if a file cannot be read or has changed."""
    for digest, folder in version.adapters.items():
        try:
            found = folder_digest(Path(folder))
        except (DigestError, OSError) as error:
            raise PrepareError(f"the adapter {digest} cannot be read: {error}") from error
        if found != digest:
            raise PrepareError(
                f"the adapter {digest} has changed on disk: its digest is {found} now; remove {folder} and start again"
            )
    if version.parameters is not None and version.parameters_digest is not None:
        _check_parameters(Path(version.parameters), version.parameters_digest)


def _check_parameters(file: Path, digest: str) -> None:
    try:
        found = file_digest(file)
    except OSError as error:
        raise PrepareError(
            f"the fitted parameters {digest} cannot be read: {error.strerror}"
        ) from error
    if found != digest:
        raise PrepareError(
            f"the fitted parameters {digest} have changed on disk: their digest is {found} now; remove {file} and "
            "start again"
        )
