"""Makes a name at run time: an ensemble of one member, whose first adapter a swap then brings."""

from pydantic import ValidationError

from serve.control.admission.pools import Pools
from serve.control.clock import now
from serve.control.records import FROM_BASE, VersionRecord
from serve.errors import RefusedError
from serve.manifest import Ensemble, FusionSpec, Member


def empty_version(name: str, pools: Pools) -> VersionRecord:
    """The version that a new name starts with: texts by one member, which has no adapter yet.

    Raises RefusedError (400) for a name that no ensemble may have, and if not exactly one pool writes texts."""
    writing = [pool for pool in pools.all.values() if pool.limits.base_kind == "causal"]
    if len(writing) != 1:
        reason = (
            f"this server has {len(writing)} bases that write texts, {', '.join(each.name for each in writing)}"
            if writing
            else "no base of this server writes texts, and nobody has said which labels it has"
        )
        raise RefusedError(
            400,
            f"No adapter can be loaded under the new name {name!r}, because {reason}: load it for a member of an "
            "ensemble, ENSEMBLE/MEMBER.",
            param="lora_name",
        )
    try:
        member = Member(name=name, adapters=[])
        ensemble = Ensemble(
            format=1,
            name=name,
            version=1,
            task="generation",
            members=[member],
            fusion=FusionSpec(method="average"),
        )
    except ValidationError as error:
        raise RefusedError(
            400,
            f"{name!r} cannot be a new name: it may have at most 63 of a to z, 0 to 9, '.', '_' and '-', and begins "
            "with a letter or a digit.",
            param="lora_name",
        ) from error
    folder = str(writing[0].bundles[0].path)
    pools.adopt(name, folder)
    return VersionRecord(ensemble, f"{FROM_BASE}{folder}", now())
