"""`choir serve` and the options of a bundle: what they hand to the server."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve.config.settings import Settings
from tests.clients.choir_cli.conftest import Choir


def test_help_names_the_defaults_of_the_settings(choir: Choir) -> None:
    text = " ".join(choir("serve", "--help").out.split())
    fields = Settings.model_fields
    for name in ("host", "port", "dtype", "replicas", "gateways"):
        assert re.search(rf"--{name} .*?\[default: \({fields[name].default}\)\]", text), name


class TestServeAndPack:
    def test_options_become_settings(self, choir: Choir, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[dict[str, Any]] = []
        monkeypatch.setattr(
            "choir_cli.serving._run", lambda flags, config, folder: seen.append(flags) or 3
        )
        ran = choir(
            *("serve", "one", "two", "--port", "9000", "--replicas", "2"),
            *("--adapter-root", "/data", "--engine", '{"max_loras": 8}'),
            *("--log-level", "warning", "--log-format", "text", "--log-dir", "/logs"),
        )
        assert ran.status == 3
        assert seen == [
            {
                "bundles": [Path("one"), Path("two")],
                "port": 9000,
                "replicas": 2,
                "adapter_roots": [Path("/data")],
                "engine": {"max_loras": 8},
                "log_level": "warning",
                "log_format": "text",
                "log_dir": Path("/logs"),
            }
        ]

    def test_a_base_and_adapters_are_packed_and_served(
        self, choir: Choir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        packed: list[dict[str, Any]] = []
        served: list[dict[str, Any]] = []

        def pack(base: str, adapters: dict[str, Path], out: Path, **rest: Any) -> Any:
            packed.append({"base": base, "adapters": adapters, **rest})
            return SimpleNamespace(path=out)

        monkeypatch.setattr("serve.pack.pack", pack)
        monkeypatch.setattr(
            "choir_cli.serving._run", lambda flags, config, folder: served.append(flags) or 0
        )
        (tmp_path / "labels").write_text("yes\nno\n")
        (tmp_path / "texts.json").write_text('{"yes": " y"}')
        ran = choir(
            *("serve", "--base", "org/name", "--adapter", "a=dir/a", "--adapter", "b=dir/b"),
            *("--task", "classification", "--fusion", "weighted_average", "--weight", "a=0.75"),
            *("--labels", str(tmp_path / "labels"), "--verbalizers", str(tmp_path / "texts.json")),
        )
        assert ran.status == 0
        assert packed == [
            {
                "base": "org/name",
                "adapters": {"a": [Path("dir/a")], "b": [Path("dir/b")]},
                "task": "classification",
                "fusion": "weighted_average",
                "labels": ["yes", "no"],
                "weights": {"a": 0.75},
                "template": "{text}",
                "verbalizers": {"yes": " y"},
                "prompts": [],
                "name": "ensemble",
                "revision": None,
                "record_sources": True,
            }
        ]
        (flags,) = served
        assert [bundle.name for bundle in flags["bundles"]] == ["bundle"]
