"""What each pool of engines is started with: its base, its settings, and what it gets of the machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve.bundle import Bundle
from serve.config.settings import Settings
from serve.config.sources import ConfigError
from serve.control.admission.pools import EngineLimits, Pool, by_base
from serve.engine.interface import EngineSettings
from serve.images.limits import ImageLimits
from serve.watching import spans

PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


@dataclass(frozen=True)
class EnginePool:
    """One pool: what the controller knows of it, and what its engines are started with."""

    pool: Pool
    engine: EngineSettings
    ranks: int
    """The GPUs that one engine computes on, where there are GPUs."""
    gpus: float | None
    """The GPUs of one engine, as the settings say; None: by `gpus_of`."""


@dataclass(frozen=True)
class EnginePlace:
    """Where an engine stands among the others."""

    pool: str
    title: str
    """How the names of the pool's processes begin."""
    engines: int
    """How many engines the server has, in all pools."""
    threads_given: bool
    """Whether the environment says how many threads an engine has."""


def engine_pools(settings: Settings) -> list[EnginePool]:
    """Return the pools for the bundles of the settings. Raises BundleError, BaseError and ConfigError."""
    bundles = by_base([Bundle.open(path) for path in settings.bundles])
    if unknown := sorted(set(settings.pools) - set(bundles)):
        raise ConfigError(
            f"There is no pool {unknown[0]!r}, which the setting pools names; there is "
            f"{', '.join(bundles)}."
        )
    return [
        _pool(name, of_base, settings.of_pool(name), 1 / len(bundles))
        for name, of_base in bundles.items()
    ]


def gpus_of(pools: Sequence[EnginePool], present: float) -> dict[str, float]:
    """Return the GPUs of each pool's engines, by the pool's name, where the cluster has `present` GPUs.

    An engine gets a GPU for each of its ranks. If there are fewer GPUs than engines, those of one rank share them
    evenly."""
    if not present:
        return {each.pool.name: each.gpus or 0.0 for each in pools}
    engines = sum(each.pool.replicas * each.ranks for each in pools if each.gpus is None)
    left = present - sum(each.pool.replicas * each.gpus for each in pools if each.gpus is not None)
    together = -(-engines // max(1, int(left)))  # engines on one GPU
    return {
        each.pool.name: each.gpus
        if each.gpus is not None
        else (1 / together if each.ranks == 1 else float(each.ranks))
        for each in pools
    }


def _pool(name: str, bundles: list[Bundle], settings: Settings, share: float) -> EnginePool:
    base = bundles[0]
    base.check_base()
    digests = {
        digest
        for bundle in bundles
        for ensemble in {ensemble.name for ensemble in bundle.ensembles()}
        for digest in bundle.ensemble(ensemble).digests
    }
    slots = settings.slots(len(digests))
    limits = EngineLimits(
        adapter_slots=slots,
        max_lora_rank=settings.max_lora_rank,
        base_kind=base.base_kind(),
        base_path=base.base_folder,
        max_members=settings.max_members,
        host_adapters=settings.loadable(slots),
    )
    engine = EngineSettings(
        model=base.base_source,
        revision=base.base_revision,
        kind=base.base_kind(),
        dtype=settings.dtype,
        adapter_slots=slots,
        max_lora_rank=settings.max_lora_rank,
        host_adapters=settings.loadable(slots),
        arguments=_traces(settings)
        | {
            argument: value
            for argument, value in settings.engine.items()
            if argument not in ("max_loras", "max_lora_rank")
        },
        images=ImageLimits.of(settings.max_image_mb, settings.max_image_megapixels),
        share=share,
        chat=settings.chat.model_dump(),
    )
    ranks = 1
    for argument in PARALLEL:
        ranks *= int(settings.engine.get(argument, 1))
    return EnginePool(Pool(name, bundles, limits, settings.replicas), engine, ranks, settings.gpus)


def _traces(settings: Settings) -> dict[str, str]:
    endpoint = spans.endpoint_of(settings.otlp_endpoint)
    return {} if endpoint is None else {"otlp_traces_endpoint": spans.traces_address(endpoint)}
