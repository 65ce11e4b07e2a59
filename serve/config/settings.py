"""The settings of a server: name, unit, default, and what each one does."""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from serve.adapter import DEFAULT_RANK_LIMIT, RANK_LIMITS
from serve.bearer import RESERVED, Token, hashed
from serve.config.chat import ChatSettings
from serve.config.pools import Dtype, PoolSettings
from serve.config.sources import ENV_PREFIX, ConfigError, from_environment, from_file, sentence
from serve.images.limits import DEFAULT_MB, DEFAULT_MEGAPIXELS, MOST_MEGAPIXELS
from serve.location import Location
from serve.logs.lines import LogFormat
from serve.logs.process import LogLevel, LogSettings
from serve.manifest import explain

DEFAULT_SEQUENCES = 128
"""vLLM's own default of the engine argument max_num_seqs, for an engine like Choir's."""


class Settings(BaseSettings):
    """The settings of a server. Printing and logging them shows no secrets.

    Only `load` reads environment variables. The constructor uses only its arguments."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    bundles: tuple[Path, ...] = Field(
        min_length=1,
        description="Bundles to serve, at least one. Each base among them gets engines of its own.",
    )
    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to bind.")
    dtype: Dtype = Field("auto", description="Number format of the base's weights in the engine.")
    replicas: int = Field(1, ge=1, le=1024, description="Engines of each base.")
    max_replicas: int = Field(
        1, ge=1, le=1024, description="Engines under load, if that is more than `replicas`."
    )
    gateways: int = Field(1, ge=1, le=1024, description="HTTP gateways.")
    store: Path | None = Field(
        None, description="Folder of artifacts and state; .choir/ in the first bundle by default."
    )
    shared_store: bool = Field(
        False, description="The store is on a disk that all machines of the cluster share."
    )
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL of the state; an SQLite file in the store by default."
    )
    adapter_roots: tuple[Path, ...] = Field(
        (), description="Folders that file:// adapters may come from, besides the bundles."
    )
    adapter_prefixes: tuple[str, ...] = Field(
        (),
        description="Remote places that adapters may come from, such as s3://bucket/adapters; none "
        "by default.",
    )
    max_adapter_gb: float = Field(
        16, gt=0, description="Size of one adapter that is fetched, in GB; above, 400."
    )
    fetch_timeout_seconds: float = Field(
        1800, gt=0, description="Seconds that one adapter may take to arrive in the store."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host names that admin routes accept, besides loopback and `host`."
    )
    engine: dict[str, Any] = Field({}, description="vLLM's engine arguments by name.")
    chat: ChatSettings = Field(
        ChatSettings(),
        description="vLLM's settings of chats by name: `enable_auto_tool_choice`, `tool_call_parser`, "
        "`reasoning_parser`, `chat_template` (a template or its file), `chat_template_content_format`, "
        "`default_chat_template_kwargs`.",
    )
    adapter_slots: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Distinct LoRAs that an engine runs at once (vLLM's max_loras); by default "
        "twice the distinct adapters of the start plus one, so that members can change their kind.",
    )
    host_adapters: int | None = Field(
        None,
        ge=1,
        le=16384,
        description="Distinct LoRAs that an engine keeps in host memory, from where they take slots by turns (vLLM's "
        "max_cpu_loras); at least, and by default, as many as slots.",
    )
    gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of one engine, or a share of one; by default one for each tensor and pipeline parallel rank "
        "where the cluster has GPUs when the server starts, and a share where there are fewer GPUs than engines.",
    )
    pools: dict[str, PoolSettings] = Field(
        {},
        description="Settings of one base's engines, by the folder name of its first bundle: `replicas`, `dtype`, "
        "`engine`, `adapter_slots`, `host_adapters`, `gpus`, `chat`.",
    )
    pinned: tuple[str, ...] | None = Field(
        None,
        description="Ensembles that are always loaded; all by default. Others are loaded by the first request for "
        "them, and make room for each other.",
    )
    address: str | None = Field(
        None, description="HOST:PORT of a running Ray cluster to join instead of starting Ray."
    )
    insecure: bool = Field(
        False, description="Allow a host beyond loopback without an admin token."
    )
    admin_token: SecretStr | None = Field(
        None,
        min_length=1,
        description="Bearer token that is valid on every route; without one, admin routes exist on "
        "loopback only.",
    )
    inference_tokens: tuple[SecretStr, ...] = Field(
        (),
        description="Bearer tokens for inference; without any, and without named ones, none is needed.",
    )
    tokens: tuple[Token, ...] = Field(
        (),
        description="Further bearer tokens, each with a name, a role (read, predict or admin) and the SHA-256 of "
        "its secret; `choir token` makes them.",
    )
    max_requests_per_minute: int | None = Field(
        None,
        ge=1,
        description="Requests of one token, or of one address without one, to each gateway; above, 429.",
    )
    body_timeout_seconds: float = Field(
        60, gt=0, description="Seconds that a request's body may take to arrive; above, 408."
    )
    max_inputs: int = Field(
        1024,
        ge=1,
        description="Inputs of one predict request, or answers of one completion; above, 400.",
    )
    max_members: int = Field(64, ge=1, description="Members of one ensemble; above, 400.")
    max_body_mb: float = Field(32, gt=0, description="Size of a request's body in MB; above, 413.")
    max_image_mb: float = Field(
        DEFAULT_MB, gt=0, description="Size of one image in a request, in MB; above, 400."
    )
    max_image_megapixels: float = Field(
        DEFAULT_MEGAPIXELS,
        gt=0,
        le=MOST_MEGAPIXELS,
        description="Width times height of one image in a request, in millions of pixels; above, 400.",
    )
    max_in_flight: int = Field(
        256, ge=1, description="Requests that one gateway works on at once; above, 429."
    )
    queue: float = Field(
        0.5,
        ge=0,
        description="Member sequences that wait in a gateway, as a share of those that its engines run at once; above, "
        "429.",
    )
    shares: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Each ensemble's share of a full server, by name; 1 by default."
    )
    keep_warm: int = Field(
        1,
        ge=0,
        le=64,
        description="Earlier versions of each ensemble that stay loaded for an instant rollback.",
    )
    lease_seconds: float = Field(
        10,
        gt=0,
        le=600,
        description="Seconds after which a silent gateway or engine no longer holds up a commit.",
    )
    prepare_timeout_seconds: float = Field(
        120, gt=0, description="Seconds that all engines together have to load a candidate."
    )
    request_timeout_seconds: float = Field(
        300, gt=0, description="Seconds after which a gateway gives a request up."
    )
    shadow_queue: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Answered requests that wait in one gateway to be asked of another version "
        "too; more are dropped.",
    )
    shadow_concurrency: int = Field(
        1, ge=1, le=256, description="Of these, how many one gateway asks at once."
    )
    log_level: LogLevel = Field("info", description="Least level of the lines in the log files.")
    log_format: LogFormat = Field(
        "json", description="Form of the lines in the log files: JSON objects, or text."
    )
    log_dir: Path | None = Field(
        None, description="Folder of the log files; logs/ in the store by default."
    )

    otlp_endpoint: str | None = Field(
        None,
        description="Address to which spans are sent by OTLP, such as http://127.0.0.1:4318; by default that of "
        "OTEL_EXPORTER_OTLP_ENDPOINT, and without it there are no spans.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @classmethod
    def load(cls, flags: Mapping[str, Any], config_file: Path | None = None) -> "Settings":
        """Merges flags, then `CHOIR_*` variables, then the YAML or JSON file, then the defaults.

        Variables are named after settings (`CHOIR_MAX_INPUTS`). Lists are separated by commas, or JSON. Empty variables
        count as unset, and unknown ones are ignored. Raises ConfigError."""
        layers = [
            *([from_file(config_file, set(cls.model_fields))] if config_file else []),
            from_environment(cls),
            {name: (value, f"--{name.replace('_', '-')}") for name, value in flags.items()},
        ]
        merged: dict[str, tuple[Any, str]] = {}
        for layer in layers:
            merged |= layer
        try:
            return cls.model_validate({name: value for name, (value, _) in merged.items()})
        except ValidationError as error:
            raise ConfigError(sentence(error, merged)) from error

    @field_validator("bundles", "store", "adapter_roots", "log_dir")
    @classmethod
    def _make_absolute(cls, paths: Any) -> Any:
        """Paths are relative to where the server is started, but other processes read them."""
        if isinstance(paths, tuple):
            return tuple(path.expanduser().absolute() for path in paths)
        return paths and paths.expanduser().absolute()

    @field_validator("adapter_prefixes")
    @classmethod
    def _check_prefixes(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            Location.parse(prefix)
        return prefixes

    @property
    def store_dir(self) -> Path:
        """The folder of artifacts and state."""
        return self.store if self.store is not None else self.bundles[0] / ".choir"

    @property
    def logs(self) -> LogSettings:
        """Where the server logs, and how."""
        folder = self.log_dir if self.log_dir is not None else self.store_dir / "logs"
        return LogSettings(folder, self.log_level, self.log_format)

    def sealed(self) -> "Settings":
        """Returns the settings with hashes of tokens instead of secrets, to pass to other processes."""
        admin, inference = RESERVED
        given = [(admin, "admin", self.admin_token)]
        given += [(inference, "predict", token) for token in self.inference_tokens]
        tokens = [
            Token.model_validate(
                {"name": name, "role": role, "sha256": hashed(secret.get_secret_value())}
            )
            for name, role, secret in given
            if secret is not None
        ]
        plain = {"admin_token": None, "inference_tokens": ()}
        return self.model_copy(update=plain | {"tokens": (*tokens, *self.tokens)})

    @property
    def max_lora_rank(self) -> int:
        """The largest rank of a LoRA that the engine takes."""
        rank: int = self.engine.get("max_lora_rank", DEFAULT_RANK_LIMIT)
        return rank

    @property
    def sequences(self) -> int:
        """How many member sequences an engine runs at once."""
        most: int | None = self.engine.get("max_num_seqs")
        return most or DEFAULT_SEQUENCES

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    def of_pool(self, name: str) -> "Settings":
        """Returns the settings of one pool's engines. Raises ValidationError."""
        own = self.pools.get(name)
        if own is None:
            return self
        given = {key: value for key, value in own if value is not None and key != "engine"}
        merged = dict(self) | given | {"engine": self.engine | own.engine, "pools": {}}
        return Settings.model_validate(merged)

    def slots(self, distinct_adapters: int) -> int:
        """Returns how many distinct LoRAs an engine holds at once if it starts with `distinct_adapters` of any kind."""
        given: int | None = self.engine.get("max_loras", self.adapter_slots)
        return 2 * distinct_adapters + 1 if given is None else given

    def loadable(self, slots: int) -> int:
        """Returns how many distinct LoRAs an engine with these slots keeps loaded, in slots or in host memory."""
        return max(slots, self.host_adapters or 0)

    @field_validator("tokens")
    @classmethod
    def _check_tokens(cls, tokens: tuple[Token, ...]) -> tuple[Token, ...]:
        names = [token.name for token in tokens]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the name {min(twice)!r} is given twice")
        if taken := {name for name in names if name in RESERVED}:
            raise ValueError(
                f"the name {min(taken)!r} is reserved for a token that has none (CHOIR_ADMIN_TOKEN, "
                "CHOIR_INFERENCE_TOKENS): choose another"
            )
        return tokens

    @model_validator(mode="after")
    def _check_host(self) -> Self:
        administered = self.admin_token or any(token.role == "admin" for token in self.tokens)
        if not self.loopback and not administered and not self.insecure:
            raise ValueError(
                f"the host {self.host} can be reached from other machines, and there is no admin "
                "token: set CHOIR_ADMIN_TOKEN, or give --insecure"
            )
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        slots, rank = self.engine.get("max_loras"), self.max_lora_rank
        if slots is not None and (type(slots) is not int or slots < 1):
            raise ValueError(f"'max_loras' must be a whole number of at least 1, not {slots!r}")
        if slots is not None and self.adapter_slots not in (None, slots):
            raise ValueError(
                f"'max_loras' {slots} and 'adapter_slots' {self.adapter_slots} are the same "
                "setting: give one of them"
            )
        if rank not in RANK_LIMITS:
            allowed = ", ".join(map(str, RANK_LIMITS))
            raise ValueError(f"'max_lora_rank' must be one of {allowed}, not {rank!r}")
        return self

    @model_validator(mode="after")
    def _check_pools(self) -> Self:
        for name in self.pools:
            try:
                self.of_pool(name)
            except ValidationError as error:
                raise ValueError(f"'pools' {name!r}: {explain(error)}") from error
        return self


def forget_secrets() -> None:
    """Removes secrets from this process's environment, so that its child processes do not inherit them."""
    for name, field in Settings.model_fields.items():
        if "SecretStr" in str(field.annotation):
            os.environ.pop(ENV_PREFIX + name.upper(), None)


def is_loopback(host: str) -> bool:
    """Returns whether `host` is a loopback address, or `localhost`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
