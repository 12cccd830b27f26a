"""The pages in a real browser: a stream that survives a reload and a killed gateway, and a silent console."""

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from sqlalchemy import text

from core.clock import now, rfc3339
from core.database import Database
from core.eventlog import open_eventlog
from core.ids import new_id
from core.messaging import queue_topology
from core.messaging.queues import ATTEMPT, DIED, REASON
from core.queue.api import NewMessage
from core.queue.postgres import PostgresQueue
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings
from core.topology import TOPICS, dead_letters_of
from deploy.component import Component
from deploy.provision import Programs
from deploy.servers.postgres import postgres as postgres_server
from tests.e2e.visitor import Visitor, visitor
from tests.servers import database_settings, free_port, kill, running, start, stop
from tests.services.process import OWNER_EMAIL, OWNER_PASSWORD, REPOSITORY, environment, service
from tests.services.web.lists_double import source

WORDS = 100
ANSWER = " ".join(f"word{number}" for number in range(WORDS))
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> <script>document.title='taken'</script>"
QUOTE = "Pumps are checked each week."
PAGES = (
    *("/conversations", "/documents", "/documents/doc_001", "/usage", "/invoice", "/keys", "/operations"),
    f"/documents/doc_001/versions/1/text?start=0&end={len(QUOTE)}",
)


@dataclass
class Site:
    web: str
    gateway: Component
    process: subprocess.Popen[bytes]
    folder: Path
    gateway_address: str
    provider: str
    database: DatabaseSettings

    def lose_the_gateway(self) -> None:
        """SIGKILL in the middle of whatever it does, and another one in its place."""
        kill(self.process)
        self.process = start(self.gateway, self.folder / "gateway.log")

    def release(self) -> None:
        """Let the model that stands still in the middle of an answer go on."""
        httpx2.put(f"{self.provider}/control", json={"release": True}).raise_for_status()


