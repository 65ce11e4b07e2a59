"""What a start says of itself: that its bundle is not what the store has active."""

from collections.abc import Iterable

from ray import serve as ray_serve

from serve.graph.app import APPLICATION, CONTROLLER
from serve.graph.ray_links import GONE
from serve.protocol.views import EnsembleView

DEFAULT_URL = "http://127.0.0.1:8000"
"""The server that commands ask without `--url`."""
ASK_SECONDS = 10.0


def start_notes(url: str) -> str:
    """Return what the operator of the server at `url` should know once it answers; empty if there is nothing, or if the
    controller cannot be asked: `choir status` says it too.

    Needs a running graph."""
    controller = ray_serve.get_deployment_handle(CONTROLLER, APPLICATION)
    try:
        return notes(controller.ensembles.remote().result(timeout_s=ASK_SECONDS), url)
    except (*GONE, TimeoutError):
        return ""


def notes(ensembles: Iterable[EnsembleView], url: str) -> str:
    """Return a warning, with the command to type, for each ensemble that answers by another version than the start
    has brought."""
    place = "" if url == DEFAULT_URL else f" --url {url}"
    return "\n".join(
        f"WARNING: {each.name}: {said}\nTo serve what this start has brought, type\n  {each.bring_in}{place}"
        for each in ensembles
        if each.bring_in is not None
        for said in each.differences[-1:]
    )
