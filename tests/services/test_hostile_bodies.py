"""Every POST route that takes JSON × bodies made to break it: a 4xx with a stable code, never a 5xx, and nothing
half-written. The reader of bodies is one for all services: `tests/services/common/test_body.py`."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from core.settings import CacheSettings, DatabaseSettings, VectorSettings
from deploy.servers.postgres import postgres as postgres_server
from services.common.principal import HEADER, Principal, sign, system
from tests.real_data import real_data
from tests.servers import database_settings, free_port, running
from tests.services.process import REPOSITORY, environment, service

DEEP = 100_000
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "white": b" \n\t",
    "half": b'{"email": "a',
    "trailing comma": b'{"a": 1,}',
    "two documents": b"{}{}",
    "comment": b"{} // x",
    "single quotes": b"{'a': 1}",
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": '{"a": "b"}'.encode("utf-16"),
    "latin-1": b'{"email": "\xe9", "password": "x"}',
    "truncated utf-8": b'{"email": "\xe2\x82", "password": "x"}',
    "overlong utf-8": b'{"email": "\xc0\xaf", "password": "x"}',
    "utf-8 surrogate": b'{"email": "\xed\xa0\x80", "password": "x"}',
    "lone surrogate": b'{"email": "\\ud800", "password": "x"}',
    "surrogates swapped": b'{"email": "\\udc00\\ud800", "password": "x"}',
    "nul": b'{"email": "a\\u0000b", "password": "x"}',
    "nul in a name": b'{"a\\u0000b": 1}',
    "control character": b'{"email": "a\x01b", "password": "x"}',
    "nan": b'{"email": NaN}',
    "infinity": b'[{"a": -Infinity}]',
    "huge integer": b'{"a": ' + b"9" * 100_000 + b"}",
    "int64 + 1": b'{"a": 9223372036854775808}',
    "huge exponent": b'{"a": 1e400}',
    "leading zero": b'{"a": 012}',
    "hexadecimal": b'{"a": 0x1f}',
    "duplicate name": b'{"email": "a", "email": "b", "password": "x"}',
    "duplicate name, escaped": b'{"a": 1, "\\u0061": 2}',
    "duplicate name, inner": b'[{"data": {"a": 1, "a": 2}}]',
    "deep array": b"[" * DEEP + b"]" * DEEP,
    "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and open": b"[" * DEEP,
    "33 levels": b"[" * 33 + b"]" * 33,
    "quotes": b'"' + b'\\"' * 400_000,
    "null": b"null",
    "true": b"true",
    "number": b"1",
    "text": b'"text"',
    "array": b"[]",
    "array of arrays": b"[[]]",
    "array of null": b"[null]",
    "object": b"{}",
    "unknown field": b'{"constructor": {"prototype": 1}, "__proto__": {}}',
    "10 MB": b'{"a": "' + b"x" * 10_000_000 + b'"}',
    "10 MB of numbers": b"[" + b"1," * 5_000_000 + b"1]",
    "1001 events": b"[" + b"{}," * 1000 + b"{}]",
}
"""Not one of them is a request that any route takes."""

CONTENT = "application/json"
SERVICES = ("users", "billing", "lookup", "agents", "memory", "extractive")
PARAMETERS = {
    "/api/v1/agents/{id}": "agt", "/api/v1/conversations/{id}": "cnv", "/api/v1/runs/{id}": "run",
    "/api/v1/knowledge-bases/{id}": "kb", "/api/v1/documents/{id}": "doc", "{call}": "tcl", "{key_id}": "key",
    "{price_fix}": "fix",
}  # fmt: skip
"""What parameters of paths stand for: ids of this kind that nothing has. `{id}` elsewhere is the organisation."""


@dataclass(frozen=True)
class Post:
    """A POST route of a running service, with the body it describes."""

    url: str
    path: str
    headers: dict[str, str]
    shape: Any
    schemas: dict[str, Any]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    """PostgreSQL of this module's own: what is written while it runs was written by its requests."""
    folder, port = tmp_path_factory.mktemp("hostile-postgres"), free_port()
    with running(postgres_server(folder, port, "0123456789abcdef"), folder / "log"):
        yield database_settings(port, "0123456789abcdef")


