"""Contract of the queue `document.index`: a version of a document waits for its index.

The row in `document_version` is the truth; the message puts it on the work list. Whoever stores a
document (uploads, attachments of conversations, channels) sends one; sent twice it changes nothing.
"""

import msgspec

from core.ids import derived_id


class DocumentJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """`version` of `document` lies at `key` of bucket `knowledge`."""

    tenant: str
    knowledge_base: str
    document: str
    version: int

    def encode(self) -> bytes:
        return _ENCODER.encode(self)


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(DocumentJob)


def job(value: bytes) -> DocumentJob:
    """Raises: msgspec.DecodeError, msgspec.ValidationError."""
    return _DECODER.decode(value)


def memory_of(tenant: str, run: str) -> str:
    """Id of the document that a finished turn becomes: heard twice it is one, and whoever deletes it knows it."""
    return f"mem_{derived_id('memory', tenant, run)}"
