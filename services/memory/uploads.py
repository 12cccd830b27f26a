"""Tokens of upload addresses: the permission to store the bytes of one version, until it ends.

The token stands in a path, so it is all the credential there is: it names one version, is signed with
the internal key under a label of its own, and is of no use once the version has its bytes.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Final

import msgspec

VALID_SECONDS: Final = 3600
_LABEL: Final = b"headrace upload v1"


class Upload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a token permits."""

    tenant: str
    document: str
    version: int
    expires: int
    """Unix seconds."""


class UploadTokenError(Exception):
    """Forged, damaged or over."""


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Upload)


def sign(upload: Upload, key: bytes) -> str:
    payload = base64.urlsafe_b64encode(_ENCODER.encode(upload)).rstrip(b"=")
    return f"{payload.decode()}.{_signature(payload, key)}"


def verify(token: str, key: bytes, *, now: float) -> Upload:
    """Raises: UploadTokenError."""
    payload, _, signature = token.partition(".")
    if not token.isascii() or not hmac.compare_digest(_signature(payload.encode(), key), signature):
        raise UploadTokenError("the signature does not fit")
    try:
        upload = _DECODER.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise UploadTokenError("not an upload") from error
    if upload.expires < now:
        raise UploadTokenError("expired")
    return upload


def _signature(payload: bytes, key: bytes) -> str:
    own = hmac.new(key, _LABEL, hashlib.sha256).digest()
    return hmac.new(own, payload, hashlib.sha256).hexdigest()
