"""How many members are trained at once, and where."""

import os
import re
import sys
from dataclasses import dataclass
from functools import cache

from serve.errors import UserError
from serve.ray_options import own_cluster

_RUNNING = re.compile(r"[^/\s]+:\d+")
"""A cluster's HOST:PORT; what has a scheme is another of Ray's services."""


class ClusterError(UserError):
    """Why a cluster cannot train the members, or could not, in one sentence."""


@dataclass(frozen=True)
class Parallel:
    """Members at once on a Ray cluster; without an address on one of this run's own, on this machine."""

    address: str | None = None
    """`auto`, or `HOST:PORT` of a running cluster."""
    members: int | None = None
    """At most so many at once; default: as many as the cluster has room for."""

    def prepare(self) -> None:
        """Set Ray's options. Raises ClusterError for an address that cannot be one."""
        if self.address is None:
            if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
                raise ClusterError(
                    "Ray was imported before it could be told to ask for a token, so that it would be open to the "
                    "network; train in a process that has not imported it (choir train)"
                )
            os.environ.update(_closed())
            return
        # With `auto` Ray goes where this variable says.
        named = self.address == "auto" and os.environ.get("RAY_ADDRESS")
        where, address = ("RAY_ADDRESS", named) if named else ("--ray-address", self.address)
        if address != "auto" and not _RUNNING.fullmatch(address):
            # Ray would take `local` for a new cluster, which asks nobody for a token.
            raise ClusterError(
                f"{where} takes auto or HOST:PORT, not {address!r}: a running cluster's address, given on one of its "
                "machines, where the bundle is written; for a Ray of this machine's own give --parallel alone"
            )


@cache
def _closed() -> dict[str, str]:
    """Ray keeps the first token that a process has shown it."""
    return own_cluster()
