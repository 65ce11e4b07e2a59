"""Bearer tokens: a name, a role, and the hash of a secret that is stored nowhere."""

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
"""Names of the tokens that settings give without a name (CHOIR_ADMIN_TOKEN, CHOIR_INFERENCE_TOKENS)."""


class Token(BaseModel):
    """A token's name, its role, and the hash of its secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    role: Role
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the secret's UTF-8 bytes. No salt is needed, because secrets are random and cannot be guessed."""

    def may(self, role: Role) -> bool:
        """Returns whether this token may do what `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)


def new_secret() -> str:
    """Returns a new secret of 256 random bits."""
    return f"choir-{secrets.token_urlsafe(32)}"


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def find_token(tokens: Iterable[Token], given: bytes) -> Token | None:
    """Returns the token with this secret; None if there is none. All tokens are compared, each in constant time, so
    that timing tells nothing about any of them."""
    digest = hashlib.sha256(given).hexdigest()
    found = None
    for token in tokens:
        if hmac.compare_digest(digest, token.sha256):
            found = token
    return found
