"""Named tokens: what is written down, and how one is found again."""

import hashlib
import hmac
import pickle
from pathlib import Path
from typing import Any

import pytest

from serve.bearer import Token, find_token, hashed, new_secret
from serve.config.settings import Settings, forget_secrets
from serve.config.sources import ConfigError

BUNDLE: dict[str, Any] = {"bundles": ["bundle"]}


def token(name: str, secret: str, role: str = "predict") -> Token:
    return Token.model_validate({"name": name, "role": role, "sha256": hashed(secret)})


def test_the_hash_is_what_sha256sum_prints() -> None:
    assert hashed("gehölz") == hashlib.sha256("gehölz".encode()).hexdigest()


def test_secrets_are_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(len(secret) >= 43 for secret in made)


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest

    def count(a: str, b: str) -> bool:
        compared.append(b)
        return compare(a, b)

    monkeypatch.setattr("hmac.compare_digest", count)
    tokens = [token(name, name) for name in ("ann", "bob", "eve")]
    assert find_token(tokens, b"ann") == tokens[0]
    assert compared == [each.sha256 for each in tokens], "it goes on after the match"
    assert find_token(tokens, b"bo") is None
    assert find_token(tokens, b"") is None


@pytest.mark.parametrize(
    ("role", "may"),
    [("read", {"read"}), ("predict", {"read", "predict"}), ("admin", {"read", "predict", "admin"})],
)
def test_each_role_may_what_the_ones_before_it_may(role: str, may: set[str]) -> None:
    held = token("ann", "x", role)
    assert {each for each in ("read", "predict", "admin") if held.may(each)} == may  # type: ignore[arg-type]


def test_a_sealed_setting_holds_no_secret_in_any_form() -> None:
    flags = {"admin_token": "hunter2", "inference_tokens": ["hunter3"]}
    sealed = Settings.load(BUNDLE | flags).sealed()
    assert b"hunter" not in pickle.dumps(sealed)
    assert [(each.name, each.role) for each in sealed.tokens] == [
        ("admin", "admin"),
        ("inference", "predict"),
    ]
    assert sealed.sealed() == sealed


def test_tokens_come_from_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "choir.yaml"
    file.write_text(f"tokens:\n  - {{name: ann, role: admin, sha256: {hashed('x')}}}\n")
    settings = Settings.load(BUNDLE | {"host": "0.0.0.0"}, file)
    assert settings.tokens == (token("ann", "x", "admin"),)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([{"name": "ann", "role": "root", "sha256": "0" * 64}], "role"),
        ([{"name": "ann", "role": "read", "sha256": "hunter2"}], "sha256"),
        ([{"name": "../ann", "role": "read", "sha256": "0" * 64}], "name"),
        ([{"name": "ann", "role": "read", "secret": "hunter2"}], "sha256"),
        ([{"name": "ann", "role": "read", "sha256": "0" * 64}] * 2, "'ann' is given twice"),
        ([{"name": "admin", "role": "read", "sha256": "0" * 64}], "'admin' is reserved"),
        ([{"name": "inference", "role": "read", "sha256": "0" * 64}], "'inference' is reserved"),
    ],
)
def test_unsound_tokens_are_refused_without_showing_them(tokens: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Settings.load(BUNDLE | {"tokens": tokens})
    assert "hunter2" not in str(caught.value)


def test_beyond_loopback_a_token_that_only_predicts_is_not_enough() -> None:
    tokens = [token("ann", "x").model_dump()]
    with pytest.raises(ConfigError, match="no admin token"):
        Settings.load(BUNDLE | {"host": "0.0.0.0", "tokens": tokens})


def test_secrets_leave_the_environment_before_other_processes_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("CHOIR_ADMIN_TOKEN", "CHOIR_INFERENCE_TOKENS", "CHOIR_DATABASE_URL")
    for name in (*names, "CHOIR_STORE"):
        monkeypatch.setenv(name, "hunter2")
    forget_secrets()
    import os

    assert [name for name in names if name in os.environ] == []
    assert os.environ["CHOIR_STORE"] == "hunter2"
