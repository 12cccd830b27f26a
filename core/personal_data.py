"""The data map: every place where the platform keeps data, and what it holds of people.

For each place: whether personal data is in it, which key names the person, how that is located,
exported and erased, and which retention rule ends it. A test reads the live database, the topology,
the contracts, the lake's schemas and the cache's key families, and fails on anything missing here.

Facts that are never rewritten hold pseudonymous ids only (law 10): erasing the row that says who is
behind an id (`person`) makes them anonymous.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from core.retention import RULES


class Kind(StrEnum):
    TABLE = "table"
    TOPIC = "topic"
    QUEUE = "queue"
    BUCKET = "bucket"
    DELTA = "delta"
    CACHE = "cache"
    FOLDER = "folder"


class Erasure(StrEnum):
    """How a person's data leaves a place."""

    NONE = "none"
    """Nothing of a person is there."""
    DELETE = "delete"
    """The rows go."""
    UNLINK = "unlink"
    """A pseudonymous id stays and names nobody any more, once `person` is deleted."""
    SHRED = "shred"
    """Ciphertext stays; the subject's key goes."""
    EXPIRE = "expire"
    """It goes by its retention rule, within days; nothing can rewrite it."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A group of columns or fields of one place that are treated alike."""

    kind: Kind
    place: str
    parts: tuple[str, ...]
    """Columns or fields; `*` for all of a place whose content has no fixed fields."""
    content: str
    erasure: Erasure = Erasure.NONE
    subject: str = ""
    """What names the person: a column, a field, or how to come to one."""
    export: str = ""
    """How a person's part is exported."""
    retention: str = ""
    """A rule of `core.retention`."""

    @property
    def personal(self) -> bool:
        return self.erasure is not Erasure.NONE

    def __post_init__(self) -> None:
        if self.personal and not (self.subject and self.export and self.retention in RULES):
            raise ValueError(f"{self.place}: personal data needs a subject, an export and a retention rule")


ALL: Final = ("*",)
_ROWS: Final = "rows as JSON"
_NOT: Final = "not exported: the person's id in other people's records"


def _table(place: str, parts: str, content: str, *personal: str, erasure: Erasure = Erasure.NONE) -> Holding:
    subject, export, retention = personal or ("", "", "")
    return Holding(Kind.TABLE, place, tuple(parts.split()), content, erasure, subject, export, retention)


