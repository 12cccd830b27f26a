"""Providers: which one a name means, where a tenant may send us, and keys that go in and never come out."""

import asyncio
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from core.contracts.audit import parse
from core.database import Database
from core.security.secret import Secret
from core.settings import ProviderSettings, SecuritySettings, ServiceSettings
from services.agents.providers import Provider, ProviderError, Providers, open_providers
from services.agents.providers.configured import LOCAL_MODELS, configured
from services.agents.providers.egress import Egress, EgressError, GuardedResolver, GuardedTransport, is_public
from tests.doubles.provider import ProviderDouble
from tests.services.agents.platform import Caller
from tests.services.agents.test_conversations import records
from tests.services.process import REPOSITORY

KEY = "sk-secret-0123456789"
PUBLIC = "https://8.8.8.8/v1"
"""Looked at, never called."""


def new_provider(name: str = "mine", **more: object) -> dict[str, object]:
    prices = {"m-1": {"input": "2.5", "output": "10"}}
    return {
        "name": name,
        "base_url": PUBLIC,
        "api_key": KEY,
        "models": ["m-1", "org/m-2"],
        "prices": prices,
        **more,
    }


@pytest.fixture
async def providers(acme: Caller) -> AsyncIterator[Providers]:
    """As another instance with the same keys sees them."""
    variables = acme.platform.environment
    security = SecuritySettings(
        internal_key=variables["HEADRACE_INTERNAL_KEY"], field_key=variables["HEADRACE_FIELD_KEY"]
    )
    database = Database(acme.platform.settings, role="app")
    async with open_providers(ProviderSettings(), ServiceSettings(), security, database) as opened:
        yield opened
    await database.close()


async def test_a_key_goes_in_and_never_comes_out(
    acme: Caller, providers: Providers, system: Database
) -> None:
    created = await acme.post("/api/v1/providers", new_provider())
    path = f"/api/v1/providers/{created['id']}"
    listed = await acme.get("/api/v1/providers")
    assert listed["data"] == [created] == [await acme.get(path)]
    assert {"name": "local", "kind": "openai", "models": [*LOCAL_MODELS]} in listed["platform"]
    assert KEY not in json.dumps([created, listed])
    async with system.reader() as connection:
        stored = await connection.scalar(
            text("select api_key from provider where id = :id"), {"id": created["id"]}
        )
    assert KEY.encode() not in bytes(stored)
    target = await providers.resolve(acme.principal.tenant_id, "mine/m-1")
    assert target.provider.api_key.reveal() == KEY
    assert target.price is not None
    assert target.price.cost(1_000_000, 0, 100_000) == Decimal("3.5")
    assert KEY not in repr(target)


async def test_providers_belong_to_their_organisation(
    acme: Caller, other: Caller, providers: Providers
) -> None:
    created = await acme.post("/api/v1/providers", new_provider())
    path = f"/api/v1/providers/{created['id']}"
    assert (await other.get("/api/v1/providers"))["data"] == []
    for method, body in (("GET", None), ("PATCH", {"models": []}), ("DELETE", None)):
        assert (await other.call(method, path, body)).status == 404
    with pytest.raises(ProviderError, match="no provider mine") as error:
        await providers.resolve(other.principal.tenant_id, "mine/m-1")
    assert error.value.code == "unknown_provider"
    assert [target.name for target in await providers.models(acme.principal.tenant_id)] == [
        "mine/m-1", "mine/org/m-2", "local/local-extractive", "local/multilingual-e5-small",
    ]  # fmt: skip


async def test_changes_are_audited_without_their_content(acme: Caller, providers: Providers) -> None:
    created = await acme.post("/api/v1/providers", new_provider())
    path = f"/api/v1/providers/{created['id']}"
    assert (await acme.call("PATCH", path, {"api_key": "sk-other-1", "models": []})).json["models"] == []
    target = await providers.resolve(acme.principal.tenant_id, "mine/anything")
    assert target.provider.api_key.reveal() == "sk-other-1"
    assert (await acme.call("DELETE", path)).status == 204
    providers.forget(acme.principal.tenant_id)
    with pytest.raises(ProviderError):
        await providers.resolve(acme.principal.tenant_id, "mine/m-1")
    found = await records(acme.platform, "audit.logs", acme.principal.tenant_id)
    assert not [one for one in found if "sk-" in one]
    events = [parse(one.encode()) for one in found]
    assert [(event.action, event.target) for event in events] == [
        (f"provider.{done}", created["id"]) for done in ("create", "change", "delete")
    ]
    assert events[1].detail == {"fields": "api_key,models"}


async def test_a_stored_key_is_sent_nowhere_new(acme: Caller) -> None:
    created = await acme.post("/api/v1/providers", new_provider())
    answer = await acme.call("PATCH", f"/api/v1/providers/{created['id']}", {"base_url": "https://1.1.1.1"})
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "/api_key")


@pytest.mark.parametrize(
    ("head", "raised"),
    [("", httpx2.ReadError), ("content-encoding: gzip\r\n", httpx2.RemoteProtocolError)],
)
async def test_a_tenants_server_cannot_fill_our_memory(head: str, raised: type[Exception]) -> None:
    asked: list[bytes] = []

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode())
        with suppress(OSError):
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    transport = GuardedTransport(Egress(address), max_answer=1 << 20)
    async with server, httpx2.AsyncClient(transport=transport) as http:
        with pytest.raises(raised):
            await http.post(f"http://{address}/v1/chat/completions", json={})
    assert b"accept-encoding: identity" in asked[0].lower()


