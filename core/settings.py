"""Every setting of the platform, one class per system, read from the environment on request.

A *profile* is nothing but a set of these values: the launcher writes them for the processes it
starts, an installation on many hosts writes them itself. Nothing is read at import, and only this
module and the launcher know that profiles exist. `.env.example` and `docs/settings.md` are
generated from the field descriptions below (`make docs`).
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

KNOWN_DEFAULTS = frozenset({"", "password", "postgres", "minioadmin", "changeme", "secret", "admin", "guest"})
"""Values that vendors ship. A service refuses to start with one of them as a secret."""


class Settings(BaseSettings):
    """Base of all settings classes: unknown variables are ignored, values are immutable."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", frozen=True, extra="ignore")
    title: ClassVar[str] = ""


class DatabaseSettings(Settings):
    """PostgreSQL: one database, three roles, and a read replica."""

    title: ClassVar[str] = "PostgreSQL"
    database_url: str = Field(
        description="Primary without credentials, `postgresql://host:port/name`. Several hosts may be given, comma separated."
    )
    database_replica_url: str | None = Field(
        default=None, description="Streaming replica for reads that may be stale; the primary where empty."
    )
    database_owner_password: SecretStr | None = Field(
        default=None, description="Password of role `hr_owner`: migrations need it, no service does."
    )
    database_app_password: SecretStr = Field(
        description="Password of role `hr_app` (row-level security forced)."
    )
    database_system_password: SecretStr = Field(
        description="Password of role `hr_system` (relay, workers and assets: named policies on listed tables)."
    )
    database_pool_size: int = Field(
        default=5, ge=1, le=100, description="Connections a process keeps per role and host."
    )

    @field_validator("database_owner_password", "database_app_password", "database_system_password")
    @classmethod
    def _no_known_default(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else refuse_known_default(value)


class EventLogSettings(Settings):
    """The event log: Apache Kafka, or tables in PostgreSQL."""

    title: ClassVar[str] = "Event log"
    eventlog_url: str = Field(
        description="`kafka://host:port[,host:port]` for Apache Kafka, `postgresql:` for the tables of the database above."
    )


class QueueSettings(Settings):
    """The work queue: RabbitMQ, or tables in PostgreSQL."""

    title: ClassVar[str] = "Work queue"
    queue_url: str = Field(
        default="postgresql:",
        description="`amqp://host:port[,host:port]/vhost` for RabbitMQ, `postgresql:` for the tables of the database above.",
    )
    queue_user: str = Field(default="", description="RabbitMQ user.")
    queue_password: SecretStr | None = Field(default=None, description="RabbitMQ password.")

    @field_validator("queue_password")
    @classmethod
    def _no_known_default(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else refuse_known_default(value)


class VectorSettings(Settings):
    """The vector store: Milvus or its embedded server."""

    title: ClassVar[str] = "Vectors"
    vectors_url: str = Field(
        default="http://127.0.0.1:7630", description="Milvus (`https://` with TLS) or `milvus-lite server`."
    )
    vectors_token: SecretStr | None = Field(default=None, description="Milvus token, `user:password`.")
    embedding_model: str = Field(
        default="e5", description="`e5` (multilingual-e5-small, local), or `hash` (tests: no meaning)."
    )


class ObjectSettings(Settings):
    """The object store: any S3, or a local folder."""

    title: ClassVar[str] = "Objects"
    objects_url: str = Field(
        description="`s3://host:port` (`s3s://` with TLS) for any S3, `file:///folder` for a local folder."
    )
    objects_access_key: SecretStr | None = Field(default=None, description="S3 access key.")
    objects_secret_key: SecretStr | None = Field(default=None, description="S3 secret key.")
    objects_region: str = Field(default="us-east-1", description="S3 region.")
    objects_bucket_prefix: str = Field(
        default="headrace-", description="Put before each bucket name on a shared S3."
    )

    @field_validator("objects_secret_key")
    @classmethod
    def _no_known_default(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else refuse_known_default(value)


class CacheSettings(Settings):
    """Redis or Valkey: caches and rate counters, never truth."""

    title: ClassVar[str] = "Cache"
    cache_url: str = Field(
        description="`redis://host:port/0`, or `redis+sentinel://host:port[,host:port]/name` for sentinels."
    )
    cache_password: SecretStr = Field(description="Password of the cache server.")

    @field_validator("cache_password")
    @classmethod
    def _no_known_default(cls, value: SecretStr) -> SecretStr:
        return refuse_known_default(value)


class SecuritySettings(Settings):
    """Keys of the platform. The launcher generates them at the first start (files of mode 0600)."""

    title: ClassVar[str] = "Security"
    internal_key: SecretStr = Field(
        description="32 random bytes, hex: signs the principal that the gateway hands to the services."
    )
    field_key: SecretStr = Field(
        description="`<version>:<32 bytes hex>[,…]`: encrypts fields at rest; the first entry encrypts, all decrypt."
    )
    jwt_private_key_file: Path | None = Field(
        default=None, description="PEM file of the Ed25519 key that signs access tokens (users service only)."
    )

    @field_validator("internal_key", "field_key")
    @classmethod
    def _no_known_default(cls, value: SecretStr) -> SecretStr:
        return refuse_known_default(value)


class ServiceSettings(Settings):
    """Where the services listen and how they find each other."""

    title: ClassVar[str] = "Services"
    host: str = Field(
        default="127.0.0.1", description="Address to listen on; loopback unless you say otherwise."
    )
    port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port of this one service; its usual port + base where empty.",
    )
    port_base: int = Field(
        default=0, ge=0, le=57000, description="Added to every usual port (gateway 8080, users 8001, …)."
    )
    gateway_url: str = Field(default="http://127.0.0.1:8080", description="Public address of the API.")
    users_url: str = Field(default="http://127.0.0.1:8001", description="Address of the users service.")
    billing_url: str = Field(default="http://127.0.0.1:8005", description="Address of the billing service.")
    agents_url: str = Field(default="http://127.0.0.1:8002", description="Address of the agents service.")
    lookup_url: str = Field(
        default="http://127.0.0.1:8011", description="Address of the lookup, which reads the lake."
    )
    relay_url: str = Field(default="http://127.0.0.1:8009", description="Address of the relay service.")
    memory_url: str = Field(default="http://127.0.0.1:8004", description="Address of the memory service.")
    memory_grpc: str = Field(default="127.0.0.1:8014", description="gRPC address of the memory service.")
    ws_url: str = Field(
        default="http://127.0.0.1:8081", description="Public address of the WebSocket gateway."
    )
    extractive_url: str = Field(
        default="http://127.0.0.1:8010",
        description="Address of `local-extractive`, the offline answer server.",
    )
    extractive_word_ms: int = Field(
        default=5,
        ge=0,
        le=10_000,
        description="Milliseconds between two words that `local-extractive` streams.",
    )
    web_url: str = Field(default="http://127.0.0.1:3000", description="Public address of the web pages.")
    replicas: str = Field(
        default="",
        description="Further instances, `agents=http://host:8102,http://host:8202;ws=…`: calls are spread over them and the address above.",
    )
    log_level: str = Field(default="info", description="debug, info, warn, error or fatal.")
    spool_dir: Path = Field(
        default=Path("spool"), description="Folder of the gateway's request meter: counted before it is sent."
    )

    def addresses(self, service: str) -> tuple[str, ...]:
        """Every instance of a service, the one of its own setting first (`agents` of HEADRACE_AGENTS_URL).

        Raises:
            ValueError: for a HEADRACE_REPLICAS that cannot be read.
        """
        found = [str(getattr(self, f"{service}_url"))]
        for entry in filter(None, self.replicas.split(";")):
            name, equals, addresses = entry.partition("=")
            if not equals:
                raise ValueError(f"HEADRACE_REPLICAS: {entry!r} is not of the form name=url,url")
            if name.strip() == service:
                found += [address.strip() for address in addresses.split(",") if address.strip()]
        return tuple(found)


class ProviderSettings(Settings):
    """Providers of language models that the whole platform may use; tenants add their own by REST."""

    title: ClassVar[str] = "Model providers"
    providers: SecretStr | None = Field(
        default=None,
        description='JSON list, each `{"name", "kind": "openai"|"anthropic", "base_url", "api_key", "models": […], "prices": {model: {"input", "output", "cached"}}}` (prices in the price book\'s currency for a million tokens, as text). `local` is always there.',
    )
    providers_file: Path | None = Field(
        default=None, description="The same as a TOML file, one `[[provider]]` each; both may be given."
    )
    provider_hosts: str = Field(
        default="",
        description="Hosts (`host` or `host:port`, comma separated) that tenants' providers may use although they are private or without TLS.",
    )
    provider_connect_seconds: float = Field(
        default=5, gt=0, le=60, description="Patience for a connection to a provider."
    )
    provider_idle_seconds: float = Field(
        default=60, gt=0, le=600, description="Patience between two pieces of a provider's answer."
    )


class BillingSettings(Settings):
    """Bounds of the billing service and where its prices are declared."""

    title: ClassVar[str] = "Billing"
    prices_file: Path = Field(
        default=Path(__file__).parents[1] / "deploy" / "prices.toml",
        description="The price book; what the database never had of it is recorded at each start of billing.",
    )
    usage_requests_in_flight: int = Field(
        default=16, ge=1, le=1000, description="Batches of usage taken in at once; more are answered 429."
    )
    usage_max_backlog: int = Field(
        default=200_000,
        ge=1,
        description="Records that may wait in the outbox; above it batches of usage are answered 429.",
    )
    usage_tail_records: int = Field(
        default=1_000_000,
        ge=10_000,
        description="Records behind the published cells that live quota keeps (about 100 bytes each).",
    )


class UsageSettings(Settings):
    """When records of usage leave the event log for good."""

    title: ClassVar[str] = "Usage"
    usage_purge_lag_hours: float = Field(
        default=24,
        ge=0,
        description="Records stay in `usage.records` at least so long after they were published, proven or not.",
    )
    usage_purge_records: int = Field(
        default=5_000_000,
        ge=1,
        description="About so many records are proven and purged by one run; it bounds its time, not its memory.",
    )
    usage_scrub_mb: int = Field(
        default=2_048,
        ge=1,
        description="So many megabytes of usage facts are read again and compared with their hashes by one hourly run.",
    )


class WsSettings(Settings):
    """Bounds of the WebSocket gateway."""

    title: ClassVar[str] = "WebSocket gateway"
    ws_origins: str = Field(
        default="",
        description="Origins of pages that may connect, separated by commas; those of the web pages and of the gateway where empty.",
    )
    ws_heartbeat_seconds: float = Field(
        default=15.0,
        ge=0.2,
        le=300,
        description="A silent client is asked after so long, and closed after 2.5 times it.",
    )
    ws_queue_bytes: int = Field(
        default=1_048_576,
        ge=16_384,
        description="What may wait for one slow client; above it the client is told to subscribe again.",
    )
    ws_slow_seconds: float = Field(
        default=15.0, ge=0.2, description="A client that takes nothing for so long is closed with 4008."
    )
    ws_ring_bytes: int = Field(
        default=67_108_864,
        ge=65_536,
        description="Memory for the newest events; what is older is read from the log.",
    )


class AgentSettings(Settings):
    """How much an instance of the agents service takes on, and when others take it over."""

    title: ClassVar[str] = "Agents"
    agent_runs: int = Field(default=24, ge=1, le=1000, description="Runs that one instance executes at once.")
    agent_lease_seconds: float = Field(
        default=6.0,
        ge=0.5,
        le=60,
        description="An instance that is silent for so long loses its runs to others.",
    )
    usage_spool_dir: Path = Field(
        default=Path("usage-spool"),
        description="Folder on a local disk where calls of `/v1` are metered before they are answered; give it a volume.",
    )
    agent_poll_seconds: float = Field(
        default=2.0, ge=0.1, le=60, description="How often an instance looks for runs without being woken."
    )
    agent_heartbeat_seconds: float = Field(
        default=15.0,
        ge=0.05,
        le=30,  # the gateway takes an answer for dead that is silent for 60 s
        description="Seconds between the comments by which a stream without events shows that it lives.",
    )


class MemorySettings(Settings):
    """Bounds of the memory service."""

    title: ClassVar[str] = "Memory"
    upload_max_bytes: int = Field(
        default=256 << 20, ge=1, description="Largest document, in bytes; larger uploads are answered 413."
    )


class PagesSettings(Settings):
    """What the web pages and the gateway have in common."""

    title: ClassVar[str] = "Pages and gateway"
    pages_key: SecretStr = Field(
        description="32 random bytes, hex: signs the address of a browser that the pages hand to the gateway, which counts attempts by it."
    )

    @field_validator("pages_key")
    @classmethod
    def _no_known_default(cls, value: SecretStr) -> SecretStr:
        return refuse_known_default(value)


class WebSettings(Settings):
    """The web pages. Beside the one they share with the gateway they hold no other key of the platform."""

    title: ClassVar[str] = "Web"
    web_key: SecretStr = Field(
        description="32 random bytes, hex: seals the cookies in which browsers keep their sessions."
    )

    @field_validator("web_key")
    @classmethod
    def _no_known_default(cls, value: SecretStr) -> SecretStr:
        return refuse_known_default(value)


class OwnerSettings(Settings):
    """The first account. Read only while no account exists."""

    title: ClassVar[str] = "Owner"
    owner_email: str = Field(
        default="owner@localhost.localdomain", description="E-mail of the owner account."
    )
    owner_password: SecretStr | None = Field(
        default=None, description="Its first password; generated by the launcher."
    )


class AccountSettings(Settings):
    """How people come to accounts, and where their mails go."""

    title: ClassVar[str] = "Accounts"
    registration: Literal["open", "closed"] = Field(
        default="open",
        description="`open`: anybody may register; `closed`: accounts come by invitation only.",
    )
    mail_dir: Path = Field(
        default=Path("mail"),
        description="Folder where mails are put as files, until a service for notifications sends them.",
    )


class DataSettings(Settings):
    """Folders of one installation that hold rebuildable state."""

    title: ClassVar[str] = "Data"
    state_dir: Path = Field(description="Rebuildable local state: identity index, embedding model.")


ALL: tuple[type[Settings], ...] = (
    DatabaseSettings,
    EventLogSettings,
    QueueSettings,
    VectorSettings,
    ObjectSettings,
    CacheSettings,
    SecuritySettings,
    ServiceSettings,
    ProviderSettings,
    AgentSettings,
    BillingSettings,
    UsageSettings,
    WsSettings,
    MemorySettings,
    PagesSettings,
    WebSettings,
    OwnerSettings,
    AccountSettings,
    DataSettings,
)


def refuse_known_default(value: SecretStr) -> SecretStr:
    """Return `value` unless it is a password that vendors ship.

    Raises:
        ValueError: with what to do, never with the value itself.
    """
    if value.get_secret_value().strip().lower() in KNOWN_DEFAULTS:
        raise ValueError("is a known default; generate one, for example with `openssl rand -hex 32`")
    return value