def _tables() -> Iterable[Holding]:
    t, delete, unlink, expire = _table, Erasure.DELETE, Erasure.UNLINK, Erasure.EXPIRE
    yield t("public.alembic_version", "version_num", "schema revision")
    yield t("public.plan", "code name audit_retention_days usage_retention_days requests_per_minute", "plans")
    yield t("public.organisation", "id plan created_at", "tenants and their plan")
    yield t("public.organisation", "slug name", "names, which may be a person's", "membership.person_id of the owner",
            _ROWS, "account", erasure=delete)  # fmt: skip
    yield t("public.person", "id email name password_hash platform_owner created_at password_changed_at", "who is behind an id",
            "id, or email", "rows as JSON without password_hash", "account", erasure=delete)  # fmt: skip
    yield t("public.membership", "tenant_id person_id role created_at", "who belongs to which organisation",
            "person_id", _ROWS, "account", erasure=delete)  # fmt: skip
    yield from _accounts()
    yield from _evidence()
    yield t("public.api_key", "tenant_id id public_id key_sha256 scopes created_at expires_at revoked_at rotated_to",
            "keys of organisations")  # fmt: skip
    yield t("public.api_key", "name created_by", "who made a key, and how it was called", "created_by", _ROWS, "account",
            erasure=unlink)  # fmt: skip
    for table, more in (("outbox", ""), ("outbox_dead", " died_at code reason")):
        yield t(f"public.{table}", "id tenant_id topic enqueued_at" + more, "records on their way to the log")
        yield t(f"public.{table}", "key value headers", "content of those records", "as in their topic",
                "as in their topic", "transit", erasure=expire)  # fmt: skip
    for table, more in (("queue_outbox", ""), ("queue_outbox_dead", " died_at code reason")):
        yield t(
            f"public.{table}",
            "id tenant_id family message_id enqueued_at" + more,
            "messages on their way to a queue",
        )
        yield t(f"public.{table}", "routing_key body headers", "content of those messages",
                "as in their queue", "as in their queue", "transit", erasure=expire)  # fmt: skip
    yield t("queue.exchange", "name kind", "exchanges")
    yield t("queue.queue", "name ttl dead_letter single_active holder holder_until alive_until", "queues")
    yield t("queue.binding", "exchange routing_key queue pattern", "bindings of queues")
    yield t("queue.message", "id queue message_id queued_at visible_at expires_at lease deliveries",
            "messages that wait")  # fmt: skip
    yield t("queue.message", "routing_key body headers", "content of those messages",
            "as in their queue", "as in their queue", "transit", erasure=expire)  # fmt: skip
    yield t(
        "public.event_skipped",
        "consumer topic partition log_offset appended_at code reason skipped_at",
        "positions of records that were left out",
    )
    yield t("public.inbox", "tenant_id consumer message_id received_at", "messages already handled")
    yield t(
        "public.idempotency_key", "tenant_id key_sha256 request_sha256 status created_at", "repeated requests"
    )
    yield t("public.idempotency_key", "scope body", "caller and answer of a request", "key or user id in scope", _NOT,
            "idempotency", erasure=expire)  # fmt: skip
    yield t("public.object_bucket", "name versioned", "buckets")
    yield t("public.object_version", "bucket key version sequence latest deleted size sha256 blob created_at",
            "index of objects; keys are ids")  # fmt: skip
    yield t("eventlog.topic", "ref name id partitions retention_ms max_record_bytes created_at", "topics")
    yield t("eventlog.partition", "topic_ref partition low high last_ms", "watermarks")
    yield t("eventlog.record", "topic_ref partition off ms", "positions of records")
    yield t("eventlog.record", "key value headers", "content of records", "as in their topic", "as in their topic",
            "topic.audit.logs", erasure=expire)  # fmt: skip
    yield t("eventlog.consumer_group", "name generation", "consumer groups")
    yield t("eventlog.group_member", "group_name member topics expires_at", "processes that consume")
    yield t("eventlog.group_partition", "group_name topic_ref partition member epoch next_off committed_at",
            "positions of groups")  # fmt: skip
    yield from _usage()
    yield from _invoices()
    yield t("public.knowledge_base", "tenant_id id created_at deleted_at", "folders of documents")
    yield t("public.knowledge_base", "slug name created_by", "how it is called, and who made it", "created_by", _ROWS,
            "account", erasure=unlink)  # fmt: skip
    yield t("public.document", "tenant_id id knowledge_base_id kind live_version last_version created_at deleted_at erased_at",
            "documents and which version is visible")  # fmt: skip
    yield t("public.document", "user_id name created_by", "whose memory or document it is, and its name",
            "user_id of a memory, else created_by", _ROWS, "account", erasure=delete)  # fmt: skip
    yield t("public.document_version",
            "tenant_id document_id version media_type size sha256 object_key object_version state stage_at attempt "
            "next_attempt_at pages characters chunks text_key created_at", "versions and how far each is")  # fmt: skip
    yield t("public.document_version", "created_by reason", "who stored it, and what its content was refused for",
            "created_by", _ROWS, "account", erasure=delete)  # fmt: skip
    yield t("public.memory_turn", "tenant_id run_id conversation_id created_at", "runs that have not ended")
    yield t("public.memory_turn", "user_id question answer", "what was asked and answered so far", "user_id", _ROWS,
            "transit", erasure=delete)  # fmt: skip
    yield t("public.provider", "tenant_id id name kind base_url api_key models prices created_at updated_at",
            "a tenant's providers of models; keys as ciphertext")  # fmt: skip
    yield t("public.provider", "created_by", "who added it", "created_by", _NOT, "account", erasure=unlink)
    yield t("public.price", "id revision tenant_id meter dimensions unit_price per currency valid_from valid_to recorded_at "
            "model tiers included minimum", "price book")  # fmt: skip

    yield from _conversations()