@pytest.fixture(scope="module")
def services(
    database: DatabaseSettings,
    valkey: CacheSettings,
    milvus_lite: VectorSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, str]]:
    """Environment of the services, which run."""
    folder, ports = tmp_path_factory.mktemp("hostile-services"), {name: free_port() for name in SERVICES}
    variables = {
        **environment(folder, database, valkey, users_port=ports["users"], gateway_port=free_port()),
        **{f"HEADRACE_{name.upper()}_URL": f"http://127.0.0.1:{port}" for name, port in ports.items()},
        "HEADRACE_LOG_LEVEL": "error",
        "HEADRACE_MEMORY_GRPC": f"127.0.0.1:{free_port()}",
        "HEADRACE_STATE_DIR": str(folder / "state"),
        "HEADRACE_VECTORS_URL": milvus_lite.vectors_url,
        "HEADRACE_EMBEDDING_MODEL": "hash",
    }
    subprocess.run(
        [sys.executable, "-m", "deploy.ensure", "topology"], env=variables, cwd=REPOSITORY, check=True
    )
    with ExitStack() as stack:
        for name, port in ports.items():
            stack.enter_context(running(service(name, port, variables), folder / f"{name}.log"))
        yield variables | {"LOGS": str(folder)}


@pytest.fixture(scope="module")
def posts(services: dict[str, str], database: DatabaseSettings) -> list[Post]:
    """All POST routes, as the services describe them, for the owner of an organisation that exists."""
    return asyncio.run(_find_posts(services, database))


async def _find_posts(services: dict[str, str], database: DatabaseSettings) -> list[Post]:
    organization = new_id("org")
    system_role = Database(database, role="system")
    async with system_role.writer() as connection:
        await connection.execute(
            text(
                "insert into organisation (id, slug, name, plan) values (:id, 'hostile', 'Hostile', 'team')"
            ),
            {"id": organization},
        )
    await system_role.close()
    scopes = (
        "usage:write usage:read usage:import billing:read billing:write keys:read keys:write org:read org:admin "
        "agents:read agents:write agents:run memory:read memory:write"
    )
    key = bytes.fromhex(services["HEADRACE_INTERNAL_KEY"])
    owner = Principal(
        tenant_id=organization, subject=new_id("usr"), kind="user", scopes=frozenset(scopes.split()),
        plan="team", requests_per_minute=6000, platform_owner=True,
    )  # fmt: skip
    found = []
    async with aiohttp.ClientSession() as http:
        for name in SERVICES:
            address = services[f"HEADRACE_{name.upper()}_URL"]
            async with http.get(address + "/openapi.json") as answer:
                document = await answer.json()
            for path, item in document["paths"].items():
                if "post" not in item:
                    continue
                principal = system("test") if path.startswith("/internal/") else owner
                content = item["post"].get("requestBody", {}).get("content", {})
                if CONTENT not in content:
                    continue  # takes no body, or any file
                shape, filled = content[CONTENT]["schema"], path
                for part, kind in PARAMETERS.items():
                    filled = filled.replace(part, part.partition("{")[0] + new_id(kind))
                filled = filled.replace("{id}", organization)
                assert "{" not in filled, f"{path}: say in PARAMETERS what its parameters stand for"
                headers = {HEADER: sign(principal, key, now=4e9)}
                schemas = document.get("components", {}).get("schemas", {})
                found.append(Post(address + filled, path, headers, shape, schemas))
    return found


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
    await asyncio.sleep(0.01)  # connections that were cut off in the middle of a body close one turn later


