"""What can be checked before Ray and an engine start, so that a mistake is said within seconds."""

import socket
from pathlib import Path

from serve.bundle import Bundle, BundleError
from serve.config.settings import Settings
from serve.config.sources import ConfigError
from serve.control.admission.pools import Pools
from serve.engine.vllm_hooks.given import check_given
from serve.graph.lifecycle import ServerError
from serve.graph.pools import engine_pools
from serve.watching import spans


def check(settings: Settings) -> int:
    """Check the port, the folders, the engine's arguments and the bundles. Returns how many engines there will be.

    Raises ServerError, ConfigError, EngineSettingError, BundleError and BaseError, each with one sentence."""
    for given in (settings.engine, *(own.engine for own in settings.pools.values())):
        check_given(given)
    if spans.endpoint_of(settings.otlp_endpoint) is not None:
        spans.check_installed()
    for root in settings.adapter_roots:
        if not root.is_dir():
            raise ConfigError(f"--adapter-root: there is no folder {root}.")
    bundles = [_open(path) for path in settings.bundles]
    _make(settings.store_dir, "--store")
    _make(settings.logs.folder, "--log-dir")
    if settings.address is None:
        check_port(settings)
    _check_pinned(settings, bundles)
    for bundle in bundles:
        _check_bundle(bundle, settings)
    pools = [each.pool for each in engine_pools(settings)]
    Pools(pools)
    return sum(pool.replicas for pool in pools)


def check_port(settings: Settings) -> None:
    """Raises ServerError if the port is taken. Ray's proxy would say so only in a log file."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ServerError(
                f"Port {settings.port} on {settings.host} cannot be used ({error.strerror}): "
                "choose another with --port."
            ) from error


def _open(path: Path) -> Bundle:
    if not path.is_dir():
        raise BundleError(f"There is no folder {path}.")
    return Bundle.open(path)


def _make(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{flag}: the folder {folder} cannot be made: {error.strerror}."
        ) from error


def _check_pinned(settings: Settings, bundles: list[Bundle]) -> None:
    names = sorted({each.name for bundle in bundles for each in bundle.ensembles()})
    unknown = [name for name in settings.pinned or () if name not in names]
    if unknown:
        raise ConfigError(
            f"There is no ensemble {unknown[0]!r} to be pinned; there are {', '.join(names)}."
        )


def _check_bundle(bundle: Bundle, settings: Settings) -> None:
    """Raises BundleError with the first problem of a bundle that was never served from this store.

    What the store has once is served from there, whatever has become of the bundle's own files."""
    if settings.database_url is not None or (settings.store_dir / "choir.db").exists():
        bundle.check_base()
        return
    problems = bundle.verify(max_rank=settings.max_lora_rank)
    if problems:
        more = (
            f" (and {len(problems) - 1} more: choir verify {bundle.path})" if problems[1:] else ""
        )
        raise BundleError(f"{problems[0]}{more}")
