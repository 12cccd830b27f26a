"""The registry of sensitive actions and routes: what must leave an audit event, and why.

`core.audit.record` refuses an action that is not listed here, and a test fails on a route that
changes something and is neither listed nor excused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Action:
    """Something that somebody must be able to answer for."""

    name: str
    service: str
    why: str


@dataclass(frozen=True, slots=True)
class Route:
    """A route that needs the audit event of `action`."""

    method: str
    path: str
    action: str


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        action.name: action
        for action in (
            Action("owner.create", "users", "the first account may do everything"),
            Action("auth.login", "users", "who was inside, and since when"),
            Action("auth.login_failed", "users", "guessing shows before it succeeds"),
            Action("auth.register", "users", "somebody asks for an account"),
            Action("auth.verify_email", "users", "an account and its organisation come to be"),
            Action("auth.forgot", "users", "the first step of taking an account over"),
            Action("auth.reset", "users", "a new password by mail alone"),
            Action("auth.change_password", "users", "the old password ends, and the other sessions"),
            Action("auth.logout", "users", "until when somebody was inside"),
            Action("auth.logout_all", "users", "ends every session, as after a theft"),
            Action(
                "auth.refresh_refused", "users", "a refresh token came twice: one of two holders stole it"
            ),
            Action("session.revoke", "users", "ends somebody's session"),
            Action("person.rename", "users", "others recognise a person by the name"),
            Action("mfa.enrol", "users", "a second factor is prepared"),
            Action("mfa.confirm", "users", "a second factor is asked for from now on"),
            Action("mfa.disable", "users", "the password alone is enough again"),
            Action("mfa.recovery_codes", "users", "codes that stand for the second factor"),
            Action("member.change_role", "users", "what somebody may do in an organisation"),
            Action("member.remove", "users", "ends somebody's access"),
            Action("invitation.create", "users", "somebody outside may come in"),
            Action("invitation.accept", "users", "somebody came in, with this role"),
            Action("invitation.revoke", "users", "somebody may not come in after all"),
            Action("organization.create", "users", "a new tenant, its plan and limits"),
            Action("api_key.create", "users", "a key acts for its organisation until it is revoked"),
            Action("api_key.rotate", "users", "an old key keeps working for a while"),
            Action("api_key.revoke", "users", "ends somebody's access"),
            Action("agent.create", "agents", "what an agent is told and may use is decided here"),
            Action("agent.update", "agents", "changes what an agent is told and may use"),
            Action("agent.publish", "agents", "changes what answers from now on"),
            Action("agent.delete", "agents", "ends what others may rely on"),
            Action("approval.resolve", "agents", "somebody lets a tool act, or does not"),
            Action("conversation.delete", "agents", "what was said is gone for good"),
            Action("provider.create", "agents", "conversations go to an address that a tenant chose"),
            Action("provider.change", "agents", "the address or the key changes under running agents"),
            Action("provider.delete", "agents", "agents that name it fail"),
            Action("usage.import", "billing", "admits old usage, which changes drafts of the past"),
            Action("usage.quarantine_accept", "billing", "counts what was not counted, or another version"),
            Action("usage.quarantine_reject", "billing", "leaves a record uncounted for good"),
            Action("usage.hold_place", "billing", "records stay in the log longer than they would"),
            Action("usage.hold_lift", "billing", "records may leave the log for good"),
            Action(
                "landing.loss_accept",
                "dagster",
                "records that never landed are given up, and landing goes on",
            ),
            Action("document.delete", "memory", "content is gone for good"),
            Action("knowledge_base.delete", "memory", "all its documents are gone for good"),
            Action("memory.delete_all", "memory", "what a person was remembered by is gone"),
            Action("dead_letter.redrive", "relay", "work that was given up is done after all"),
            Action("dead_letter.discard", "relay", "work that was given up is never done"),
            Action("outbox.redrive", "command", "what the event log or every queue refused is sent again"),
            Action("outbox.drop", "command", "what the event log or every queue refused is gone for good"),
            Action("price.publish", "billing", "changes what tenants pay"),
            Action("price.import", "billing", "a public list changes what tenants pay"),
            Action("invoice.issue", "billing", "a service period is closed, and this is owed"),
            Action("invoice.adjust", "billing", "what is owed for a closed service period changes"),
            Action("price_fix.propose", "billing", "looks at what corrected prices would change for tenants"),
            Action("price_fix.approve", "billing", "a person lets corrected prices change what was invoiced"),
            Action("price_fix.reject", "billing", "corrected prices leave what was invoiced as it is"),
            Action("price_fix.apply", "billing", "what was invoiced changes for many tenants at once"),
        )
    }
)

ROUTES: tuple[Route, ...] = (
    Route("POST", "/api/v1/auth/login", "auth.login"),
    Route("POST", "/api/v1/auth/register", "auth.register"),
    Route("POST", "/api/v1/auth/verify-email", "auth.verify_email"),
    Route("POST", "/api/v1/auth/forgot", "auth.forgot"),
    Route("POST", "/api/v1/auth/reset", "auth.reset"),
    Route("POST", "/api/v1/auth/challenge", "auth.login"),
    Route("POST", "/api/v1/auth/password", "auth.change_password"),
    Route("POST", "/api/v1/auth/logout", "auth.logout"),
    Route("POST", "/api/v1/auth/logout-all", "auth.logout_all"),
    Route("DELETE", "/api/v1/sessions/{session_id}", "session.revoke"),
    Route("PATCH", "/api/v1/me", "person.rename"),
    Route("POST", "/api/v1/auth/mfa/totp", "mfa.enrol"),
    Route("POST", "/api/v1/auth/mfa/totp/confirm", "mfa.confirm"),
    Route("POST", "/api/v1/auth/mfa/totp/disable", "mfa.disable"),
    Route("POST", "/api/v1/auth/mfa/recovery-codes", "mfa.recovery_codes"),
    Route("PATCH", "/api/v1/organizations/{id}/members/{person_id}", "member.change_role"),
    Route("DELETE", "/api/v1/organizations/{id}/members/{person_id}", "member.remove"),
    Route("POST", "/api/v1/organizations/{id}/invitations", "invitation.create"),
    Route("DELETE", "/api/v1/organizations/{id}/invitations/{invitation_id}", "invitation.revoke"),
    Route("POST", "/api/v1/auth/invitations/accept", "invitation.accept"),
    Route("POST", "/api/v1/organizations", "organization.create"),
    Route("POST", "/api/v1/organizations/{id}/keys", "api_key.create"),
    Route("POST", "/api/v1/organizations/{id}/keys/{key_id}/rotate", "api_key.rotate"),
    Route("DELETE", "/api/v1/organizations/{id}/keys/{key_id}", "api_key.revoke"),
    Route("POST", "/api/v1/usage/imports", "usage.import"),
    Route("POST", "/api/v1/usage/quarantine/{id}/accept", "usage.quarantine_accept"),
    Route("POST", "/api/v1/usage/quarantine/{id}/reject", "usage.quarantine_reject"),
    Route("PUT", "/api/v1/usage/holds/{hold}", "usage.hold_place"),
    Route("DELETE", "/api/v1/usage/holds/{hold}", "usage.hold_lift"),
    Route("POST", "/api/v1/billing/invoices", "invoice.issue"),
    Route("POST", "/api/v1/billing/adjustments", "invoice.adjust"),
    Route("POST", "/api/v1/billing/price-fixes", "price_fix.propose"),
    Route("POST", "/api/v1/billing/price-fixes/{price_fix}/approve", "price_fix.approve"),
    Route("POST", "/api/v1/billing/price-fixes/{price_fix}/reject", "price_fix.reject"),
    Route("POST", "/api/v1/billing/price-fixes/{price_fix}/apply", "price_fix.apply"),
    Route("DELETE", "/api/v1/documents/{id}", "document.delete"),
    Route("DELETE", "/api/v1/knowledge-bases/{id}", "knowledge_base.delete"),
    Route("DELETE", "/api/v1/memories", "memory.delete_all"),
    Route("DELETE", "/api/v1/memories/{id}", "document.delete"),
    Route("POST", "/api/v1/providers", "provider.create"),
    Route("PATCH", "/api/v1/providers/{id}", "provider.change"),
    Route("DELETE", "/api/v1/providers/{id}", "provider.delete"),
    Route("POST", "/api/v1/agents", "agent.create"),
    Route("PATCH", "/api/v1/agents/{id}", "agent.update"),
    Route("POST", "/api/v1/agents/{id}/publish", "agent.publish"),
    Route("DELETE", "/api/v1/agents/{id}", "agent.delete"),
    Route("POST", "/api/v1/runs/{id}/approvals/{call}", "approval.resolve"),
    Route("DELETE", "/api/v1/conversations/{id}", "conversation.delete"),
    Route("POST", "/api/v1/dead-letters/{id}/redrive", "dead_letter.redrive"),
    Route("POST", "/api/v1/dead-letters/{id}/discard", "dead_letter.discard"),
)

EXCUSED: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("POST", "/api/v1/usage/events"): "each event is itself a permanent record with its sender's tenant",
        (
            "POST",
            "/api/v1/usage/replacements",
        ): "void and event are permanent records with their sender's tenant",
        ("POST", "/v1/chat/completions"): "local-extractive: answers and keeps nothing",
        ("POST", "/v1/responses"): "local-extractive: answers and keeps nothing",
        ("POST", "/v1/embeddings"): "answers and keeps nothing; its usage is metered",
        ("POST", "/v1/responses/{response}/cancel"): "the run's terminal event says who cancelled it",
        ("DELETE", "/v1/responses/{response}"): "the caller's own answer, which goes with its conversation",
        ("POST", "/api/v1/ws/tickets"): "lets the caller in for a minute, as what it already is",
        ("POST", "/api/v1/auth/refresh"): "continues a session that a login recorded; a refusal is recorded",
        ("POST", "/api/v1/agents/{id}/runs"): "the run and its events are the record of who asked what",
        ("POST", "/api/v1/conversations"): "an empty room of the caller's own",
        ("PATCH", "/api/v1/conversations/{id}"): "a title of the caller's own conversation",
        (
            "POST",
            "/api/v1/conversations/{id}/messages",
        ): "the run and its events are the record of who asked what",
        (
            "POST",
            "/api/v1/conversations/{id}/attachments",
        ): "the document's rows say who stored what, and when",
        ("POST", "/api/v1/runs/{id}/cancel"): "the run's terminal event says who cancelled it",
        ("POST", "/internal/sessions"): "changes nothing; a read that carries its argument in the body",
        ("POST", "/api/v1/knowledge-bases"): "an empty folder",
        ("PATCH", "/api/v1/knowledge-bases/{id}"): "a name",
        ("POST", "/api/v1/knowledge-bases/{id}/documents"): "the document's row says who and when",
        ("POST", "/api/v1/documents/{id}/versions"): "the version's row says who and when",
        ("POST", "/api/v1/documents/{id}/reindex"): "the version's row says who and when",
        ("POST", "/api/v1/documents/{id}/cancel"): "changes no content; the version's row says so",
        ("PUT", "/api/v1/uploads/{token}"): "the bytes of a version whose row says who and when",
        ("POST", "/api/v1/search"): "changes nothing; a read that carries its argument in the body",
        ("POST", "/internal/embeddings"): "changes nothing; a read that carries its argument in the body",
        **{
            (
                "POST",
                f"/internal/usage/{name}",
            ): "changes nothing; a read that carries its argument in the body"
            for name in ("sums", "rows", "event", "record", "fates")
        },
        ("POST", "/internal/introspect"): "changes nothing; a read that carries its argument in the body",
    }
)
"""Routes with a method that may change something, which need no audit event, and why."""
