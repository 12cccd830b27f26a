"""How long things are kept, and who ends them. Rules come from the topology and from the plans.

An organisation's plan says how many days its usage and audit facts stay; everything else has one
period for all. The data map (`core.personal_data`) names a rule for every store of personal data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from core import cache
from core.messaging import idempotency, inbox, skipped
from core.topology import TOPICS


class Enforcer(StrEnum):
    """Who deletes."""

    LOG = "log"
    """The event log by itself (Kafka's retention, `EventLog.expire` on tables)."""
    CACHE = "cache"
    """The cache server: every key carries its expiry."""
    RELAY = "relay"
    """The relay's sweep."""
    USERS = "users"
    """The sweep of the users service."""
    DELIVERY = "delivery"
    """Nobody on a clock: it goes once it is delivered, or when a person drops what cannot be."""
    LAKE = "lake"
    """An asset over the lake, by the plan of each organisation; not built yet (docs/limits.md)."""
    ACCOUNT = "account"
    """Nobody on a clock: it goes when its owner deletes it, or with its account or organisation."""


class PlanDays(StrEnum):
    """Columns of `plan` that say a number of days."""

    USAGE = "usage_retention_days"
    AUDIT = "audit_retention_days"


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    what: str
    keep: timedelta | PlanDays | None
    """A period for all, one that the plan says, or None where no clock ends it."""
    since: str
    """What the period counts from."""
    enforcer: Enforcer

    def period(self, plan: Mapping[str, int]) -> timedelta | None:
        """How long for an organisation of this plan (a row of `plan`); None where no clock ends it.

        Raises:
            KeyError: the row lacks the column that the rule names.
        """
        if isinstance(self.keep, PlanDays):
            return timedelta(days=plan[self.keep.value])
        return self.keep


def _rules() -> tuple[Rule, ...]:
    topics = [
        Rule(f"topic.{topic.name}", f"records of `{topic.name}`", topic.retention, "append", Enforcer.LOG)
        for topic in TOPICS.values()
    ]
    keys = [
        Rule(
            f"cache.{family.pattern}",
            family.content,
            timedelta(seconds=family.seconds),
            "last write",
            Enforcer.CACHE,
        )
        for family in cache.KEYS.values()
    ]
    return (
        *topics,
        *keys,
        Rule("account", "people, memberships, keys, organisations", None, "", Enforcer.ACCOUNT),
        Rule("conversation", "conversations, their messages and runs", None, "", Enforcer.ACCOUNT),
        Rule(
            "proof",
            "registrations and links for a new password",
            timedelta(days=1),
            "request",
            Enforcer.USERS,
        ),
        Rule("session", "sessions", timedelta(days=30), "end", Enforcer.USERS),
        Rule("device", "devices and networks of logins", timedelta(days=180), "last login", Enforcer.USERS),
        Rule("invitation", "invitations", timedelta(days=30), "answer or end", Enforcer.USERS),
        Rule("mail", "mails as files", timedelta(days=7), "writing", Enforcer.USERS),
        Rule("book", "prices, imports and what invoices rest on", None, "", Enforcer.ACCOUNT),
        Rule("usage", "usage facts, cells and snapshots", PlanDays.USAGE, "time of the event", Enforcer.LAKE),
        Rule("audit", "audit facts", PlanDays.AUDIT, "time of the event", Enforcer.LAKE),
        Rule(
            "idempotency", "answers to repeated requests", idempotency.KEEP, "first request", Enforcer.RELAY
        ),
        Rule("inbox", "ids of messages already handled", inbox.KEEP, "first delivery", Enforcer.RELAY),
        Rule(
            "skipped", "what a consumer left out of the log, and why", skipped.KEEP, "reading", Enforcer.RELAY
        ),
        Rule("transit", "records on their way to the log", None, "", Enforcer.DELIVERY),
    )


RULES: Final[Mapping[str, Rule]] = MappingProxyType({rule.name: rule for rule in _rules()})
