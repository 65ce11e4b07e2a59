"""The places that adapters may come from: folders of this machine, and remote places that the settings allow."""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from serve.adapter import ADAPTER_FILES, belongs
from serve.control.artifacts.local_copy import copy_folder
from serve.control.artifacts.quota import Quota
from serve.control.artifacts.remote_copy import copy_remote
from serve.control.artifacts.store import StoreError
from serve.files import no_folder
from serve.location import SCHEMES, Location, LocationError, without_secrets


class NotAllowed(StoreError):
    """A place that adapters may not come from."""


class Missing(StoreError):
    """An allowed place where there is no folder."""


class Sources:
    """Copies the folder that a URI names, if its place is allowed."""

    def __init__(
        self,
        roots: Sequence[Path],
        prefixes: Sequence[Location] = (),
        *,
        max_bytes: int = 16_000_000_000,
        seconds: float = 1800,
    ) -> None:
        """`roots` are the folders that `file://` adapters may come from, `prefixes` the remote places."""
        self._roots = tuple(root.resolve() for root in roots)
        self._prefixes = tuple(prefixes)
        self._max_bytes = max_bytes
        self._seconds = seconds

    def fetch(self, uri: str, target: Path) -> None:
        """Copy the adapter at `uri` into the existing folder `target`. What a trainer leaves beside an adapter, such as
        checkpoints and optimizer states, is left out, as in a bundle.

        Raises StoreError: NotAllowed for other places, and Missing for an allowed folder that is not there. Errors do
        not tell whether a folder exists in other places."""
        scheme = uri.partition(":")[0]
        if scheme in SCHEMES:
            location = self._remote(uri)
            copy_remote(location, target, self._quota(str(location)), belongs)
        elif scheme == "file":
            self._copy(self._local(uri), target, belongs)
        else:
            raise StoreError(
                f"{without_secrets(uri)!r} is not a URI that adapters come from; expected file:///absolute/folder, or "
                f"{', '.join(SCHEMES)} with :// and a place that --adapter-prefix allows."
            )
        if not any(target.iterdir()):
            raise StoreError(
                f"{without_secrets(uri)} holds no file of an adapter; expected {', '.join(ADAPTER_FILES[:2])}."
            )

    def copy(self, folder: Path, target: Path) -> None:
        """Copy a folder whose place is trusted into the existing folder `target`. Raises StoreError."""
        self._copy(folder, target, None)

    def _copy(self, folder: Path, target: Path, takes: Callable[[Path], bool] | None) -> None:
        try:
            copy_folder(folder, target, self._quota(folder.name), takes)
        except OSError as error:
            raise StoreError(f"{folder} cannot be copied: {error.strerror}.") from error

    def _quota(self, place: str) -> Quota:
        return Quota(place, self._max_bytes, self._seconds)

    def _remote(self, uri: str) -> Location:
        try:
            location = Location.parse(uri)
        except LocationError as error:
            raise StoreError(f"The URI is refused: {error}.") from error
        if not any(prefix.covers(location) for prefix in self._prefixes):
            allowed = ", ".join(map(str, self._prefixes)) or "none"
            raise NotAllowed(
                f"{location} is outside the remote places that adapters may come from ({allowed}); start the server "
                "with --adapter-prefix."
            )
        return location

    def _local(self, uri: str) -> Path:
        shown = without_secrets(uri)
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise StoreError(f"{shown!r} is not a URI: {error}.") from error
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"{shown!r} names another machine; expected file:///absolute/folder.")
        if parts.query or parts.fragment:
            raise StoreError(f"{shown!r} must be a plain path; write ? and # as %3F and %23.")
        path = unquote(parts.path)
        if not path.startswith("/") or "\0" in path:
            raise StoreError(f"{shown!r} must hold an absolute path: file:///absolute/folder.")
        return self._allowed(uri, Path(path))

    def _allowed(self, uri: str, path: Path) -> Path:
        """The real path of a folder. Raises NotAllowed for a folder outside the allowed ones, and Missing."""
        try:
            real = path.resolve()
            is_folder = real.is_dir()
        except (OSError, RuntimeError) as error:
            raise NotAllowed(f"{uri} cannot be followed.") from error
        if not any(real.is_relative_to(root) for root in self._roots):
            raise NotAllowed(
                f"{uri} is outside the folders that adapters may come from: the bundles and each --adapter-root."
            )
        if not is_folder:
            raise Missing(no_folder(uri, real))
        return real
