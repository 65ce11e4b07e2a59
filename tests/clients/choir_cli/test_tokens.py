"""`choir token`: the secret, and the line for the config file."""

from pathlib import Path

import pytest

from serve.bearer import find_token
from serve.config import Settings
from tests.clients.choir_cli.conftest import Choir


class TestTokens:
    def test_what_is_printed_is_a_setting_that_takes_the_secret(
        self, choir: Choir, tmp_path: Path
    ) -> None:
        ran = choir("token", "ann", "--role", "admin")
        first, _, line = ran.out.splitlines()
        file = tmp_path / "choir.yaml"
        file.write_text(f"tokens:\n{line}\n")
        tokens = Settings.load({"bundles": ["b"]}, file).tokens
        found = find_token(tokens, first.rpartition(" ")[2].encode())
        assert found is not None
        assert (found.name, found.role) == ("ann", "admin")

    @pytest.mark.parametrize("wrong", [("An n",), ("admin",), ("ann", "--role", "root")])
    def test_what_cannot_be_a_token_is_said(self, choir: Choir, wrong: tuple[str, ...]) -> None:
        ran = choir("token", *wrong)
        assert (ran.status, ran.out) == (2, "")
