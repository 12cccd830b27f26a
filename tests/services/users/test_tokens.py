"""Access tokens, checked with `cryptography` alone: nothing of the code that made them."""

import base64
import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.users.tokens import LIFETIME, Subject, TokenRefusedError, Tokens

ISSUER = "http://127.0.0.1:8080"
SUBJECT = Subject(
    "usr_1",
    "org_1",
    ("owner",),
    ("keys:read", "org:read"),
    "team",
    6000,
    platform_owner=False,
    session_id="ses_1",
    generation=0,
)


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def part(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def written(tmp_path: Path, *keys: Ed25519PrivateKey) -> Tokens:
    file = tmp_path / "jwt.pem"
    file.write_bytes(b"".join(pem(key) for key in keys))
    return Tokens.from_file(file, ISSUER)


def test_signature_verifies_with_the_published_key_of_its_kid(tmp_path: Path) -> None:
    tokens = written(tmp_path, Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())
    header, claims, signature = tokens.issue(SUBJECT).split(".")
    kid = json.loads(part(header))["kid"]
    [jwk] = [key for key in tokens.key_set()["keys"] if key["kid"] == kid]
    public = Ed25519PublicKey.from_public_bytes(part(jwk["x"]))
    public.verify(part(signature), f"{header}.{claims}".encode())


def test_claims(tmp_path: Path) -> None:
    before = int(time.time())
    header, claims, _ = (
        part(p) for p in written(tmp_path, Ed25519PrivateKey.generate()).issue(SUBJECT).split(".")
    )
    assert json.loads(header)["alg"] == "Ed25519"
    assert json.loads(header)["typ"] == "at+jwt"
    read = json.loads(claims)
    assert before <= read["iat"] <= time.time()
    assert read["exp"] == read["iat"] + LIFETIME == read["iat"] + 900
    assert {name: read[name] for name in read.keys() - {"iat", "exp", "jti"}} == {
        "iss": ISSUER, "aud": "headrace", "sub": "usr_1", "org": "org_1", "roles": ["owner"],
        "scope": "keys:read org:read", "plan": "team", "requests_per_minute": 6000, "platform_owner": False,
            "sid": "ses_1", "gen": 0,
    }  # fmt: skip


def test_no_two_tokens_share_a_jti(tmp_path: Path) -> None:
    tokens = written(tmp_path, Ed25519PrivateKey.generate())
    jtis = {json.loads(part(tokens.issue(SUBJECT).split(".")[1]))["jti"] for _ in range(50)}
    assert len(jtis) == 50


def test_key_set_has_every_key_and_no_private_half(tmp_path: Path) -> None:
    tokens = written(tmp_path, Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())
    published = tokens.key_set()["keys"]
    assert len({key["kid"] for key in published}) == 2
    assert all("d" not in key and key["use"] == "sig" and key["alg"] == "Ed25519" for key in published)


def test_first_key_of_the_file_signs(tmp_path: Path) -> None:
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    before, after = written(tmp_path, old), written(tmp_path, new, old)
    kid = json.loads(part(before.issue(SUBJECT).split(".")[0]))["kid"]
    assert kid in {key["kid"] for key in after.key_set()["keys"]}
    assert json.loads(part(after.issue(SUBJECT).split(".")[0]))["kid"] != kid


def test_file_without_usable_key_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "jwt.pem"
    file.write_text("")
    with pytest.raises(ValueError, match="openssl genpkey -algorithm ed25519"):
        Tokens.from_file(file, ISSUER)
    file.write_bytes(pem(X25519PrivateKey.generate()))
    with pytest.raises(ValueError, match="X25519; access tokens need Ed25519"):
        Tokens.from_file(file, ISSUER)


def test_a_challenge_is_no_access_token_and_the_other_way_round(tmp_path: Path) -> None:
    tokens = written(tmp_path, Ed25519PrivateKey.generate())
    assert tokens.read_challenge(tokens.challenge("usr_1", "org_1")) == ("usr_1", "org_1")
    flipped = tokens.challenge("usr_1", "org_1")
    flipped = flipped[:-20] + ("A" if flipped[-20] != "A" else "B") + flipped[-19:]
    for wrong in (tokens.issue(SUBJECT), "", "a.b.c", flipped):
        with pytest.raises(TokenRefusedError):
            tokens.read_challenge(wrong)
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other", Ed25519PrivateKey.generate())
    with pytest.raises(TokenRefusedError):
        tokens.read_challenge(other.challenge("usr_1", "org_1"))
