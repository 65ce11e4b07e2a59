"""Remote places that adapters may come from, as URIs."""

import re
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias, get_args

from serve.errors import UserError

Scheme: TypeAlias = Literal["s3", "gs", "hf"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REPOSITORY = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<revision>(?!refs$)[A-Za-z0-9][A-Za-z0-9._-]*))?"
)
_PART = re.compile(r"[^\x00-\x1f\x7f\\?#*%\[\]:]+")
"""Without what drivers read as a pattern, a version, an escape or another URI behind this one."""
HIDDEN = "***"
"""What stands for a secret in a URI that is shown."""
_QUERY = re.compile(r"([?#]).*", re.DOTALL)
_REPOSITORY_TYPES = ("datasets", "spaces", "buckets", "models", "kernels")


class LocationError(UserError, ValueError):
    """A URI that names no remote place. The message is one sentence."""


@dataclass(frozen=True)
class Location:
    """A bucket, or an owner on a hub, and a path below it."""

    scheme: Scheme
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Reads a URI. Raises LocationError if it is unsound. An accepted URI holds no secret, so it may be logged."""
        scheme, separator, rest = uri.partition("://")
        if not separator or scheme not in SCHEMES:
            raise LocationError(f"expected {_listed()}, followed by ://")
        parts = tuple(rest.removesuffix("/").split("/"))
        if not _OWNER.fullmatch(parts[0]):
            raise LocationError(
                f"{scheme}:// must be followed by a plain name of a bucket or owner; credentials come from the "
                "environment of the server"
            )
        for part in parts[1:]:
            if part in ("", ".", "..") or not _PART.fullmatch(part):
                raise LocationError(
                    "the path must be plain: no empty parts, no '..', and none of \\ ? # * % [ ] : in it"
                )
        if scheme == "hf":
            _check_repository(parts)
        return cls(scheme, parts)

    @property
    def path(self) -> str:
        """The place without its scheme, as drivers take it."""
        return "/".join(self.parts)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def covers(self, other: "Location") -> bool:
        """Returns whether `other` is this place or below it. A repository without a revision covers all its branches,
        tags and commits."""
        mine, theirs = self.parts, other.parts[: len(self.parts)]
        if self.scheme == "hf" and len(mine) > 1 and "@" not in mine[1] and len(theirs) > 1:
            theirs = (theirs[0], theirs[1].partition("@")[0], *theirs[2:])
        return self.scheme == other.scheme and mine == theirs


def without_secrets(uri: str) -> str:
    """Returns a URI as it may be shown and logged: without user, password and query. An unsound one too."""
    try:
        return str(Location.parse(uri))
    except LocationError:
        scheme, separator, rest = uri.partition("://") if "://" in uri else ("", "", uri)
        # A password may hold / and ?, but in the path of a file an @ is a letter like any other.
        user, _, place = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
        shown = _QUERY.sub(rf"\1{HIDDEN}", place)
        return f"{scheme}{separator}{HIDDEN + '@' if user else ''}{shown}"


def _check_repository(parts: tuple[str, ...]) -> None:
    if parts[0] in _REPOSITORY_TYPES:
        raise LocationError("hf:// must name a model repository: hf://owner/name/folder")
    if len(parts) > 1 and not _REPOSITORY.fullmatch(parts[1]):
        # A pull request's content (@refs/pr/N) is whoever opened it's.
        raise LocationError(
            f"{parts[1]!r} is no repository with a branch, tag or commit; expected hf://owner/name@revision/folder"
        )


def _listed() -> str:
    return ", ".join(SCHEMES[:-1]) + f" or {SCHEMES[-1]}"
