"""What the authenticator remembers, and what makes it forget."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from aiohttp import web

from services.common.authenticator import MAX_REFUSED, Authenticator, Introspection
from services.common.errors import Problem
from services.common.principal import HEADER, Principal, verify
from services.common.revocations import GRACE, Revoked
from tests.servers import free_port

KEY = b"k" * 32


class Users:
    """Introspection over HTTP; `hold` keeps answers back until it is set."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.asked: list[str] = []
        self.revoked: set[str] = set()
        self.hold = asyncio.Event()
        self.hold.set()
        self.arrived = asyncio.Semaphore(0)

    async def introspect(self, request: web.Request) -> web.Response:
        assert verify(request.headers[HEADER], KEY).kind == "system"
        key = (await request.json())["key"]
        active = key not in self.revoked and not key.startswith("sk_bad")
        self.asked.append(key)
        self.arrived.release()
        await self.hold.wait()
        principal = Principal(tenant_id="org_1", subject=key, kind="api_key", key_id=f"id_{key}")
        answer = Introspection(active, principal) if active else Introspection(False)
        return web.Response(body=msgspec.json.encode(answer))


@pytest.fixture
async def users() -> AsyncIterator[Users]:
    users = Users(free_port())
    app = web.Application()
    app.router.add_post("/internal/introspect", users.introspect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", users.port).start()
    yield users
    users.hold.set()
    await runner.cleanup()


@pytest.fixture
async def authenticator(users: Users) -> AsyncIterator[Authenticator]:
    async with aiohttp.ClientSession() as http:
        yield Authenticator(users_url=users.url, issuer="", internal_key=KEY, http=http, cache=None)


async def _refused(authenticator: Authenticator, key: str) -> bool:
    try:
        await authenticator.authenticate(key)
    except Problem as problem:
        return problem.status == 401
    return False


async def test_a_revocation_overtakes_an_answer_on_its_way(
    users: Users, authenticator: Authenticator
) -> None:
    """Users said yes before the revocation, the answer arrives after it: it must not be remembered."""
    users.hold.clear()
    early = asyncio.create_task(authenticator.authenticate("sk_1"))
    await asyncio.wait_for(users.arrived.acquire(), 10)
    users.revoked.add("sk_1")
    authenticator.drop(Revoked("key.revoked", key_id="id_sk_1"))
    late = asyncio.create_task(_refused(authenticator, "sk_1"))
    await asyncio.wait_for(users.arrived.acquire(), 10)
    users.hold.set()
    assert (await early).subject == "sk_1"
    assert await late
    assert await _refused(authenticator, "sk_1")


@pytest.mark.parametrize(
    ("event", "forgets"),
    [
        (Revoked("key.revoked", key_id="id_sk_1"), True),
        (Revoked("key.revoked", key_id="id_sk_2"), False),
        (Revoked("person.changed", subject="sk_1"), True),
        (Revoked("organisation.changed", tenant_id="org_1"), True),
        (Revoked("organisation.changed", tenant_id="org_2"), False),
        (Revoked("gap"), True),
        (Revoked("something new"), True),
    ],
)
async def test_it_forgets_what_an_event_names(
    users: Users, authenticator: Authenticator, event: Revoked, forgets: bool
) -> None:
    await authenticator.authenticate("sk_1")
    authenticator.drop(event)
    await authenticator.authenticate("sk_1")
    assert len(users.asked) == (2 if forgets else 1)


async def test_without_news_nothing_is_believed_for_long(users: Users, authenticator: Authenticator) -> None:
    await authenticator.authenticate("sk_1")
    await asyncio.sleep(GRACE + 0.1)
    await authenticator.authenticate("sk_1")
    assert len(users.asked) == 2


async def test_refusals_are_remembered_but_push_nothing_out(
    users: Users, authenticator: Authenticator
) -> None:
    await authenticator.authenticate("sk_1")
    for number in range(3):
        assert await _refused(authenticator, "sk_bad")
        assert await _refused(authenticator, f"sk_bad{number}")
    assert users.asked.count("sk_bad") == 1
    assert MAX_REFUSED < 20_000
    await authenticator.authenticate("sk_1")
    assert users.asked.count("sk_1") == 1


async def test_a_caller_that_gives_up_does_not_spoil_the_answer_of_others(
    users: Users, authenticator: Authenticator
) -> None:
    users.hold.clear()
    first = asyncio.create_task(authenticator.authenticate("sk_1"))
    second = asyncio.create_task(authenticator.authenticate("sk_1"))
    await asyncio.wait_for(users.arrived.acquire(), 10)
    first.cancel()
    users.hold.set()
    assert (await second).subject == "sk_1"
    assert users.asked == ["sk_1"]


async def test_users_away_is_503_and_not_remembered(users: Users, authenticator: Authenticator) -> None:
    async with aiohttp.ClientSession() as http:
        nowhere = f"http://127.0.0.1:{free_port()}"
        away = Authenticator(users_url=nowhere, issuer="", internal_key=KEY, http=http, cache=None)
        for _ in range(2):
            with pytest.raises(Problem) as refusal:
                await away.authenticate("sk_1")
            assert refusal.value.status == 503