@pytest.fixture(scope="module")
def site(valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, password = tmp_path_factory.mktemp("pages"), secrets.token_hex(16)
    names = ("postgres", "provider", "users", "billing", "relay", "agents", "gateway", "web", "memory")
    ports = {name: free_port() for name in names}
    with ExitStack() as stack:

        def begin(component: Component) -> None:
            stack.enter_context(running(component, folder / f"{component.name}.log"))

        begin(postgres_server(folder, ports["postgres"], password))
        database = database_settings(ports["postgres"], password)
        asyncio.run(_topics(database))
        begin(_provider(ports["provider"]))
        stack.enter_context(source(QUOTE).beside(ports["memory"]))
        at = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        variables = environment(
            folder, database, valkey, users_port=ports["users"], gateway_port=ports["gateway"]
        ) | {
            "HEADRACE_BILLING_URL": at["billing"],
            "HEADRACE_AGENTS_URL": at["agents"],
            "HEADRACE_MEMORY_URL": at["memory"],
            "HEADRACE_WEB_URL": at["web"],
            "HEADRACE_RELAY_URL": at["relay"],
            "HEADRACE_SPOOL_DIR": str(folder / "spool"),
            "HEADRACE_PROVIDERS": json.dumps(
                [{"name": "double", "base_url": f"{at['provider']}/v1", "api_key": "sk-double"}]
            ),
        }
        for name in ("users", "billing", "relay", "agents", "web"):
            begin(service(name, ports[name], variables))
        gateway = service("gateway", ports["gateway"], variables)
        found = Site(
            at["web"],
            gateway,
            start(gateway, folder / "gateway.log"),
            folder,
            at["gateway"],
            at["provider"],
            database,
        )
        stack.callback(lambda: stop(gateway, found.process))
        _agents(at["gateway"])
        yield found


@pytest.fixture
def person(site: Site, stack_programs: Programs) -> Iterator[Visitor]:
    """Signed in as the owner; at the end the console has said nothing."""
    assert stack_programs.chromium.exists()
    with visitor(site.web) as opened:
        opened.sign_in(OWNER_EMAIL, OWNER_PASSWORD)
        yield opened
        assert opened.complaints == []


@pytest.fixture(scope="module")
def quarantined(site: Site) -> list[str]:
    """A record out of the limits of time and a conflict. (Made before the browser, whose event loop forbids another.)"""
    return asyncio.run(_quarantined(site))


@pytest.fixture(scope="module")
def dead_letters(site: Site) -> None:
    """Two messages that their queue gave up."""
    asyncio.run(_dead_letters(site))


def test_an_answer_survives_a_reload_and_a_killed_gateway(person: Visitor, site: Site) -> None:
    person.begin("Held", "Tell me all of it")
    person.answers.first.wait_for()
    person.page.reload()
    person.answers.filter(has_text="word8").wait_for()
    site.lose_the_gateway()
    ready = person.page.get_by_role("status").filter(has_text="The answer is ready.")
    assert ready.count() == 0
    site.release()
    assert person.answered() == ANSWER
    ready.wait_for()  # among what a screen reader is told
    person.page.reload()
    assert person.answers.all_inner_texts() == [ANSWER]


def test_a_second_question_a_stop_and_hostile_text(person: Visitor) -> None:
    person.begin("Slow", HOSTILE)
    person.answers.first.wait_for()
    person.page.click(".stop button")
    person.settled()
    assert len(person.answers.first.inner_text()) < len(ANSWER)
    person.ask("And again")
    assert person.answered(2) == ANSWER
    for _ in range(2):
        assert HOSTILE in person.page.locator(".message.user .text").first.inner_text()
        assert "taken" not in person.page.evaluate("document.title").split("·")[-1]
        assert person.page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        person.page.reload()


def test_a_person_decides_about_a_call(person: Visitor) -> None:
    form, waits = person.page.locator("form.approval"), "Waits for your decision"
    person.begin("Careful", "What is forty and two?")
    form.wait_for()
    assert "calculator" in form.inner_text()
    assert "40+2" in form.inner_text()
    person.page.reload()  # it is still asked
    person.page.locator("#live .status", has_text=waits).wait_for()
    form.locator("input[name=note]").fill("I can do that myself")
    form.locator("button[value=reject]").click()
    said = person.answered()
    assert "did not allow" in said
    assert "I can do that myself" in said
    person.ask("And now?")
    form.wait_for()
    form.locator("button[value=approve]").click()
    assert "42" in person.answered(2)
    assert not form.is_visible()
    person.page.reload()
    assert not form.is_visible()


def test_a_second_question_is_shown_although_the_run_before_it_ended_meanwhile(person: Visitor) -> None:
    form, stop = person.page.locator("form.approval"), person.page.locator(".stop button")
    person.begin("Careful", "What is forty and two?")
    form.wait_for()
    first = str(form.get_attribute("action"))
    person.ask("And once more?")  # it waits behind the first
    person.page.locator(".message.user").nth(1).wait_for()
    form.locator("button[value=approve]").click()
    person.page.locator(f"form.approval:not([action='{first}'])").wait_for()
    assert stop.is_visible()
    form.locator("button[value=approve]").click()
    assert "42" in person.answered(2)
    assert not stop.is_visible()


def test_usage_over_time_is_a_picture_that_leads_to_its_hours(person: Visitor, site: Site) -> None:
    moment = datetime.now(UTC)
    _use(site.gateway_address, "embedding.tokens", 1234, moment)
    day = moment.date().isoformat()
    cell = person.page.locator("tbody td.n", has_text="1,234")
    for _ in range(60):
        person.go("/usage?meter=embedding.tokens")
        if cell.count():
            break
        person.page.wait_for_timeout(500)
    bar = person.page.locator(f"svg.chart a[href$='day={day}']")
    assert bar.locator("title").text_content() == f"{day[5:]} · 1,234 token"
    bar.click()
    person.page.wait_for_url(f"**/usage?meter=embedding.tokens&day={day}")
    assert f"{moment.hour:02d}:00 · 1,234 token" in person.page.locator("svg.chart title").all_text_contents()


def test_a_person_decides_what_was_not_counted(quarantined: list[str], person: Visitor) -> None:
    decisions = (("Count it", "accepted"), ("Leave it out", "left out"))
    for record, (word, state) in zip(quarantined, decisions, strict=True):
        person.go("/operations")
        person.page.click(f"a[href='/quarantine/{record}']")
        assert person.page.locator("td strong").all_inner_texts() == (["7"] if state == "left out" else [])
        person.page.click(f"main button:has-text('{word}')")
        assert state in person.page.locator(".note").inner_text()
    person.go("/operations")
    assert person.page.locator("a[href^='/quarantine/']").count() == 0


@pytest.mark.usefixtures("dead_letters")
def test_dead_letters_are_sent_again_or_discarded(person: Visitor) -> None:
    letters = person.page.locator("form[action^='/dead-letters/']")
    for left, word in ((4, "Discard"), (2, "Send again"), (0, "")):
        person.go("/operations")
        assert letters.count() == left
        if word:
            person.page.locator(f"main button:has-text('{word}')").first.click()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_has_names_for_what_is_on_it(site: Site, stack_programs: Programs, language: str) -> None:
    assert stack_programs.chromium.exists()
    with visitor(site.web, language=language, dark=language == "zh") as opened:
        opened.sign_in(OWNER_EMAIL, OWNER_PASSWORD)
        opened.begin("Slow", "Tell me all of it")
        for path in (urlsplit(opened.page.url).path, *PAGES):
            opened.go(path)
            assert opened.page.locator("h1").count() == 1, path
            nameless = opened.page.evaluate(
                "[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a')]"
                ".filter(one => !(one.labels?.length || one.textContent.trim() || one.ariaLabel)).length"
            )
            assert nameless == 0, path
            wide = "document.documentElement.scrollWidth <= window.innerWidth"
            assert opened.page.evaluate(wide), f"{path} scrolls sideways"
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate("document.activeElement.className") == "skip"
        opened.page.keyboard.press("Enter")
        assert opened.page.evaluate("location.hash") == "#main"
        assert opened.complaints == []


def _provider(port: int) -> Component:
    return Component(
        name="provider",
        argv=(sys.executable, "-m", "tests.doubles.provider", "--port", str(port)),
        env={"PYTHONUNBUFFERED": "1"},
        cwd=REPOSITORY,
        ready=lambda: _answers(port),
    )


def _answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/v1/models").status_code < 500
    except httpx2.HTTPError:
        return False


def _owner(gateway: str) -> dict[str, str]:
    login = httpx2.post(
        f"{gateway}/api/v1/auth/login", json={"email": OWNER_EMAIL, "password": OWNER_PASSWORD}
    )
    return {"authorization": f"Bearer {login.raise_for_status().json()['access_token']}"}


def _use(gateway: str, meter: str, quantity: int, moment: datetime) -> None:
    event = {
        "specversion": "1.0", "type": "headrace.usage.v1", "id": secrets.token_hex(8), "source": "browser",
        "time": moment.isoformat(), "data": {"meter": meter, "quantity": str(quantity)},
    }  # fmt: skip
    answer = httpx2.post(f"{gateway}/api/v1/usage/events", headers=_owner(gateway), json=[event])
    assert answer.raise_for_status().json()["accepted"] == 1


def _agents(gateway: str) -> None:
    slow = {"slug": "slow", "name": "Slow", "model": f"double/slow={WORDS}", "instructions": "Answer."}
    held = {"slug": "held", "name": "Held", "model": f"double/held={WORDS}", "instructions": "Answer."}
    careful = {
        "slug": "careful", "name": "Careful", "model": 'double/calls=calculator:{"expression":"40+2"}',
        "tools": ["calculator"], "approval": {"calculator": "always"},
    }  # fmt: skip
    for agent in (slow, held, careful):
        httpx2.post(f"{gateway}/api/v1/agents", headers=_owner(gateway), json=agent).raise_for_status()


async def _quarantined(site: Site) -> list[str]:
    """As a slice publishes them."""
    said = {
        "time": "2026-02-18T12:00:00Z",
        "subject": "cus_1",
        "data": {"meter": "tool.calls", "quantity": "5"},
    }
    other = {**said, "data": {"meter": "tool.calls", "quantity": "7"}}
    tenant = httpx2.get(f"{site.gateway_address}/api/v1/me", headers=_owner(site.gateway_address)).json()
    ids = [new_id("uqr") for _ in range(2)]
    system = Database(site.database, role="system")
    async with system.writer() as connection:
        await connection.execute(
            text(
                "insert into usage_quarantine (tenant_id, id, fate, code, kind, received, slice, topic_id, partition,"
                " log_offset, source, event_id, version, counted, lake_version) values (:tenant, :id, 'quarantined',"
                " :code, 'usage', now(), 1, 'x', 0, 0, 'crm', :id, cast(:version as jsonb),"
                " cast(:counted as jsonb), 1)"
            ),
            [
                {
                    "tenant": tenant["organization"], "id": one, "code": code, "version": json.dumps(other),
                    "counted": json.dumps(said) if code == "conflict" else None,
                }
                for one, code in zip(ids, ("out_of_limits", "conflict"), strict=True)
            ],
        )  # fmt: skip
    await system.close()
    return ids


async def _dead_letters(site: Site) -> None:
    async with PostgresQueue(site.database) as queue:
        await queue_topology.ensure(queue)
        when = rfc3339(now()).encode()
        headers = (("x-first-seen", when), (ATTEMPT, b"4"), (REASON, b"TimeoutError: away"), (DIED, when))
        dead = dead_letters_of("notification.push")
        await queue.publish([NewMessage("", dead, new_id("msg"), b"{}", headers) for _ in range(2)])


async def _topics(settings: DatabaseSettings) -> None:
    async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), settings) as log:
        await log.ensure_topics(list(TOPICS.values()))
