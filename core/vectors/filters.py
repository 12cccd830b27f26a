"""Filter expressions, made here only: callers give values, never expressions.

Servers differ in how they read quotes and escapes inside of a literal. So no literal has any: an id of
harmless characters is stored as it is, everything else as `~` and the hex of its UTF-8. Two ids never
give one literal.
"""

import re
from collections.abc import Sequence
from typing import Final

_HARMLESS: Final = re.compile(r"[A-Za-z0-9_:.-]+")
MAX_BYTES: Final = 500


def encoded(value: str) -> str:
    """`value` as it is stored; characters of `A-Za-z0-9_:.~-` only.

    Raises:
        ValueError: for one that is too long or not Unicode.
    """
    stored = value if not value or _HARMLESS.fullmatch(value) else "~" + value.encode().hex()
    if len(stored) > MAX_BYTES:
        raise ValueError(f"an id of {len(value)} characters is too long for the vector store")
    return stored


def decoded(stored: str) -> str:
    return bytes.fromhex(stored[1:]).decode() if stored.startswith("~") else stored


def of_tenant(tenant: str) -> str:
    """Raises: ValueError without a tenant, before anything reaches the server."""
    if not isinstance(tenant, str) or not tenant:
        raise ValueError("the vector store needs a tenant for every call")
    return f"tenant_id == {_literal(tenant)}"


def of_document(tenant: str, document: str = "", version: int | None = None) -> str:
    """Chunks of a tenant, of one of its documents, or of one version of it."""
    parts = [of_tenant(tenant)]
    if document:
        parts.append(f"doc_id == {_literal(document)}")
    if version is not None:
        parts.append(f"doc_version == {int(version)}")
    return " and ".join(parts)


def of_ids(ids: Sequence[str]) -> str:
    """The chunks with these ids (`chunk_id`), which the tenant is part of.

    Raises:
        ValueError: for an id of another form.
    """
    if wrong := [id for id in ids if not _HARMLESS.fullmatch(id)]:
        raise ValueError(f"{wrong[0]!r} is no id of a chunk")
    return f"id in [{', '.join(map(_literal, ids))}]"


def readable(tenant: str, knowledge_bases: Sequence[str] | None, user: str) -> str:
    """What a search may find: documents of these knowledge bases (None: all), and memories of `user`."""
    documents = 'user_id == ""'
    if knowledge_bases is not None:
        listed = ", ".join(_literal(one) for one in dict.fromkeys(knowledge_bases))
        documents = f"({documents} and kb_id in [{listed}])" if listed else ""
    memories = f"user_id == {_literal(user)}" if user else ""
    kinds = " or ".join(part for part in (documents, memories) if part)
    if not kinds:
        raise ValueError("a search needs a knowledge base or a user")
    return f"{of_tenant(tenant)} and ({kinds})"


def _literal(value: str) -> str:
    return f'"{encoded(value)}"'