def _conversations() -> Iterable[Holding]:
    t, delete, unlink = _table, Erasure.DELETE, Erasure.UNLINK
    yield t("public.agent", "tenant_id id slug name description revision latest_version published_version created_at "
            "updated_at", "agents of a tenant")  # fmt: skip
    yield t("public.agent", "created_by", "who made it", "created_by", _NOT, "account", erasure=unlink)
    yield t(
        "public.agent_version",
        "tenant_id agent_id version spec created_at",
        "what each version of an agent is",
    )
    yield t(
        "public.agent_version", "created_by", "who made it", "created_by", _NOT, "account", erasure=unlink
    )
    yield t("public.conversation", "tenant_id id agent_id user_id title opened_by turns metadata created_at updated_at",
            "conversations", "user_id", _ROWS, "conversation", erasure=delete)  # fmt: skip
    yield t("public.message", "tenant_id id conversation_id run_id turn place role text citations client_msg_id created_at",
            "what was said", "user_id of the conversation", _ROWS, "conversation", erasure=delete)  # fmt: skip
    yield t("public.run",
            "tenant_id id sequence conversation_id turn user_id agent_id agent_version spec metadata traceparent status epoch "
            "owner lease_until stalls last_seq safe_seq steps cancel_by created_at started_at ended_at waiting_since waited message_id "
            "input_tokens output_tokens cached_tokens reasoning_tokens requests tool_calls error_code error_message retryable provider event_partition "
            "first_offset last_offset", "runs that answered", "user_id", _ROWS, "conversation", erasure=delete)  # fmt: skip
    yield t("public.approval",
            "tenant_id run_id call round tool arguments reason requested_at expires_at decision decided_by note decided_at",
            "calls of tools that a person was asked about, and what they decided", "user_id of the run, and decided_by",
            _ROWS, "conversation", erasure=delete)  # fmt: skip
    yield t("public.checkpoint", "tenant_id run_id step kind payload epoch created_at",
            "steps of a run: prompts, replies, tool results", "user_id of the run", _NOT, "conversation",
            erasure=delete)  # fmt: skip


def _usage() -> Iterable[Holding]:
    t, unlink = _table, Erasure.UNLINK
    yield t("public.usage_cell", "tenant_id grain meter period_start dimensions dimensions_key quantity events lake_version",
            "published sums of a tenant")  # fmt: skip
    yield t("public.usage_element", "tenant_id meter period_start dimensions dimensions_key quantity events lake_version",
            "what cells of meters that cannot be added up consist of")  # fmt: skip
    yield t("public.usage_element", "element", "of a unique count: pseudonymous ids of the tenant's own customers", "element",
            _ROWS, "usage", erasure=unlink)  # fmt: skip
    yield t("public.usage_conservation",
            "tenant_id topic_id partition block landed counted duplicates quarantined rejected voids checkpoints lake_version",
            "fates of records")  # fmt: skip
    yield t("public.usage_quarantine",
            "tenant_id id fate code kind received slice topic_id partition log_offset bytes lake_version state decided_at sent",
            "records that were not counted, and why")  # fmt: skip
    yield t("public.usage_replacement", "tenant_id created_at", "which event takes the place of which")
    yield t("public.usage_replacement", "source event_id by_source by_id by_subject",
            "pseudonymous ids of the tenant's own customers and systems", "by_subject", _ROWS, "usage",
            erasure=unlink)  # fmt: skip
    yield t("public.usage_producer", "tenant_id id last_sequence first_received last_received last_slice",
            "what producers sent last")  # fmt: skip
    yield t("public.usage_producer_slice", "tenant_id slice first_sequence last_sequence received",
            "where records stand that no checkpoint claims yet")  # fmt: skip
    yield t("public.usage_checkpoint",
            "tenant_id id first_sequence last_sequence hash received slice slices due state missing doubled repeated "
            "missing_events named named_at closed_at", "what producers said they sent, and what of it landed")  # fmt: skip
    for table in ("usage_producer", "usage_producer_slice", "usage_checkpoint"):
        yield t(f"public.{table}", "producer incarnation", "pseudonymous ids of the tenant's own systems", "producer",
                _ROWS, "usage", erasure=unlink)  # fmt: skip
    yield t("public.usage_reconciled", "table_id slice", "up to where producers were reconciled")
    yield t("public.usage_quarantine", "source event_id version counted",
            "what they said: pseudonymous ids of the tenant's own customers and systems",
            "subject in version and counted", _ROWS, "usage", erasure=unlink)  # fmt: skip
    yield t(
        "public.usage_quarantine", "decided_by", "who decided", "decided_by", _NOT, "book", erasure=unlink
    )
    yield t(
        "public.usage_watermark",
        "topic_id partition next_offset lake_version published_at",
        "published up to where",
    )
    yield t(
        "public.usage_publication",
        "lake_version slice code_version published_at generation offsets",
        "publications",
    )
    yield t(
        "public.usage_import", "tenant_id id source period_start period_end created_at", "declared imports"
    )
    yield t(
        "public.usage_import", "created_by", "who declared it", "created_by", _NOT, "book", erasure=unlink
    )


