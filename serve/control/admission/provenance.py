"""Says for each adapter of a new version where it came from, and who brought it."""

from collections.abc import Sequence

from serve.bundle import Bundle, BundleError
from serve.control.origins import Origin, Origins, asked_uris
from serve.control.records import EnsembleRecord
from serve.manifest import AdapterRef, Ensemble
from serve.protocol.requests import SwapRequest


def origins_after(
    record: EnsembleRecord,
    request: SwapRequest,
    ensemble: Ensemble,
    bundles: Sequence[Bundle],
    actor: str,
    at: str,
) -> Origins:
    """The origins of the adapters of `ensemble`, which a swap makes out of the active version.

    A member that the swap leaves as it is keeps its origins. For a manifest, the place of an adapter is that of an
    earlier version with it, else of a bundle with it."""
    asked = asked_uris(request)
    kept = record.active_version.origins_by_adapter()
    places = {
        digest: origin.uri
        for _, version in sorted(record.versions.items())
        for (_, digest), origin in version.origins_by_adapter().items()
    }
    origins: dict[str, tuple[Origin, ...]] = {}
    for member in ensemble.members:
        if member.name in asked:
            origins[member.name] = tuple(Origin(uri, actor, at) for uri in asked[member.name])
        else:
            origins[member.name] = tuple(
                kept.get((member.name, ref.digest))
                or Origin(places.get(ref.digest) or _place(ref, bundles), actor, at)
                for ref in member.adapters
            )
    return origins


def _place(ref: AdapterRef, bundles: Sequence[Bundle]) -> str | None:
    for bundle in bundles:
        try:
            bundle.adapter_dir(ref)
        except BundleError:
            continue
        return bundle.adapter_uri(ref)
    return None
