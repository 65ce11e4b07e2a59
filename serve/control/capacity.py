"""Whether what is to be loaded fits into an engine, and the sentence for what does not."""

from collections.abc import Sequence

from serve.manifest import Ensemble
from serve.protocol.slots import Slots
from serve.refusal import RefusedError


def check_room(
    candidate: Ensemble, needed: Sequence[Ensemble], slots: Slots, *, shared: int = 0
) -> None:
    """Whether the candidate fits beside what cannot go: active versions that are always loaded, other candidates, and
    the room `shared` by ensembles on demand.

    Warm versions are not counted, because they make room. Raises RefusedError (409), naming what
    occupies the slots."""
    own = len(slots.taken([candidate]))
    if own > slots.at_once:
        raise RefusedError(
            409,
            f"{candidate.id} does not fit: it has {own} distinct LoRAs, and the engine runs {slots.at_once} at once. "
            f"Start with more slots (--engine '{{\"max_loras\": {own}}}').",
            "no_room",
        )
    total = len(slots.taken([candidate, *needed])) + shared
    if total > slots.count:
        occupied = ", ".join(f"{each.id} ({len(slots.taken([each]))})" for each in needed)
        if shared:
            occupied += f"{' and ' if occupied else ''}ensembles on demand ({shared})"
        raise RefusedError(
            409,
            f"{candidate.id} does not fit: with it the engine would hold {total} distinct "
            f"LoRAs, and it has {slots.count} slots. They are occupied by {occupied}. Start with more "
            f"slots (--engine '{{\"max_loras\": {total}}}'), or keep more in host memory (host_adapters: {total}).",
            "no_room",
        )


def no_room_to_start(active: Sequence[Ensemble], slots: Slots) -> str | None:
    """Why an engine cannot hold the active versions that are always loaded, and each of the others by turns."""
    names = {each.name for each in active}
    if unknown := sorted((slots.pinned or frozenset()) - names):
        return f"There is no ensemble {unknown[0]!r} to be pinned; there are {', '.join(sorted(names))}."
    for each in active:
        own = len(slots.taken([each]))
        if own > slots.at_once:
            return (
                f"{each.id} has {own} distinct LoRAs, and an engine has {slots.at_once} slots; start with more "
                f"(--engine '{{\"max_loras\": {2 * own + 1}}}')."
            )
    taken = len(slots.taken(slots.always(active))) + slots.shared(active)
    if taken <= slots.count:
        return None
    return (
        f"The active versions have {taken} distinct LoRAs, and an engine has "
        f"{slots.count} slots; start with more "
        f"(--engine '{{\"max_loras\": {2 * taken + 1}}}'), keep more in host memory (host_adapters), or have fewer "
        "ensembles always loaded (pinned)."
    )