def _evidence() -> Iterable[Holding]:
    t, unlink = _table, Erasure.UNLINK
    yield t("public.usage_object",
            "generation path bytes records sha256 first_slice last_slice ranges tenants recorded_at checked_at problem replaced_at",
            "objects of usage_events: hashes, offsets, ids of tenants")  # fmt: skip
    yield t(
        "public.usage_gate",
        "generation first_slice last_slice problems judged_at",
        "slices that are held up before publication",
    )
    yield t("public.usage_hold", "id name partition placed_at lifted_at", "what must not be purged")
    yield t("public.usage_hold", "reason placed_by lifted_by", "who stopped a purge, and why", "placed_by, lifted_by", _ROWS,
            "book", erasure=unlink)  # fmt: skip
    yield t("public.usage_purge",
            "id topic_id partition low_before before_offset proven_offset high evidence intended_at low_after done_at",
            "purges and their evidence")  # fmt: skip
    yield t("public.usage_generation",
            "generation made_from first_slice last_slice code_version price_revision through_slice report begun_at discarded_at",
            "replays and what they would change: ids of tenants, coordinates, sums")  # fmt: skip
    yield t("public.usage_generation", "begun_by decided_by", "who replayed and promoted", "begun_by, decided_by", _NOT,
            "book", erasure=unlink)  # fmt: skip
    yield t("public.usage_promotion", "generation promoted_at", "which generation counts")
    yield t("public.landing_loss", "id topic topic_id partition first_offset end_offset kind accepted_at",
            "records that never landed")  # fmt: skip
    yield t("public.landing_loss", "reason accepted_by", "who accepted it, and why", "accepted_by", _ROWS, "book",
            erasure=unlink)  # fmt: skip


def _invoices() -> Iterable[Holding]:
    t, unlink = _table, Erasure.UNLINK
    yield t("public.invoice_sequence", "tenant_id last", "number given out last")
    yield t("public.invoice",
            "tenant_id number id reason price_fix period_start period_end slice lake_version price_revision code_version generation "
            "currency total document sha256 issued_at", "issued invoices and adjustments: sums of a tenant")  # fmt: skip
    yield t("public.invoice", "issued_by", "who issued it", "issued_by", _NOT, "book", erasure=unlink)
    yield t("public.invoice_copy", "tenant_id number copied_at", "documents that lie in the archive too")
    yield t("public.price_fix",
            "id state price_revision tenants reasons totals items created_at decided_at accepted applied_at",
            "corrected prices over closed periods")  # fmt: skip
    yield t("public.price_fix", "created_by decided_by applied_by", "who looked, decided and applied",
            "created_by, decided_by, applied_by", _NOT, "book", erasure=unlink)  # fmt: skip
    yield t("public.price_fix_item",
            "price_fix tenant_id period_start period_end adjusts from_revision slice lake_version generation currency total reasons "
            "lines unpriced", "what they change: sums of a tenant")  # fmt: skip


