"""Artifacts by digest: immutable copies of adapters and fitted parameters. Engines load nothing else."""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.digest import DigestError, file_digest, folder_digest
from serve.errors import UserError
from serve.files import write_atomically

_DIGEST = re.compile("[0-9a-f]{64}")


class StoreError(UserError, ValueError):
    """Files that the store cannot take, in one sentence."""


class Store:
    """A folder with `artifacts/<64 hex digits>/` and `parameters/<64 hex digits>`.

    A new artifact is copied to a folder beside its place, verified, and renamed. So it is there as a whole or not at
    all. Its files are read-only."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError if the folder cannot be written."""
        self.folder = folder.resolve()
        try:
            for name in ("artifacts", "parameters"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            for begun in (".new-*", ".gone-*"):  # of a server that was killed
                for left in self.folder.glob(f"artifacts/{begun}"):
                    shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise StoreError(
                f"The store {folder} cannot be written ({error.strerror}); choose another --store."
            ) from error

    def adapter(self, digest: str) -> Path:
        """The folder of the adapter, which need not exist."""
        return self.folder / "artifacts" / digest.removeprefix("sha256:")

    def parameters(self, digest: str) -> Path:
        """The file of fitted parameters, which need not exist."""
        return self.folder / "parameters" / digest

    def has_adapter(self, digest: str) -> bool:
        return self.adapter(digest).is_dir()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder to copy into. It is deleted at the end unless it was kept. Checks read this copy, so changes
        at the source do not matter."""
        folder = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder / "artifacts"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, copy: Path, expected: str | None = None) -> str:
        """Move a copy to its place, and return its digest. Raises StoreError if the digest is not `expected`, or if the
        artifact exists already and has changed."""
        try:
            digest = folder_digest(copy)
        except DigestError as error:
            raise StoreError(str(error)) from error
        if expected is not None and digest != expected:
            raise StoreError(f"The files have the digest {digest}, but {expected} was expected.")
        copy.chmod(0o755)
        try:
            copy.rename(self.adapter(digest))
        except OSError:
            self.verify(digest)  # the artifact exists already, or has just arrived
        return digest

    def verify(self, digest: str) -> None:
        """Raises StoreError if the artifact is missing or has changed."""
        folder = self.adapter(digest)
        try:
            found = folder_digest(folder)
        except (DigestError, OSError) as error:
            raise StoreError(f"The store has no sound adapter {digest}: {error}") from error
        if found != digest:
            raise StoreError(
                f"The adapter {digest} has changed in the store; remove {folder} and start again."
            )

    def keep_parameters(self, file: Path) -> str:
        """Copy a file of fitted parameters into the store, and return its SHA-256."""
        digest = file_digest(file)
        place = self.parameters(digest)
        if not place.exists():
            write_atomically(place, file.read_bytes(), mode=0o444)
        return digest

    def adapters(self) -> dict[str, int]:
        """Digest -> the bytes of its folder."""
        return {
            f"sha256:{folder.name}": sum(
                file.stat().st_size for file in folder.rglob("*") if file.is_file()
            )
            for folder in (self.folder / "artifacts").iterdir()
            if _DIGEST.fullmatch(folder.name)
        }

    def parameter_files(self) -> dict[str, int]:
        """SHA-256 of each file of fitted parameters -> its bytes."""
        return {
            file.name: file.stat().st_size
            for file in (self.folder / "parameters").iterdir()
            if _DIGEST.fullmatch(file.name)
        }

    def take_away(self, adapters: Iterable[str], parameters: Iterable[str]) -> Path:
        """Move artifacts and files out of their places, at once, to a folder for `delete`. Returns it. So what is
        deleted half is never taken for whole."""
        folder = Path(tempfile.mkdtemp(prefix=".gone-", dir=self.folder / "artifacts"))
        for place in (*map(self.adapter, adapters), *map(self.parameters, parameters)):
            place.rename(folder / place.name)
        return folder

    def delete(self, folder: Path) -> None:
        """Delete what was taken away. Raises OSError."""
        shutil.rmtree(folder)

    def verify_parameters(self, digest: str) -> None:
        """Raises StoreError if the file is missing or has changed."""
        file = self.parameters(digest)
        if not file.is_file() or file_digest(file) != digest:
            raise StoreError(
                f"The fitted parameters {file} are missing or have changed; remove the file and "
                "start again."
            )
