"""Web, gateway, users and billing as processes, and a browser that is only cookies and forms."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import aiohttp
import bcrypt
import pytest
from multidict import CIMultiDictProxy
from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from core.settings import CacheSettings, DatabaseSettings
from services.users.passwords import prehash
from tests.servers import free_port, running
from tests.services.process import environment, service
from tests.services.users.conftest import add_person

PASSWORD = "the password of who looks at pages"


@dataclass(frozen=True)
class Site:
    address: str
    secure_address: str
    """The same pages as an installation on TLS would serve them."""
    lists_port: int
    """Where agents and memory are looked for; nobody listens but a test's double."""
    environment: dict[str, str]


@pytest.fixture(scope="session")
def site(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("web")
    ports = {name: free_port() for name in ("users", "billing", "gateway", "web", "tls", "lists")}
    variables = environment(
        folder, postgres, valkey, users_port=ports["users"], gateway_port=ports["gateway"]
    ) | {
        "HEADRACE_BILLING_URL": f"http://127.0.0.1:{ports['billing']}",
        "HEADRACE_AGENTS_URL": f"http://127.0.0.1:{ports['lists']}",
        "HEADRACE_MEMORY_URL": f"http://127.0.0.1:{ports['lists']}",
        "HEADRACE_SPOOL_DIR": str(folder / "spool"),
        "HEADRACE_WEB_URL": f"http://127.0.0.1:{ports['web']}",
    }
    tls = {**variables, "HEADRACE_WEB_URL": "https://pages.example.org"}
    with ExitStack() as stack:
        for name in ("users", "billing", "gateway", "web"):
            stack.enter_context(running(service(name, ports[name], variables), folder / f"{name}.log"))
        stack.enter_context(running(service("web", ports["tls"], tls), folder / "tls.log"))
        address, secure_address = (f"http://127.0.0.1:{ports[name]}" for name in ("web", "tls"))
        yield Site(address, secure_address, ports["lists"], variables)


@dataclass
class Page:
    status: int
    text: str
    headers: CIMultiDictProxy[str]
    set_cookies: list[str] = field(default_factory=list)
    location: str = ""

    @property
    def csrf(self) -> str:
        match = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.text)
        assert match, self.text[:500]
        return match[1]


class Browser:
    """Keeps cookies, follows nothing by itself, runs no script."""

    def __init__(self, http: aiohttp.ClientSession, address: str) -> None:
        self._http, self._address = http, address
        self.cookies: dict[str, str] = {}
        self.language = "en"

    async def send(self, method: str, path: str, data: object = None, **headers: str) -> Page:
        sent = {"accept": "text/html", "accept-language": self.language}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._http.request(
            method, self._address + path, data=data, headers=sent, allow_redirects=False
        ) as answer:
            set_cookies = answer.headers.getall("set-cookie", [])
            for one in set_cookies:
                name, _, value = one.partition(";")[0].partition("=")
                if value in ("", '""'):
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = value
            return Page(
                answer.status,
                await answer.text(),
                answer.headers,
                set_cookies,
                answer.headers.get("location", ""),
            )

    async def get(self, path: str, **headers: str) -> Page:
        return await self.send("GET", path, **headers)

    async def post(self, path: str, csrf: str, **fields: str) -> Page:
        return await self.send("POST", path, {**fields, "csrf": csrf})

    async def sign_in(self, email: str, password: str = PASSWORD) -> Page:
        form = await self.get("/sign-in")
        return await self.post("/sign-in", form.csrf, email=email, password=password)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


@pytest.fixture
def browser(http: aiohttp.ClientSession, site: Site) -> Browser:
    return Browser(http, site.address)


@pytest.fixture
async def email(system_database: Database, site: Site) -> str:
    """Of the owner of an organisation of its own, who can sign in."""
    return (await new_owner(system_database))[1]


async def new_owner(system_database: Database) -> tuple[str, str]:
    """(organisation, e-mail)."""
    organisation = new_id("org")
    async with system_database.writer() as connection:
        await connection.execute(
            text("insert into organisation (id, slug, name, plan) values (:id, :slug, 'Pages', 'free')"),
            {"id": organisation, "slug": new_id("t").replace("_", "-")},
        )
    password_hash = bcrypt.hashpw(prehash(PASSWORD), bcrypt.gensalt(4)).decode()
    _, address = await add_person(system_database, password_hash, {organisation: "owner"})
    return organisation, address
