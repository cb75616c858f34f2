"""What a gateway is told: by a JSON file, and by the environment, which wins.

    GATEWAY_TRACKS='{"blue": ["http://127.0.0.1:8000"]}' GATEWAY_MODEL=chat serving gateway
    GATEWAY_TIMEOUTS__IDLE_S=20 serving gateway --config settings.json

Secrets (the Redis password, hashes of API keys) belong in the environment or in a mounted file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from serving.errors import InputError
from serving.gateway.spec import GatewaySpec
from serving.values import one_line

Address = Annotated[str, Field(pattern=r"^(dns\+)?https?://[^/\s]+$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Group):
    """What one client may ask for."""

    body_bytes: int = Field(1_000_000, ge=1_000)
    requests_per_minute: int | None = Field(None, ge=1)
    """Of one tenant, over all gateways that share a Redis; None is no limit."""
    websockets: int = Field(20_000, ge=1)
    """Open at one gateway."""


class Timeouts(_Group):
    """How long is waited, and for what."""

    connect_s: float = Field(2.0, gt=0)
    first_byte_s: float = Field(60.0, gt=0)
    """From sending a request to a replica to the first byte of its answer."""
    idle_s: float = Field(30.0, gt=0)
    """Between two pieces of an answer."""
    total_s: float = Field(600.0, gt=0)
    redis_s: float = Field(0.25, gt=0)
    drain_delay_s: float = Field(0.0, ge=0)
    """After SIGTERM it still takes requests for so long, for load balancers that learn late."""
    drain_s: float = Field(60.0, ge=0)
    """Then streams may take so long to end."""


class Health(_Group):
    """When a replica is sent requests."""

    every_s: float = Field(2.0, gt=0)
    resolve_s: float = Field(5.0, gt=0)
    """How often the names of `dns+http://` are looked up."""
    breaker_failures: int = Field(5, ge=1)
    """Failures in a row after which a replica is left alone."""
    breaker_s: float = Field(5.0, gt=0)
    """For so long, then one request tries it."""
    warm_up_tokens: int = Field(2, ge=1)
    """Of the answer that a replica must have given before it is sent any request."""
    warm_up_s: float = Field(120.0, gt=0)


class Context(_Group):
    """Conversations that are remembered."""

    ttl_s: int = Field(86_400, ge=1)
    """Since the last turn."""
    budget_tokens: int = Field(2_048, ge=1)
    """Of the turns before, oldest ones dropped first; the system message is no turn."""
    max_turns: int = Field(64, ge=1)


class KnowledgeBase(_Group):
    """Where passages are looked up."""

    uri: str
    """A file (Milvus Lite) or the address of a Milvus server."""
    embeddings: str | None = None
    """Address of an OpenAI-compatible /v1/embeddings; None embeds in this process."""
    embedding_model: str | None = None
    embedding_key: str | None = None
    """API key for that address."""
    top_k: int = Field(3, ge=1, le=50)
    min_score: float = Field(0.25, ge=-1, le=1)
    timeout_s: float = Field(1.0, gt=0)
    always: bool = True
    """Also for requests that do not say `"knowledge": true`."""


class Settings(BaseSettings):
    """Everything that a gateway is told."""

    model_config = SettingsConfigDict(
        env_prefix="GATEWAY_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    model: str = Field(min_length=1)
    """The name by which clients and replicas know the model."""
    revision: str = ""
    """Of the model; answers of another revision are not served from the cache."""
    tracks: dict[str, tuple[Address, ...]]
    """Replicas by track. `dns+http://name:8000` is every address of the name."""
    stable: str | None = None
    """The track that takes all traffic as long as no rollout has said otherwise; else the first."""
    spec: GatewaySpec = GatewaySpec()
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    redis_url: str | None = None
    """Where state lives that gateways share; None keeps it in this process."""
    state_file: Path | None = None
    """Where a rollout is remembered without Redis."""
    api_keys: dict[str, tuple[Digest, ...]] = Field(default_factory=dict)
    """SHA-256 of the keys of each tenant; `serving keys new` makes one."""
    api_keys_file: Path | None = None
    """The same as JSON."""
    anonymous: bool = False
    """Answer without a key."""
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    context: Context = Context()
    knowledge: KnowledgeBase | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_prompts: bool = False
    log_key: str = Field("", max_length=64)
    """A secret for the hashes of users and tenants in the log; without it they can be guessed."""

    @field_validator("tracks")
    @classmethod
    def _serves(cls, tracks: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if not tracks or not any(tracks.values()):
            raise ValueError('must name a replica, as in {"blue": ["http://127.0.0.1:8000"]}')
        return tracks

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.stable is not None and self.stable not in self.tracks:
            raise ValueError(f"stable(={self.stable!r}) must be one of {sorted(self.tracks)}")
        has_keys = bool(self.api_keys) or self.api_keys_file is not None
        if not has_keys and not self.anonymous and self.host not in LOOPBACK:
            raise ValueError(
                f"host(={self.host!r}) answers everybody: give api_keys, or say anonymous"
            )
        return self

    @property
    def first_stable(self) -> str:
        """The stable track of a gateway that knows of no rollout."""
        return self.stable or next(iter(self.tracks))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line, then the environment, then the file."""
        return init_settings, env_settings, JsonConfigSettingsSource(settings_cls)


def load(config: Path | None = None, **given: Any) -> Settings:
    """Settings of a file, the environment and what is given, the last winning.

    Raises:  InputError: no such file, or a value that cannot work.
    """
    if config is not None and not config.is_file():
        raise InputError(f"config(={str(config)!r}) is no file", remedy="Check the path.")

    class Here(Settings):
        model_config = SettingsConfigDict(json_file=config, title="all of them")

    try:
        return Here(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise InputError(
            f"gateway settings: {one_line(error)}", remedy="See `serving gateway --help`."
        ) from error
    except ValueError as error:
        raise InputError(f"{config} is not JSON ({error})", remedy="Mend the file.") from error