def _accounts() -> Iterable[Holding]:
    t, delete, expire = _table, Erasure.DELETE, Erasure.EXPIRE
    yield t("public.registration", "token_sha256 created_at expires_at", "accounts that are not proven yet")
    yield t("public.registration", "email password_hash name organisation_name", "who asked for one", "email",
            "rows as JSON without password_hash", "proof", erasure=expire)  # fmt: skip
    yield t("public.password_reset", "token_sha256 created_at expires_at", "links for a new password")
    yield t("public.password_reset", "person_id", "whose", "person_id", _NOT, "proof", erasure=delete)
    yield t("public.attempt_bucket", "name level at", "counts of attempts under keyed hashes")
    yield t("public.login_session", "tenant_id id generation second_factor created_at used_at expires_at ended_at end_reason",
            "sessions")  # fmt: skip
    yield t("public.login_session", "person_id user_agent", "whose, and with what program", "person_id", _ROWS, "session",
            erasure=delete)  # fmt: skip
    yield t("public.refresh_token", "token_sha256 session_id issued_at used_at", "what continues a session")
    yield t("public.refresh_token", "person_id", "whose", "person_id", _NOT, "session", erasure=delete)
    yield t("public.login_device", "id token_sha256 created_at used_at", "devices that logged in")
    yield t("public.login_device", "person_id", "whose", "person_id", _ROWS, "device", erasure=delete)
    yield t("public.login_place", "used_at", "when somebody logged in from a network")
    yield t("public.login_place", "person_id place", "who, and a keyed hash of the network", "person_id", _ROWS, "device",
            erasure=delete)  # fmt: skip
    yield t("public.person_totp", "created_at confirmed_at last_step", "second factors")
    yield t("public.person_totp", "person_id secret", "whose, and the encrypted secret", "person_id",
            "rows as JSON without secret", "account", erasure=delete)  # fmt: skip
    yield t("public.recovery_code", "code_sha256 used_at", "codes that stand for a second factor")
    yield t("public.recovery_code", "person_id", "whose", "person_id", _NOT, "account", erasure=delete)
    yield t("public.invitation", "tenant_id id role token_sha256 created_at expires_at accepted_at revoked_at",
            "invitations")  # fmt: skip
    yield t("public.invitation", "email invited_by accepted_by", "who was invited, and by whom",
            "email, invited_by, accepted_by", _ROWS, "invitation", erasure=delete)  # fmt: skip


_USAGE_FACTS: Final = (
    "slice topic_id partition offset received tenant identity content meter quantity event_time importid dimensions "
    "kind ref_slice ref_partition ref_offset sequence fate code winner_slice winner_partition winner_offset"
)


def _streams() -> Iterable[Holding]:
    unlink, expire = Erasure.UNLINK, Erasure.EXPIRE

    def topic(
        name: str, parts: str, content: str, erasure: Erasure = Erasure.NONE, subject: str = ""
    ) -> Holding:
        export, rule = ("records as JSON", f"topic.{name}") if subject else ("", "")
        return Holding(Kind.TOPIC, name, tuple(parts.split()), content, erasure, subject, export, rule)

    yield topic(
        "usage.records",
        "id source time tenant data type specversion importid datacontenttype producer incarnation sequence",
        "metered facts",
    )
    yield topic("usage.records", "subject", "pseudonymous id of the tenant's own customer", unlink, "subject")
    yield topic(
        "audit.logs", "id time tenant action outcome schema trace_id detail", "audit facts: ids and codes"
    )
    yield topic("audit.logs", "actor target", "pseudonymous ids", unlink, "actor, target")
    yield topic("audit.logs", "sealed", "ciphertext", Erasure.SHRED, "target")
    yield topic("agent.events", "*", "events of agent runs", expire, "conversation id")
    yield topic("agent.tasks", "*", "tasks of agents", expire, "conversation id")
    yield topic("service.logs", "*", "log lines: ids and numbers")
    for queue, content in (
        ("channel.inbound.{type}", "messages from channels"),
        ("agent.inbound", "messages for agents"),
        ("channel.outbound.{type}", "messages to channels"),
        ("notification.{kind}", "mails and pushes"),
        ("document.index", "documents to index, by id"),
        ("plugin.event", "events for plugins"),
    ):
        yield Holding(Kind.QUEUE, queue, ALL, content, expire, "subject id in the message", _NOT, "transit")