async def _send(http: aiohttp.ClientSession, post: Post, body: bytes, content_type: str = CONTENT) -> bool:
    """True where the request was refused: a problem document with a code, or a batch of which nothing was
    taken. Anything but that and a success fails the test."""
    headers = {**post.headers, "content-type": content_type}
    async with http.post(post.url, data=iter_body(body), headers=headers) as answer:
        content = await answer.read()
        assert answer.status < 500, (post.path, body[:200])
        if not content and answer.status < 400:
            return False
        document = json.loads(content)
        if answer.status < 400:
            return bool(document.get("accepted", 1) == 0)
        if post.path.startswith("/v1/"):
            assert re.fullmatch(r"[a-z0-9_]+", document["error"]["code"]), post.path
            return True
        assert answer.content_type == "application/problem+json", post.path
        assert re.fullmatch(r"[a-z0-9_]+", document["code"]), post.path
        assert document["status"] == answer.status
        return True


async def iter_body(body: bytes) -> AsyncIterator[bytes]:
    """In pieces and without a length, so that the reader has to count."""
    for start in range(0, len(body), 65_536):
        yield body[start : start + 65_536]


async def _rows(database: DatabaseSettings) -> dict[str, int]:
    """Rows of every table."""
    reader = Database(database, role="system")
    async with reader.reader() as connection:
        tables = await connection.execute(
            text(
                "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace "
                "and has_table_privilege(oid, 'select')"
            )
        )
        counted = {
            name: int(await connection.scalar(text(f'select count(*) from "{name}"')) or 0)
            for (name,) in tables
        }
    await reader.close()
    return counted


async def test_the_routes_are_found(posts: list[Post]) -> None:
    paths = {post.path for post in posts}
    assert {
        "/api/v1/auth/login",
        "/api/v1/organizations",
        "/api/v1/usage/events",
        "/internal/introspect",
        "/internal/usage/sums",
        "/api/v1/agents",
        "/api/v1/conversations/{id}/messages",
        "/api/v1/providers",
        "/api/v1/search",
        "/v1/chat/completions",
        "/v1/embeddings",
    } <= paths


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bodies_are_refused(http: aiohttp.ClientSession, posts: list[Post], name: str) -> None:
    for post in posts:
        assert await _send(http, post, HOSTILE[name]), (post.path, name)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/xml"]
)
async def test_other_media_types_are_refused(
    http: aiohttp.ClientSession, posts: list[Post], content_type: str
) -> None:
    for post in posts:
        assert await _send(http, post, b"{}", content_type), post.path


async def test_refusals_write_nothing(
    http: aiohttp.ClientSession, posts: list[Post], database: DatabaseSettings
) -> None:
    before = await _rows(database)
    for post in posts:
        for name in ("half", "duplicate name", "nul", "nan", "deep array", "unknown field", "10 MB"):
            await _send(http, post, HOSTILE[name])
    assert await _rows(database) == before
    assert before["organisation"] >= 1


def _resolve(shape: Any, schemas: dict[str, Any]) -> Any:
    while "$ref" in shape:
        shape = schemas[shape["$ref"].rpartition("/")[2]]
    return shape


def _sample(shape: Any, schemas: dict[str, Any], said: str, *, whole: bool = True) -> Any:
    """A body of the described shape in which every free text is `said`; with what is required alone if not `whole`."""

    def part(inner: Any) -> Any:
        return _sample(inner, schemas, said, whole=whole)

    shape = _resolve(shape, schemas)
    for choice in ("anyOf", "oneOf"):
        if choice in shape:
            return part(shape[choice][0])
    if "const" in shape or "enum" in shape:
        return shape.get("const", shape.get("enum", [None])[0])
    kind = shape.get("type", "object")
    if kind == "object":
        if isinstance(shape.get("additionalProperties"), dict):
            return {said: said}
        named = shape.get("properties", {})
        return {name: part(named[name]) for name in named if whole or name in shape.get("required", ())}
    if kind == "array":
        return [part(inner) for inner in shape.get("prefixItems") or [shape.get("items", {})]]
    if kind == "string":
        return "2026-01-02T03:04:05Z" if shape.get("format") == "date-time" else said
    return {"integer": 1, "number": 1, "boolean": True}.get(kind)


