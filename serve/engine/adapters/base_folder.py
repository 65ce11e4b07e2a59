"""Finds the base of an engine on this machine."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from serve.engine.interface import EngineSettings


def base_folder(settings: EngineSettings) -> Path | None:
    """Returns the base's folder, or the folder in the hub's local cache; None if neither exists. Fetches nothing."""
    folder = Path(settings.model)
    if folder.is_dir():
        return folder
    found = try_to_load_from_cache(settings.model, "config.json", revision=settings.revision)
    return Path(found).parent if isinstance(found, str) else None