async def test_names_are_one_providers(acme: Caller, other: Caller) -> None:
    await acme.post("/api/v1/providers", new_provider())
    for name in ("mine", "local"):
        answer = await acme.call("POST", "/api/v1/providers", new_provider(name))
        assert (answer.status, answer.json["code"]) == (409, "name_taken")
    await other.post("/api/v1/providers", new_provider())


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/v1", "https://127.0.0.1/v1", "https://localhost/v1", "https://10.1.2.3", "https://169.254.169.254/latest",
        "https://[::1]/v1", "https://[::ffff:127.0.0.1]/v1", "https://0.0.0.0", "https://2130706433/", "https://user:pw@8.8.8.8/",
        "https://8.8.8.8/?a=b", "ftp://8.8.8.8/", "https://100.64.0.1/", "https://[fd00::1]/", "https://192.0.2.1:99999/",
    ],
)  # fmt: skip
async def test_private_addresses_are_refused(acme: Caller, url: str) -> None:
    answer = await acme.call("POST", "/api/v1/providers", new_provider(base_url=url))
    assert (answer.status, answer.json["code"]) == (422, "address_refused")
    assert (await acme.get("/api/v1/providers"))["data"] == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("64:ff9b::8.8.8.8", True),
        ("127.0.0.1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::10.0.0.1", False), ("2002:7f00:1::", False),
        ("fe80::1%eth0", False), ("224.0.0.1", False), ("255.255.255.255", False),
    ],
)  # fmt: skip
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_a_name_that_turns_private_later_is_not_connected_to() -> None:
    """The check is at each connection: what was allowed when it was stored is asked again."""
    double = ProviderDouble()
    security = SecuritySettings(internal_key=secrets.token_hex(32), field_key=f"1:{secrets.token_hex(32)}")
    for hosts, reached in (("", False), ("localhost", True)):
        settings = ProviderSettings(provider_hosts=hosts)
        async with (
            double.serve() as address,
            open_providers(settings, ServiceSettings(), security, None) as providers,
        ):
            url = address.replace("127.0.0.1", "localhost")
            theirs = Provider("theirs", "openai", url, Secret("x"), (), tenant_id="org_1")
            client = providers.client(theirs)
            if reached:
                assert (await client.get(f"{url}/v1/models")).status_code == 200
            else:
                with pytest.raises(httpx2.ConnectError, match="private network"):
                    await client.get(f"{url}/v1/models")
            platform = Provider("ours", "openai", url, Secret("x"), ())
            assert (await providers.client(platform).get(f"{url}/v1/models")).status_code == 200


async def test_the_same_rule_for_aiohttp() -> None:
    with pytest.raises(EgressError):
        await GuardedResolver(Egress()).resolve("localhost", 443)
    (first, *_) = await GuardedResolver(Egress("localhost:443")).resolve("localhost", 443)
    assert first["family"] in (socket.AF_INET, socket.AF_INET6)


def test_settings_name_providers_in_json_and_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(
        '[[provider]]\nname = "claude"\nkind = "anthropic"\nbase_url = "https://a.example"\napi_key = "k"\n'
    )
    said = json.dumps([{"name": "gpt", "base_url": "https://b.example/v1/", "api_key": KEY, "models": ["m"]}])
    settings = ProviderSettings(providers=SecretStr(said), providers_file=file)
    found = configured(settings, ServiceSettings(extractive_url="http://127.0.0.1:1"))
    assert [(one.name, one.kind, one.base_url) for one in found.values()] == [
        ("local", "openai", "http://127.0.0.1:1/v1"),
        ("gpt", "openai", "https://b.example/v1"),
        ("claude", "anthropic", "https://a.example"),
    ]
    assert KEY not in repr(found)
    for wrong in (
        "{",
        '[{"name": "local", "base_url": "x"}]',
        '[{"name": "a", "base_url": "x", "kind": "gpt"}]',
    ):
        with pytest.raises(ValueError, match="HEADRACE_PROVIDERS"):
            configured(ProviderSettings(providers=SecretStr(wrong)), ServiceSettings())


async def test_a_bare_name_means_the_provider_that_lists_it(acme: Caller, providers: Providers) -> None:
    await acme.post("/api/v1/providers", new_provider())
    tenant_id = acme.principal.tenant_id
    for asked, meant in (
        ("local-extractive", "local/local-extractive"), ("m-1", "mine/m-1"), ("org/m-2", "mine/org/m-2"),
        ("mine/org/m-2", "mine/org/m-2"),
    ):  # fmt: skip
        assert (await providers.resolve(tenant_id, asked)).name == meant
    for asked, code in (("m-9", "unknown_model"), ("mine/m-9", "unknown_model"), ("x/y", "unknown_provider")):
        with pytest.raises(ProviderError) as error:
            await providers.resolve(tenant_id, asked)
        assert error.value.code == code


def test_sdks_that_few_use_are_not_paid_for_by_all() -> None:
    code = "import sys, services.agents.app; print('anthropic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False", "its import takes 2 s and 50 MB in every instance"
