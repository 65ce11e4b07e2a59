"""Manifests as a person would write them."""

from typing import Any

DIGEST = "sha256:" + "0" * 64
ONE = {"name": "a", "adapters": []}
"""A member that is the base itself."""


def manifest(**fields: Any) -> dict[str, Any]:
    """A small sound manifest with some fields changed."""
    return {
        "format": 1,
        "name": "intents",
        "version": 1,
        "task": "classification",
        "members": [{"name": "a", "adapters": []}, {"name": "b", "adapters": []}],
        "fusion": {"method": "average"},
        "labels": ["yes", "no"],
    } | fields
