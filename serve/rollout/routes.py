"""Which version answers a model name: a gateway's immutable snapshot of the desired state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from serve.manifest import Ensemble
from serve.rollout.messages import AssignedVersion, Desired

Track: TypeAlias = Literal["stable", "pinned"]
LISTED = 20
"""How many names an error lists at most."""
SHOWN = 150
"""How many characters of an unknown name an error repeats; known names are shorter."""


class UnknownModel(LookupError):
    """A model name that nothing answers to; the message says which ones there are."""


@dataclass(frozen=True)
class Target:
    """Who answers a model name."""

    ensemble: Ensemble
    member: str | None = None
    """The member that answers alone, if one does."""
    track: Track = "stable"

    @property
    def key(self) -> str:
        """`name@version`, which a request is stamped with."""
        return self.ensemble.id

    @property
    def model(self) -> str:
        """The resolved model name that the answer carries."""
        return f"{self.key}/{self.member}" if self.member else self.key


class Routes:
    """`name`, `name@version` and either with `/member`, for all versions that can be asked."""

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = targets

    @classmethod
    def of(cls, desired: Desired) -> "Routes":
        targets: dict[str, Target] = {}
        for assigned in desired.versions:
            if assigned.routable:
                targets |= _targets(assigned)
        return cls(targets)

    def resolve(self, model: str) -> Target:
        """Raises UnknownModel."""
        target = self._targets.get(model)
        if target is None:
            raise UnknownModel(self._explain(model))
        return target

    def models(self) -> Mapping[str, Target]:
        """Every model name and who answers it, for `GET /v1/models`."""
        return self._targets

    def _explain(self, model: str) -> str:
        """Why nothing answers to `model`."""
        model = model[:SHOWN]
        whole, _, member = model.partition("/")
        name, _, version = whole.partition("@")
        if member and whole in self._targets:
            members = [each.name for each in self._targets[whole].ensemble.members]
            return f"{whole} has no member {member!r}; its members are {_listed(members)}."
        if version and name in self._targets:
            loaded = [key for key in self._targets if key.startswith(f"{name}@") and "/" not in key]
            return f"{whole} is not loaded; of {name}, {_listed(loaded)} can be asked."
        names = [key for key in self._targets if "@" not in key and "/" not in key]
        return f"There is no model {model!r}; there are {_listed(names)}."


def _targets(assigned: AssignedVersion) -> dict[str, Target]:
    ensemble = assigned.version.ensemble
    prefixes: list[tuple[str, Track]] = [(ensemble.id, "pinned")]
    if assigned.role == "active":
        prefixes.insert(0, (ensemble.name, "stable"))
    found: dict[str, Target] = {}
    for prefix, track in prefixes:
        found[prefix] = Target(ensemble, None, track)
        for member in ensemble.members:
            found[f"{prefix}/{member.name}"] = Target(ensemble, member.name, track)
    return found


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    rest = len(names) - LISTED
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {rest} more" if rest > 0 else shown
