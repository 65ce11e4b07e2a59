"""Bearer tokens: a name, a role, and the hash of a secret that is written down nowhere."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, StringConstraints

from serve.manifest import Name

Role: TypeAlias = Literal["read", "predict", "admin"]
ROLES: tuple[Role, ...] = ("read", "predict", "admin")
"""Each may do what the ones before it may."""


RESERVED = ("admin", "inference")
"""Names of the tokens that settings give without one (CHOIR_ADMIN_TOKEN, CHOIR_INFERENCE_TOKENS)."""


class Token(BaseModel):
    """Who holds a token, and what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    role: Role
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the secret's UTF-8 bytes. A plain hash does, because secrets are random: there is nothing to guess."""

    def may(self, role: Role) -> bool:
        """Whether it may do what `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)


def new_secret() -> str:
    """256 random bits."""
    return f"choir-{secrets.token_urlsafe(32)}"


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def find_token(tokens: Iterable[Token], given: bytes) -> Token | None:
    """The token whose secret was given. Every one is compared, each in constant time, so that timing tells nothing
    about any."""
    digest = hashlib.sha256(given).hexdigest()
    found = None
    for token in tokens:
        if hmac.compare_digest(digest, token.sha256):
            found = token
    return found
