"""Compares a recipe with the one that a run was begun with: which keys differ, and on which of them something depends
that is trained or fitted already."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.recipe import Recipe

READ_BY_MEMBERS = ("text", "text_pair", "max_tokens")
"""Keys of the data that members depend on. All other keys say where rows come from, and the digest of the rows is
compared too."""
READ_BY_FUSION = ("fusion", "golden", "baselines", "on_member_error", "extract")
"""Keys of an ensemble that nothing reads before its members are trained."""
LONGEST_VALUE = 40
MOST_CHANGES = 5

Path = tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A key with another value than before; None stands for a member or candidate that one of the recipes lacks."""

    path: Path
    before: Any
    now: Any

    @property
    def whole(self) -> bool:
        """Whether something with a name was added or removed, such as a candidate."""
        return (self.before is None) != (self.now is None) and isinstance(
            self.now or self.before, dict
        )

    def __str__(self) -> str:
        key = ".".join(self.path)
        if self.whole:
            return f"{key} is new" if self.before is None else f"{key} is gone"
        return f"{key} was {_short(self.before)} and is {_short(self.now)} now"


@dataclass(frozen=True)
class Progress:
    """What a run has finished and begun."""

    steps: Mapping[str, Any]
    """The results of the finished steps."""
    begun: frozenset[tuple[str, str]]
    """Ensemble and member of what was begun and is not finished; the member is empty for a search."""

    def _fused(self, ensemble: str) -> bool:
        return f"scores {ensemble}" in self.steps or f"fusion {ensemble}" in self.steps

    def _trained(self, ensemble: str, member: str) -> bool:
        name = f"{ensemble}/{member}"
        begun = (ensemble, member) in self.begun or f"search {name}" in self.steps
        return begun or any(step.startswith(f"stage {name}/") for step in self.steps)

    def _searched(self, ensemble: str) -> bool:
        """Whether trials have trained all members and candidates together."""
        return f"search {ensemble}" in self.steps or (ensemble, "") in self.begun

    def depends_on(self, change: Change) -> bool:
        """Return whether something that is finished or begun would differ with the changed value."""
        match change.path:
            case ("data", key, *_):
                return key in READ_BY_MEMBERS or "data" not in self.steps
            case ("ensembles", _, "defaults", *_):
                return False  # they are written into the members, which are compared too
            case ("ensembles", name, key, *_) if key in READ_BY_FUSION:
                return self._fused(name)
            case ("ensembles", _, "candidates"):
                return False  # another order
            case ("ensembles", name, "members"):
                return self._fused(name)  # another order
            case ("ensembles", name, "members" | "candidates" as role, member, *_):
                if change.whole:
                    counts = role == "members" and (self._fused(name) or self._searched(name))
                    return counts or (change.before is None and self._trained(name, member))
                return self._trained(name, member) or self._searched(name)
        return True


def changes(before: Recipe, now: Recipe) -> list[Change]:
    """Return the keys whose values differ. A key that has its default value is equal to one that is not given."""
    return list(_changes(before.model_dump(mode="json"), now.model_dump(mode="json"), ()))


def listed(found: Sequence[Change]) -> str:
    """Return changes as one piece of text, with at most `MOST_CHANGES` of them."""
    shown = "; ".join(map(str, found[:MOST_CHANGES]))
    rest = len(found) - MOST_CHANGES
    return f"{shown}; and {rest} more" if rest > 0 else shown


def _changes(before: Any, now: Any, path: Path) -> Iterator[Change]:
    if (
        path[:1] == ("ensembles",)
        and path[-1] == "stages"
        and _one_stage(before)
        and _one_stage(now)
    ):
        yield from _changes(before[0], now[0], path[:-1])
    elif isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _changes(before.get(key), now.get(key), (*path, key))
    elif _named(before) and _named(now):
        olds, news = ({each["name"]: each for each in named} for named in (before, now))
        if [name for name in olds if name in news] != [name for name in news if name in olds]:
            yield Change(path, list(olds), list(news))
        yield from _changes(olds, news, path)
    elif _parts(before) and _parts(now) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(old, new, (*path, str(place)))
    elif before != now:
        yield Change(path, before, now)


def _one_stage(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1


def _parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _named(value: Any) -> bool:
    return _parts(value) and all("name" in each for each in value)


def _short(value: Any) -> str:
    text = "not given" if value is None else " ".join(str(value).split())
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
