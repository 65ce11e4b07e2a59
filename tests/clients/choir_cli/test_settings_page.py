"""The page of all settings."""

import inspect
from pathlib import Path

import pytest

from choir_cli import settings_page
from choir_cli.serving import serve
from serve.config.settings import Settings

ROOT = Path(__file__).parents[3]
OF_PACKING = {"base", "adapter", "task", "fusion", "labels", "weight", "template", "verbalizers"}
OF_PACKING |= {"prompt", "name", "revision", "config"}
"""Options of `choir serve` that are no settings: they describe a bundle, or name the file."""


def test_the_page_says_what_the_code_says() -> None:
    written = (ROOT / settings_page.PAGE).read_text(encoding="utf-8")
    assert written == settings_page.page(), "run `python -m choir_cli.settings_page`"


def test_every_option_of_the_server_is_on_it() -> None:
    settings = set(settings_page.flags()) & set(Settings.model_fields)
    assert len(settings) == len(set(inspect.signature(serve).parameters) - OF_PACKING)
    page = settings_page.page()
    assert all(f"| `{settings_page.flags()[setting]}` |" in page for setting in settings)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_explained(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert f"| {description.replace('|', '')} |" in settings_page.page()
