"""Checks that several machines share the store."""

from serve.config.settings import Settings
from serve.control.errors import StartError


def check_machines(settings: Settings, machines: int) -> None:
    """Raises StartError if several machines do not share a store. Engines read artifacts from it, and the controller
    may restart on another machine."""
    if machines < 2 or settings.shared_store:
        return
    raise StartError(
        f"the cluster has {machines} machines, and the store {settings.store_dir} is not said to be shared by them: "
        "put it on a disk that all of them see under the same path and say so with CHOIR_SHARED_STORE=1; for the "
        "state, PostgreSQL (CHOIR_DATABASE_URL) is better there than a file."
    )