SOUND = {"email": "a@example.org", "model": "openai/gpt", "sha256": "0" * 64}
"""Required fields in which no free text is sound."""


async def test_an_unknown_field_is_what_a_body_is_refused_for(
    http: aiohttp.ClientSession, posts: list[Post], database: DatabaseSettings
) -> None:
    """Nothing else is wrong with it. `/v1` takes fields that it does not know, as servers of OpenAI's API do."""
    before = await _rows(database)
    for post in posts:
        if post.path.startswith("/v1/"):
            continue
        sample = _sample(post.shape, post.schemas, "a" * 12, whole=False)
        events = isinstance(sample, list)
        body = sample[0] if events else sample
        body |= {name: SOUND[name] for name in SOUND if name in body} | {"nobody_knows": 1}
        headers = {**post.headers, "content-type": CONTENT}
        async with http.post(
            post.url, data=json.dumps([body] if events else body), headers=headers
        ) as answer:
            said = await answer.json(content_type=None)
        if events:
            assert (answer.status, said["accepted"], said["verdicts"][0]["code"]) == (200, 0, "schema")
            assert said["verdicts"][0]["message"] == "Object contains an unknown field"
        else:
            assert (answer.status, said.get("code")) == (422, "invalid_request"), post.path
            assert said["errors"][0]["message"] == "Object contains unknown field `nobody_knows`", post.path
    assert await _rows(database) == before


STRANGE = [
    "",
    "null",
    "'; drop table plan; --",
    "../../etc/passwd",
    "<script>",
    "𝕳\u202e\ufeff",
    "%s%n",
    "${jndi:x}",
    "a" * 5000,
]
_SUITE = real_data("attack", "jsontestsuite")
_NAUGHTY = real_data("attack", "blns_0.json")
SUITE = {file.name: file.read_bytes() for file in sorted(_SUITE.glob("*.json"))} if _SUITE else {}
NAUGHTY = json.loads(_NAUGHTY.read_text("utf-8")) if _NAUGHTY else []


async def _strange_texts(http: aiohttp.ClientSession, posts: list[Post], texts: list[str]) -> None:
    """In every free text of the described body. Each is answered; checking a password costs a quarter of a
    second, so login gets a few of them."""
    for post in posts:
        few = texts[:: max(1, len(texts) // 6)] if post.path.endswith("/login") else texts
        for start in range(0, len(few), 8):
            bodies = [
                json.dumps(_sample(post.shape, post.schemas, said)).encode()
                for said in few[start : start + 8]
            ]
            await asyncio.gather(*(_send(http, post, body) for body in bodies))


async def test_strange_texts_are_answered(http: aiohttp.ClientSession, posts: list[Post]) -> None:
    await _strange_texts(http, posts, STRANGE)


if SUITE:

    async def test_json_test_suite(
        http: aiohttp.ClientSession, posts: list[Post], database: DatabaseSettings
    ) -> None:
        before = await _rows(database)
        for post in posts:
            for name, body in SUITE.items():
                assert await _send(http, post, body), (post.path, name)
        assert await _rows(database) == before


if NAUGHTY:

    @pytest.mark.timeout(1200)  # each route, and some hash a password: 256 s beside other work
    async def test_naughty_strings(http: aiohttp.ClientSession, posts: list[Post]) -> None:
        await _strange_texts(http, posts, NAUGHTY)


def test_nothing_was_logged_as_our_fault(services: dict[str, str]) -> None:
    """Last of the module: every refusal was foreseen."""
    for log in Path(services["LOGS"]).glob("*.log"):
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        assert [line for line in lines if line["level"] in {"error", "fatal"}] == []
