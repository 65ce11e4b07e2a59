"""Where the base of an engine lies on this machine."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from serve.engine.interface import EngineSettings


def base_folder(settings: EngineSettings) -> Path | None:
    """The folder itself, or the one that the base of a hub was fetched to; None if it is nowhere."""
    folder = Path(settings.model)
    if folder.is_dir():
        return folder
    found = try_to_load_from_cache(settings.model, "config.json", revision=settings.revision)
    return Path(found).parent if isinstance(found, str) else None
