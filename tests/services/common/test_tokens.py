"""Access tokens: one algorithm, one issuer, keys from a key set that rotates."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import OKPKey

from services.common.errors import Problem
from services.common.tokens import TokenError, TokenVerifier
from tests.servers import free_port

ISSUER = "https://api.example.org"


class Issuer:
    """Publishes a key set over HTTP, as users does."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/jwks"
        self.port = port
        self.keys = [new_key("first")]
        self.fetched = 0
        self.away = False

    async def key_set(self, _: web.Request) -> web.Response:
        self.fetched += 1
        if self.away:
            raise web.HTTPServiceUnavailable
        return web.json_response({"keys": [key.as_dict(private=False) for key in self.keys]})

    def token(self, *, key: OKPKey | None = None, typ: str = "at+jwt", **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER, "aud": "headrace", "sub": "usr_1", "org": "org_1", "scope": "usage:read org:read",
            "plan": "team", "requests_per_minute": 600, "platform_owner": False, "iat": now, "exp": now + 900,
        } | changes  # fmt: skip
        signer = key or self.keys[0]
        header = {"alg": "Ed25519", "typ": typ, "kid": signer.kid}
        return jwt.encode(
            header,
            {name: value for name, value in claims.items() if value is not None},
            signer,
            algorithms=["Ed25519"],
        )


def new_key(kid: str) -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": kid, "use": "sig", "alg": "Ed25519"})


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer(free_port())
    app = web.Application()
    app.router.add_get("/jwks", issuer.key_set)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", issuer.port).start()
    yield issuer
    await runner.cleanup()


@pytest.fixture
async def verifier(issuer: Issuer) -> AsyncIterator[TokenVerifier]:
    async with aiohttp.ClientSession() as http:
        yield TokenVerifier(issuer.url, ISSUER, http)


async def test_a_good_token_names_its_caller(issuer: Issuer, verifier: TokenVerifier) -> None:
    principal, left = await verifier.verify(issuer.token(platform_owner=True))
    assert (principal.tenant_id, principal.subject, principal.kind) == ("org_1", "usr_1", "user")
    assert principal.scopes == {"usage:read", "org:read"}
    assert (principal.plan, principal.requests_per_minute, principal.platform_owner) == ("team", 600, True)
    assert 890 < left < 910
    await asyncio.gather(*(verifier.verify(issuer.token()) for _ in range(20)))
    assert issuer.fetched == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example.org"}, {"iss": None}, {"aud": "other"}, {"aud": ["other"]}, {"aud": None},
        {"exp": 1}, {"exp": None}, {"exp": "never"}, {"iat": 4_000_000_000}, {"iat": None}, {"sub": ""}, {"sub": None},
        {"sub": 7}, {"org": None}, {"scope": None}, {"scope": ["a"]}, {"requests_per_minute": "600"}, {"typ": "JWT"},
    ],
)  # fmt: skip
async def test_wrong_claims_are_refused(
    issuer: Issuer, verifier: TokenVerifier, changes: dict[str, Any]
) -> None:
    with pytest.raises(TokenError):
        await verifier.verify(issuer.token(**changes))


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_forged_signatures_are_refused(issuer: Issuer, verifier: TokenVerifier) -> None:
    good = issuer.token()
    header, payload, signature = good.split(".")
    published = issuer.keys[0].as_dict(private=False)["x"]
    symmetric = f"{_part({'alg': 'HS256', 'typ': 'at+jwt', 'kid': 'first'})}.{payload}"
    with_public_key = hmac.new(
        base64.urlsafe_b64decode(f"{published}="), symmetric.encode(), hashlib.sha256
    ).digest()
    other = new_key("first")
    own_key = {"alg": "Ed25519", "typ": "at+jwt", "kid": "first", "jwk": other.as_dict(private=False)}
    forged = [
        issuer.token(key=other),
        f"{_part({'alg': 'none', 'typ': 'at+jwt', 'kid': 'first'})}.{payload}.",
        f"{symmetric}.{base64.urlsafe_b64encode(with_public_key).rstrip(b'=').decode()}",
        jwt.encode(own_key, {"sub": "usr_1"}, other, algorithms=["Ed25519"]),
        f"{header}.{_part({'sub': 'usr_2'})}.{signature}",
        f"{header}.{payload}.{signature[:-4]}AAAA",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}.{payload}.{signature}.{signature}",
        f"{_part({'alg': 'Ed25519', 'kid': ['first']})}.{payload}.{signature}",
        f"{_part({'alg': 'Ed25519', 'kid': 'first', 'crit': ['b64'], 'b64': False})}.{payload}.{signature}",
        f"{_part([])}.{payload}.{signature}",
        f"{_part({})}.{payload}.{signature}",
        f"e30.{payload}.{signature}",
        "..", "a.b.c", "é.é.é", "", ".", "x" * 4000,
    ]  # fmt: skip
    for token in forged:
        with pytest.raises(TokenError):
            await verifier.verify(token)
    await verifier.verify(good)


async def test_keys_rotate(issuer: Issuer, verifier: TokenVerifier) -> None:
    old = issuer.token()
    await verifier.verify(old)
    issuer.keys.insert(0, new_key("second"))
    verifier.fetched_at -= 10
    await verifier.verify(issuer.token())
    await verifier.verify(old)
    assert issuer.fetched == 2
    for _ in range(20):
        with pytest.raises(TokenError):
            await verifier.verify(issuer.token(key=new_key("unheard of")))
    assert issuer.fetched == 2, "made-up key ids do not make us ask"


async def test_while_the_issuer_is_away_known_keys_stay_good(issuer: Issuer, verifier: TokenVerifier) -> None:
    token = issuer.token()
    await verifier.verify(token)
    issuer.away = True
    verifier.fetched_at -= 1000
    for _ in range(5):
        await verifier.verify(token)
    assert issuer.fetched == 2, "asked again, but not with each token"
    async with aiohttp.ClientSession() as http:
        with pytest.raises(Problem) as refusal:
            await TokenVerifier(issuer.url, ISSUER, http).verify(token)
    assert (refusal.value.status, refusal.value.headers["retry-after"]) == (503, "1")
