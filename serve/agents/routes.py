"""Which version answers a model name. `Routes` is a gateway's immutable view of the desired state."""

import difflib
import hashlib
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from serve.errors import did_you_mean
from serve.manifest import Ensemble
from serve.protocol.messages import AssignedVersion, Desired
from serve.protocol.strategy import Strategy

Track: TypeAlias = Literal["stable", "canary", "shadow", "pinned"]
LISTED = 20
"""The most names that an error lists."""
SHOWN = 150
"""Characters of an unknown name that an error repeats. Known names are shorter."""


class UnknownModel(LookupError):
    """A model name that does not exist. The message lists the names that do."""


@dataclass(frozen=True)
class Trial:
    """A candidate that is tried out on requests for its ensemble."""

    attempt: str
    """The rollout that tries it."""
    strategy: Strategy
    stable: Ensemble
    candidate: Ensemble

    def takes(self, key: str | None) -> bool:
        """Return whether a request belongs to the strategy's share.

        Without a key, chance decides. With a key, the answer is the same for the whole rollout and on every gateway."""
        if key is None:
            return random.random() < self.strategy.share
        digest = hashlib.sha256(f"{self.attempt}:{key}".encode(errors="replace")).digest()
        return int.from_bytes(digest[:8]) < self.strategy.share * 2**64


@dataclass(frozen=True)
class Target:
    """The version, or one member of it, that answers a model name."""

    ensemble: Ensemble
    member: str | None = None
    """The member that answers alone; None if all members answer."""
    track: Track = "stable"
    trial: Trial | None = None
    """The trial that the request takes part in, as a request for the candidate or for the active version."""
    on_demand: bool = False
    """Whether the answer may have to wait until the version is loaded."""
    pool: str = ""
    """The pool of engines that hold the version."""

    @property
    def key(self) -> str:
        """`name@version`, which a request is stamped with."""
        return self.ensemble.id

    @property
    def model(self) -> str:
        """The resolved model name that the answer carries."""
        return f"{self.key}/{self.member}" if self.member else self.key

    def other_side(self) -> "Target | None":
        """Return the target for asking the other version of the trial the same; None if there is no trial, or if that
        version has no such member."""
        if self.trial is None:
            return None
        trial = self.trial
        tried = self.ensemble.version == trial.candidate.version
        other = trial.stable if tried else trial.candidate
        if self.member is not None and self.member not in [each.name for each in other.members]:
            return None
        return replace(self, ensemble=other)


class Routes:
    """The model names that can be asked: `name`, `name@version`, and both with `/member`."""

    def __init__(self, targets: Mapping[str, Target], trials: Collection[str] = ()) -> None:
        self._targets = targets
        self.trials = trials
        """Ids of the rollouts whose candidates are tried out."""

    @classmethod
    def of(cls, desired: Desired) -> "Routes":
        """Return the routes for a desired state."""
        trials = _trials(desired)
        targets: dict[str, Target] = {}
        for assigned in desired.versions:
            if assigned.routable:
                targets |= _targets(assigned, trials.get(assigned.version.ensemble.name))
        return cls(targets, [trial.attempt for trial in trials.values()])

    def resolve(self, model: str, key: str | None = None) -> Target:
        """Return the target of a request for `model`.

        While a canary runs, a share of the requests without a version goes to the candidate, and requests with the
        same `key` go to the same version. Raises UnknownModel if the name does not exist."""
        target = self.named(model)
        trial = target.trial
        if trial is not None and trial.strategy.kind == "canary" and trial.takes(key):
            candidate = target.other_side()
            return target if candidate is None else replace(candidate, track="canary")
        return target

    def named(self, model: str) -> Target:
        """Return the target of a model name, without regard to canaries. Raises UnknownModel if it does not exist."""
        target = self._targets.get(model)
        if target is None:
            raise UnknownModel(self._explain(model))
        return target

    def active(self) -> dict[str, int]:
        """Return the version that answers the plain name of each ensemble."""
        return {
            name: target.ensemble.version
            for name, target in self._targets.items()
            if name == target.ensemble.name
        }

    def models(self) -> Mapping[str, Target]:
        """Return the target of every model name, for `GET /v1/models`."""
        return self._targets

    def _explain(self, model: str) -> str:
        """Return why there is no such model, in a sentence for the client."""
        model = model[:SHOWN]
        whole, _, member = model.partition("/")
        name, _, version = whole.partition("@")
        if member and whole in self._targets:
            members = [each.name for each in self._targets[whole].ensemble.members]
            meant = did_you_mean(member, members)
            return f"{whole} has no member {member!r}; its members are {_listed(members)}.{meant}"
        if version and name in self._targets:
            loaded = [key for key in self._targets if key.startswith(f"{name}@") and "/" not in key]
            return f"{whole} is not loaded; of {name}, {_listed(loaded)} can be asked."
        names = [key for key in self._targets if "@" not in key and "/" not in key]
        meant = did_you_mean(model, self._like(name, model.removeprefix(name), names))
        return f"There is no model {model!r}; there are {_listed(names)}.{meant}"

    def _like(self, name: str, rest: str, names: list[str]) -> list[str]:
        """Return the model names that a misspelt one may have meant: with the same `@version` and `/member`, or
        without."""
        close = difflib.get_close_matches(name.lower(), names)
        return [f"{each}{rest}" if f"{each}{rest}" in self._targets else each for each in close]


def _trials(desired: Desired) -> dict[str, Trial]:
    """Return the trials under way, by ensemble."""
    stable = {
        assigned.version.ensemble.name: assigned.version.ensemble
        for assigned in desired.versions
        if assigned.role == "active"
    }
    return {
        name: Trial(assigned.attempt, assigned.trial, stable[name], assigned.version.ensemble)
        for assigned in desired.versions
        if assigned.trial is not None
        and assigned.attempt is not None
        and (name := assigned.version.ensemble.name) in stable
    }


def _targets(assigned: AssignedVersion, trial: Trial | None) -> dict[str, Target]:
    ensemble = assigned.version.ensemble
    prefixes: list[tuple[str, Track]] = [(ensemble.id, "pinned")]
    if assigned.role == "active":
        prefixes.insert(0, (ensemble.name, "stable"))
    found: dict[str, Target] = {}
    for prefix, track in prefixes:
        tried = trial if track == "stable" else None
        for name in (None, *(member.name for member in ensemble.members)):
            key = prefix if name is None else f"{prefix}/{name}"
            found[key] = Target(ensemble, name, track, tried, assigned.on_demand, assigned.pool)
    return found


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    rest = len(names) - LISTED
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {rest} more" if rest > 0 else shown
