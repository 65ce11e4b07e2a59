"""The options of parallel training: which cluster, and how many members at once."""

import os
import re
import sys
from dataclasses import dataclass
from functools import cache

from serve.errors import UserError
from serve.ray_options import own_cluster

_RUNNING = re.compile(r"[^/\s]+:\d+")
"""A cluster's HOST:PORT. An address with a scheme belongs to another service of Ray."""


class ClusterError(UserError):
    """A cluster cannot train the members, or failed while it did; the message is one sentence."""


@dataclass(frozen=True)
class Parallel:
    """How members are trained on a Ray cluster. Without an address, the run starts a cluster on this machine."""

    address: str | None = None
    """`auto`, or the `HOST:PORT` of a running cluster."""
    members: int | None = None
    """The most members at once; default: as many as fit on the cluster."""

    @property
    def flags(self) -> list[str]:
        """The same as options of `choir train`."""
        address = [] if self.address is None else ["--ray-address", self.address]
        return address + ([] if self.members is None else ["--parallel", str(self.members)])

    def prepare(self) -> None:
        """Set Ray's options in the environment. Raises ClusterError if the address is not valid."""
        if self.address is None:
            if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
                raise ClusterError(
                    "Ray was imported before it was told to require a token, so its cluster would be open to the "
                    "network; train in a process that has not imported Ray (choir train)"
                )
            os.environ.update(_closed())
            return
        # With `auto`, Ray uses the address in this variable.
        named = self.address == "auto" and os.environ.get("RAY_ADDRESS")
        where, address = ("RAY_ADDRESS", named) if named else ("--ray-address", self.address)
        if address != "auto" and not _RUNNING.fullmatch(address):
            # With `local`, Ray would start a new cluster that requires no token.
            raise ClusterError(
                f"{where} takes auto or HOST:PORT, not {address!r}; give the address of a running cluster and train on "
                "one of its machines, or give --parallel alone to start a cluster on this machine"
            )


@cache
def _closed() -> dict[str, str]:
    """Return the options of a cluster that requires a token; cached, because Ray keeps a process's first token."""
    return own_cluster()