def _lake() -> Iterable[Holding]:
    def delta(place: str, parts: str, content: str, erasure: Erasure = Erasure.NONE, *rest: str) -> Holding:
        subject, export, retention = rest or ("", "", "")
        return Holding(Kind.DELTA, place, tuple(parts.split()), content, erasure, subject, export, retention)

    yield delta("usage_events", _USAGE_FACTS, "one row a record: facts and fate")
    yield delta("usage_events", "subject source event_id data producer incarnation", "pseudonymous ids of the tenant's own customers and systems",
                Erasure.UNLINK, "subject", _ROWS, "usage")  # fmt: skip
    yield delta("usage_events", "raw", "a record that could not be read, as it came", Erasure.EXPIRE,
                "none: unreadable; searched as text", "text around a hit", "usage")  # fmt: skip
    yield delta("audit_events",
                "slice topic_id partition offset received tenant event_id identity content event_time action outcome trace_id "
                "detail fate code winner_slice winner_partition winner_offset", "one row a record: ids and codes")  # fmt: skip
    yield delta(
        "audit_events", "actor target", "pseudonymous ids", Erasure.UNLINK, "actor, target", _ROWS, "audit"
    )
    yield delta("audit_events", "sealed", "ciphertext", Erasure.SHRED, "target", "opened, as JSON", "audit")
    yield delta("audit_events", "raw", "a record that could not be read, as it came", Erasure.EXPIRE,
                "none: unreadable; searched as text", "text around a hit", "audit")  # fmt: skip
    yield delta("usage_hourly",
                "kind since slice topic_id partition tenant meter hour dimensions quantity events landed counted duplicates "
                "quarantined rejected voids checkpoints next_offset", "partial sums of a tenant")  # fmt: skip
    yield delta(
        "usage_daily", "since slice tenant meter day dimensions quantity events", "partial sums of a tenant"
    )
    for table in ("usage_hourly", "usage_daily"):
        yield delta(table, "element", "of a unique count: pseudonymous ids of the tenant's own customers", Erasure.UNLINK,
                    "element", _ROWS, "usage")  # fmt: skip


def _rest() -> Iterable[Holding]:
    yield Holding(Kind.BUCKET, "lake", ALL, "the Delta tables above")
    yield Holding(Kind.BUCKET, "knowledge", ALL, "documents as they were uploaded", Erasure.DELETE,
                  "document_id of the key", "the files", "account")  # fmt: skip
    yield Holding(Kind.BUCKET, "derived", ALL, "text, chunks and embeddings of those documents", Erasure.DELETE,
                  "content hash of the document", _NOT, "account")  # fmt: skip
    yield Holding(Kind.BUCKET, "snapshots", ALL, "copies of usage sums and facts for analysts", Erasure.UNLINK,
                  "subject", "as usage_events", "usage")  # fmt: skip
    yield Holding(Kind.BUCKET, "invoices", ALL, "issued invoices and adjustments: sums of a tenant")
    yield Holding(Kind.CACHE, "headrace:requests:{name}", ALL, "counters of a tenant or key")
    yield Holding(Kind.CACHE, "headrace:tokens:{name}", ALL, "counters of a tenant")
    yield Holding(Kind.CACHE, "headrace:ws-ticket:{digest}", ALL, "ids of who may open a WebSocket, for a minute",
                  Erasure.EXPIRE, "user id in the value", _NOT, "cache.headrace:ws-ticket:{digest}")  # fmt: skip
    yield Holding(Kind.CACHE, "headrace:auth", ALL, "notices of revoked keys, kept nowhere")
    yield Holding(
        Kind.FOLDER, "state_dir", ALL, "identity index (hashes of tenant, source and id); rebuildable"
    )
    yield Holding(Kind.FOLDER, "mail_dir", ALL, "mails with links that act for a person", Erasure.EXPIRE,
                  "address in the header To", "the files", "mail")  # fmt: skip
    yield Holding(Kind.FOLDER, "spool_dir", ALL, "request counts of the gateway on their way to the outbox")
    yield Holding(Kind.FOLDER, "usage_spool_dir", ALL, "usage of calls of /v1 on its way to the outbox", Erasure.UNLINK,
                  "subject of the events", "as in usage.records", "transit")  # fmt: skip


HOLDINGS: Final = (*_tables(), *_streams(), *_lake(), *_rest())


def parts_of(kind: Kind, place: str) -> frozenset[str]:
    """All parts of a place that are mapped; empty for a place that is not."""
    return frozenset(
        part
        for holding in HOLDINGS
        if (holding.kind, holding.place) == (kind, place)
        for part in holding.parts
    )


def places(kind: Kind) -> frozenset[str]:
    return frozenset(holding.place for holding in HOLDINGS if holding.kind is kind)
