"""`choir token`: the secret, and the line for the config file."""

from pathlib import Path

import pytest

from serve.bearer import find_token
from serve.config.settings import Settings
from tests.clients.choir_cli.conftest import Choir


class TestTokens:
    def test_the_printed_line_is_a_setting_that_accepts_the_secret(
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

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            (("An n",), "'An n' cannot be the name of a token: use small letters"),
            (("admin",), "reserved"),
            (("ann", "--role", "root"), "'root' is not one of"),
        ],
    )
    def test_a_wrong_name_or_role_is_a_usage_error(
        self, choir: Choir, wrong: tuple[str, ...], says: str
    ) -> None:
        ran = choir("token", *wrong)
        assert (ran.status, ran.out) == (2, "")
        assert says in ran.err
