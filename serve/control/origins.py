"""Where the adapters of a version came from, and who brought them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from serve.bundle import Bundle
from serve.location import without_secrets
from serve.manifest import Ensemble
from serve.protocol.requests import SwapRequest


@dataclass(frozen=True)
class Origin:
    """Where one adapter of a version came from."""

    uri: str | None
    """The folder that it was copied from, as a URI without secrets; None if that was never recorded."""
    swapped_by: str | None = None
    """Who swapped it in; None if it came with a bundle."""
    swapped_at: str | None = None
    """ISO 8601, UTC; None if it came with a bundle."""


Origins: TypeAlias = Mapping[str, tuple[Origin, ...]]
"""Member -> the origins of its adapters, in the manifest's order."""


def bundle_origins(bundle: Bundle, ensemble: Ensemble) -> Origins:
    """The origins of an ensemble's adapters that came with a bundle."""
    return {
        member.name: tuple(
            Origin(without_secrets(bundle.adapter_uri(ref))) for ref in member.adapters
        )
        for member in ensemble.members
    }


def origins_json(origins: Origins) -> dict[str, Any]:
    """The origins as JSON values, for the database."""
    return {member: [asdict(each) for each in several] for member, several in origins.items()}


def origins_of(values: Mapping[str, Any]) -> Origins:
    """The origins that `origins_json` gave."""
    return {member: tuple(Origin(**each) for each in several) for member, several in values.items()}


def asked_uris(request: SwapRequest) -> dict[str, list[str]]:
    """Member -> the URIs that a request gives for it, without secrets."""
    return {
        member: [without_secrets(uri) for uri in ([uris] if isinstance(uris, str) else uris)]
        for member, uris in (request.members or {}).items()
    }


def all_uris(origins: Origins) -> dict[str, list[str]]:
    """Member -> the known URIs of its adapters."""
    known = {m: [o.uri for o in several if o.uri is not None] for m, several in origins.items()}
    return {member: uris for member, uris in known.items() if uris}
