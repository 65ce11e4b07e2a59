"""Where settings come from: a file, or variables of the environment; and what is said of one that cannot be used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from serve.errors import UserError
from serve.manifest import explain

ENV_PREFIX = "CHOIR_"


class ConfigError(UserError, ValueError):
    """A setting that cannot be used. The message is one sentence for the person who starts the server."""


def from_file(file: Path, known: set[str]) -> dict[str, tuple[Any, str]]:
    """Returns the settings in a YAML or JSON file, by name, each with where it stands. `known`: the names that there
    are. Raises ConfigError."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The config file {file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"The config file {file} is neither YAML nor JSON: {reason}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"The config file {file} must hold settings by name.")
    unknown = sorted(str(name) for name in content if name not in known)
    if unknown:
        raise ConfigError(
            f"The config file {file} has the setting {unknown[0]!r}, which is not known; known are "
            f"{', '.join(sorted(known))}."
        )
    return {name: (value, f"{name!r} in {file}") for name, value in content.items()}


class _Variables(EnvSettingsSource):
    """Reads `CHOIR_*` variables. A list is JSON or separated by commas; any other structure is JSON."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        if not value.lstrip().startswith(("[", "{")):
            return [part.strip() for part in value.split(",") if part.strip()]
        return super().decode_complex_value(field_name, field, value)


def from_environment(settings: type[BaseSettings]) -> dict[str, tuple[Any, str]]:
    """Returns the settings in `CHOIR_*` variables, by name, each with its variable. Raises ConfigError."""
    variables = _Variables(settings)
    found: dict[str, tuple[Any, str]] = {}
    for name, field in settings.model_fields.items():
        variable = ENV_PREFIX + name.upper()
        text, key, is_complex = variables.get_field_value(field, name)
        try:
            value = variables.prepare_field_value(name, field, text, is_complex)
        except ValueError as error:
            raise ConfigError(f"{variable} is not valid JSON: {error}.") from error
        if value is not None:
            found[key] = value, variable
    return found


def sentence(error: ValidationError, given: Mapping[str, tuple[Any, str]]) -> str:
    """Returns one sentence about the first setting that is wrong. `given`: each setting and where it was given."""
    location = error.errors(include_url=False)[0]["loc"]
    if not location:
        what = explain(error)
        return f"{what[0].upper()}{what[1:]}."
    name = str(location[0])
    if name not in given:
        return f"The setting {explain(error)}."
    what = explain(error).removeprefix(name).removeprefix(": ")
    return f"{given[name][1]}: {what}."
