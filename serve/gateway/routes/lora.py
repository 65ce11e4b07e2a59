"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`: swaps in the words of vLLM.

A LoRA's name is the name by which it is asked: `name/member` for a member, or the name of an ensemble with one member.
The name of a member alone will do, if only one ensemble has such a member. The adapter that came with the bundle stands
behind the name until another one is loaded, and again once that one is unloaded. Any other name is a new one: an
ensemble that writes texts with this adapter alone, until it is unloaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import PlainTextResponse, Response

from serve.errors import Refusal, RefusedError
from serve.gateway.http.auth import Guard, actor
from serve.gateway.http.body import BodyReader, validated
from serve.gateway.http.openapi import ADMIN_ERRORS, described
from serve.gateway.http.schemas import LoadLoraRequest, UnloadLoraRequest
from serve.gateway.links import ControlLink
from serve.gateway.routes.admin import granted
from serve.protocol.requests import ADAPTER_MISSING, SwapRequest
from serve.protocol.views import EnsembleView, MemberView

LOAD_PATH = "/v1/load_lora_adapter"
UNLOAD_PATH = "/v1/unload_lora_adapter"
LISTED = 20
"""The most names that an error lists."""


@dataclass(frozen=True)
class Place:
    """The member that a LoRA's name stands for."""

    ensemble: EnsembleView
    member: MemberView

    @property
    def model(self) -> str:
        return f"{self.ensemble.name}/{self.member.name}"

    @property
    def loaded(self) -> bool:
        """Whether an adapter was loaded over the one that came with the bundle."""
        return _swapped(self.member)

    @property
    def others_loaded(self) -> list[str]:
        """The other members whose adapters did not come with the bundle."""
        return [
            each.name for each in self.ensemble.members if each != self.member and _swapped(each)
        ]


def lora_router(control: ControlLink, guard: Guard, bodies: BodyReader) -> APIRouter:
    """Return the routes that load and unload LoRAs as vLLM's do. Both need `guard.admin`."""
    router = APIRouter(dependencies=[Depends(guard.admin)])

    @router.post(
        LOAD_PATH, **_described("Swap a member's adapter in, as vLLM loads a LoRA", LoadLoraRequest)
    )
    async def load(request: Request) -> Response:
        body = await bodies.model(request, LoadLoraRequest)
        uri = adapter_uri(body.lora_path)
        place = await _find(control, body.lora_name)
        if place is None:
            place = await _make(control, body.lora_name, actor(request))
        if len(place.member.adapters) > 1:
            raise RefusedError(
                400,
                f"The member {place.model} has {len(place.member.adapters)} adapters, and this route brings one: use "
                f"/v1/ensembles/{place.ensemble.name}/swap.",
                param="lora_name",
            )
        if place.loaded and not body.load_inplace:
            raise RefusedError(
                400,
                f"The lora adapter {body.lora_name!r} has already been loaded. If you want to load the adapter in "
                "place, set 'load_inplace' to True.",
                param="load_inplace",
            )
        swap = {
            "members": {place.member.name: uri},
            "expected_version": place.ensemble.active_version,
        }
        answer = await control.swap(
            place.ensemble.name, validated(SwapRequest, swap), actor(request), wait=True
        )
        if isinstance(answer, Refusal) and answer.code == ADAPTER_MISSING:
            raise RefusedError(404, answer.message, answer.code, "lora_path")
        granted(answer)
        return _success(f"LoRA adapter '{body.lora_name}' added successfully.")

    @router.post(
        UNLOAD_PATH,
        **_described(
            "Go back to the adapter of the bundle, or to none, as vLLM unloads a LoRA",
            UnloadLoraRequest,
        ),
    )
    async def unload(request: Request) -> Response:
        body = await bodies.model(request, UnloadLoraRequest)
        place = await _find(control, body.lora_name)
        if place is None:
            raise _unknown(body.lora_name)
        if not place.loaded:
            raise RefusedError(
                404,
                f"The lora adapter {body.lora_name!r} cannot be found: {place.model} has the adapter that came with "
                "its bundle, and that one stays.",
                param="lora_name",
            )
        view, version = place.ensemble, place.ensemble.bundle_version
        if place.others_loaded or version is None:
            reason = (
                f"the adapters of {', '.join(place.others_loaded)} were swapped too"
                if place.others_loaded
                else "no version of a bundle is left"
            )
            raise RefusedError(
                409,
                f"{body.lora_name!r} cannot be unloaded alone, because {reason}: use "
                f"/v1/ensembles/{view.name}/swap or /rollback.",
                "not_alone",
                "lora_name",
            )
        swap = SwapRequest(version=version, expected_version=view.active_version)
        granted(await control.swap(view.name, swap, actor(request), wait=True))
        return _success(f"LoRA adapter '{body.lora_name}' removed successfully.")

    return router


def adapter_uri(path: str) -> str:
    """Return the URI of a swap for vLLM's `lora_path`: an absolute path or a URI. Raises RefusedError (400)."""
    if "://" in path:
        return path
    if not path.startswith("/") or "\0" in path:
        raise RefusedError(
            400,
            f"lora_path: {path[:200]!r} must be an absolute path, or a URI such as file:///folder or hf://org/name.",
            param="lora_path",
        )
    return PurePosixPath(path).as_uri()


async def _make(control: ControlLink, name: str, by: str) -> Place:
    """Return the member of a new ensemble, which has no adapter yet. Raises RefusedError (400, 409 or 503)."""
    made = await control.make(name, by)
    if isinstance(made, Refusal):
        raise RefusedError.of(made)
    return Place(made, made.members[0])


async def _find(control: ControlLink, name: str) -> Place | None:
    """Return the member that a LoRA's name stands for; None if it may be a new name. Raises RefusedError (400 or
    404)."""
    whole, _, member = name.partition("/")
    found = await control.ensemble(whole)
    if isinstance(found, Refusal):
        if found.status != 404:
            raise RefusedError.of(found)
        ensembles = [] if member else await control.ensembles()
        places = [
            Place(each, one) for each in ensembles for one in each.members if one.name == whole
        ]
        return None if not places and not member and "@" not in name else _only(name, places)
    if member:
        return _only(name, [Place(found, one) for one in found.members if one.name == member])
    if len(found.members) > 1:
        names = [f"{whole}/{one.name}" for one in found.members]
        raise RefusedError(
            400,
            f"{whole!r} is an ensemble of {len(names)} members: load the adapter of one of them, {_listed(names)}.",
            param="lora_name",
        )
    return Place(found, found.members[0])


def _only(name: str, places: Sequence[Place]) -> Place:
    """Return the only place. Raises RefusedError if there is none (404), or if there are several (400)."""
    if not places:
        raise _unknown(name)
    if len(places) > 1:
        raise RefusedError(
            400,
            f"{name!r} may be {_listed([place.model for place in places])}: say which one.",
            param="lora_name",
        )
    return places[0]


def _unknown(name: str) -> RefusedError:
    return RefusedError(
        404,
        f"The lora adapter {name[:150]!r} cannot be found. GET /v1/models lists the names.",
        param="lora_name",
    )


def _swapped(member: MemberView) -> bool:
    return any(adapter.swapped_by is not None for adapter in member.adapters)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _success(said: str) -> Response:
    return PlainTextResponse(f"Success: {said}")


def _described(summary: str, body: type[LoadLoraRequest | UnloadLoraRequest]) -> dict[str, Any]:
    return {**described(summary, ADMIN_ERRORS, body=body), "response_class": PlainTextResponse}
