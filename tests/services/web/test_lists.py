"""Lists lead on to what stands behind the part that a page shows."""

import json
import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from sqlalchemy import text

from core.database import Database, tenant
from services.web.pages import LANGUAGES
from tests.services.web.conftest import Browser, Site, new_owner
from tests.services.web.lists_double import ListsDouble, agent, base, conversation, document, message
from tests.services.web.test_pages import STATIC

TALK = "/api/v1/conversations/conv_001"
BASES, AGENTS = "/api/v1/knowledge-bases", "/api/v1/agents"


@pytest.fixture
async def lists(site: Site, browser: Browser, email: str) -> AsyncIterator[ListsDouble]:
    """Of somebody who is signed in."""
    double = ListsDouble()
    async with double.serving(site.lists_port):
        await browser.sign_in(email)
        yield double


def link(text: str, word: str) -> str:
    """Query behind a link with this text; empty where there is none."""
    found = re.search(rf'href="(\?[^"]+)">{LANGUAGES["en"][word]}</a>', text)
    return found[1].replace("&amp;", "&") if found else ""


async def test_conversations_go_on_behind_the_newest_50(browser: Browser, lists: ListsDouble) -> None:
    lists.lists["/api/v1/conversations"] = [conversation(number) for number in range(51, 0, -1)]
    first = (await browser.get("/conversations")).text
    assert re.findall(r"Talk (\d+)", first) == [f"{number:03d}" for number in range(51, 1, -1)]
    assert link(first, "more") == "?after=conv_002"
    browser.language = "zh"
    assert f'">{LANGUAGES["zh"]["more"]}</a>' in (await browser.get("/conversations")).text
    browser.language = "en"
    rest = (await browser.get("/conversations" + link(first, "more"))).text
    assert re.findall(r"Talk (\d+)", rest) == ["001"]
    assert not link(rest, "more")


async def test_documents_go_on_behind_the_newest_100_of_their_base(
    browser: Browser, lists: ListsDouble
) -> None:
    bases = [{"id": f"kb_{number}", "name": f"Base {number}"} for number in (2, 1)]
    lists.lists["/api/v1/knowledge-bases"] = bases
    lists.lists["/api/v1/knowledge-bases/kb_1/documents"] = [document(number) for number in range(101, 0, -1)]
    first = (await browser.get("/documents?base=kb_1")).text
    assert re.findall(r">file (\d+)<", first) == [f"{number:03d}" for number in range(101, 1, -1)]
    assert link(first, "more") == "?base=kb_1&after=doc_002"
    rest = (await browser.get("/documents" + link(first, "more"))).text
    assert re.findall(r">file (\d+)<", rest) == ["001"]
    assert not link(rest, "more")


async def test_knowledge_bases_go_on_behind_the_newest_100(browser: Browser, lists: ListsDouble) -> None:
    lists.lists[BASES] = [base(number) for number in range(101, 0, -1)]
    lists.things[f"{BASES}/kb_001"] = base(1)
    lists.lists[f"{BASES}/kb_001/documents"] = [document(number) for number in range(101, 0, -1)]
    first = (await browser.get("/documents")).text
    assert re.findall(r">Base (\d+)</a>", first) == [f"{number:03d}" for number in range(101, 1, -1)]
    assert link(first, "more_bases") == "?bases=kb_002"
    rest = (await browser.get("/documents" + link(first, "more_bases"))).text
    assert re.findall(r">Base (\d+)</a>", rest) == ["001"]
    assert not link(rest, "more_bases")
    assert '<a href="/documents?base=kb_001&amp;bases=kb_002" aria-current="page">' in rest
    assert link(rest, "more") == "?base=kb_001&bases=kb_002&after=doc_002"
    # A link to it from elsewhere names no part of the list.
    direct = (await browser.get("/documents?base=kb_001")).text
    assert re.findall(r">Base (\d+)</a>", direct)[:2] == ["001", "101"]
    assert 'data-base="kb_001"' in direct
    unknown = await browser.get("/documents?base=kb_0/../x")
    assert (unknown.status, 'data-base="kb_101"' in unknown.text) == (200, True)


async def test_agents_go_on_behind_the_newest_100(browser: Browser, lists: ListsDouble) -> None:
    lists.lists[AGENTS] = [agent(number) for number in range(101, 0, -1)]
    lists.things[f"{AGENTS}/agt_001"] = agent(1)
    talks = [conversation(number) | {"agent_id": f"agt_{number:03d}"} for number in (101, 1, 0)]
    lists.lists["/api/v1/conversations"] = talks
    first = (await browser.get("/conversations")).text
    assert re.findall(r'<option value="agt_(\d+)"', first) == [
        f"{number:03d}" for number in range(101, 1, -1)
    ]
    assert re.findall(r'"dim">(.*) ·', first) == ["Agent 101", "Agent 001", ""]
    assert link(first, "more_agents") == "?agents=agt_002"
    rest = (await browser.get("/conversations" + link(first, "more_agents"))).text
    assert re.findall(r'<option value="agt_(\d+)"', rest) == ["001"]
    assert not link(rest, "more_agents")


async def test_keys_go_on_behind_the_newest_100(
    browser: Browser, system_database: Database, app_database: Database
) -> None:
    organisation, email = await new_owner(system_database)
    with tenant(organisation):
        async with app_database.writer() as connection:
            await connection.execute(
                text(
                    """
                    insert into api_key (tenant_id, id, public_id, name, key_sha256, scopes, created_by)
                    select :tenant, 'key_' || lpad(n::text, 3, '0'), :tenant || n, 'Key ' || lpad(n::text, 3, '0'),
                           sha256(''), array['usage:read'], 'usr_1' from generate_series(1, 101) n
                    """
                ),
                {"tenant": organisation},
            )
    await browser.sign_in(email)
    first = (await browser.get("/keys")).text
    assert re.findall(r">Key (\d+)<", first) == [f"{number:03d}" for number in range(101, 1, -1)]
    assert link(first, "more") == "?after=key_002"
    rest = (await browser.get("/keys" + link(first, "more"))).text
    assert re.findall(r">Key (\d+)<", rest) == ["001"]
    assert not link(rest, "more")


async def test_states_are_kept_fresh_of_the_documents_on_the_page(
    browser: Browser, lists: ListsDouble
) -> None:
    lists.lists["/api/v1/knowledge-bases"] = [{"id": "kb_1", "name": "Base"}]
    documents = [document(number) for number in range(101, 1, -1)]
    lists.lists["/api/v1/knowledge-bases/kb_1/documents"] = [*documents, document(1, "parsing")]
    for after, moving in (("", ""), ("doc_002", "yes")):
        shown = (await browser.get(f"/documents?base=kb_1&after={after}")).text
        assert f'data-base="kb_1" data-after="{after}" data-moving="{moving}"' in shown
        states = json.loads((await browser.get(f"/bases/kb_1/states?after={after}")).text)
        assert [one["id"] for one in states] == re.findall(r'data-document="(\w+)"', shown)
        assert any(one["moving"] for one in states) is bool(moving)
    script = (STATIC / "documents.js").read_text()
    assert '"/states?after=" + encodeURIComponent(table.dataset.after)' in script


async def test_messages_go_back_behind_the_last_100(browser: Browser, lists: ListsDouble) -> None:
    lists.things[TALK] = conversation(1)
    lists.lists[f"{TALK}/messages"] = [message(number) for number in range(101, 0, -1)]
    latest = (await browser.get("/conversations/conv_001")).text
    assert re.findall(r"word (\d+)", latest) == [f"{number:03d}" for number in range(2, 102)]
    assert link(latest, "earlier") == "?after=msg_002"
    earlier = (await browser.get("/conversations/conv_001" + link(latest, "earlier"))).text
    assert re.findall(r"word (\d+)", earlier) == ["001"]
    assert not link(earlier, "earlier")


async def test_what_goes_on_stands_under_the_latest_messages_only(
    browser: Browser, lists: ListsDouble
) -> None:
    lists.things[TALK] = conversation(1)
    lists.lists[f"{TALK}/messages"] = [message(number) for number in range(101, 0, -1)]
    lists.lists[f"{TALK}/runs"] = [{"id": "run_1", "status": "running"}]
    live = ("/static/conversation.js", 'data-run="run_1"', 'id="composer"')
    latest = (await browser.get("/conversations/conv_001")).text
    earlier = (await browser.get("/conversations/conv_001?after=msg_002")).text
    assert all(part in latest for part in live)
    assert not any(part in earlier for part in live)
    back = f'<a href="/conversations/conv_001">{LANGUAGES["en"]["latest"]}</a>'
    assert back in earlier
    assert back not in latest


class Ending(ListsDouble):
    """A run ends between the two lists that its conversation's page reads, whichever comes first."""

    async def answer(self, request: web.Request) -> web.Response:
        answer = await super().answer(request)
        if request.path in {f"{TALK}/messages", f"{TALK}/runs"} and len(self.lists[f"{TALK}/messages"]) == 1:
            self.lists[f"{TALK}/messages"].insert(0, message(2, "assistant", "run_1"))
            self.lists[f"{TALK}/runs"] = [{"id": "run_1", "status": "completed"}]
        return answer


async def test_an_answer_that_ends_while_the_page_loads_is_on_it_once(
    site: Site, browser: Browser, email: str
) -> None:
    double = Ending()
    double.things[TALK] = conversation(1)
    double.lists[f"{TALK}/messages"] = [message(1, "user", "run_1")]
    double.lists[f"{TALK}/runs"] = [{"id": "run_1", "status": "running"}]
    async with double.serving(site.lists_port):
        await browser.sign_in(email)
        shown = (await browser.get("/conversations/conv_001")).text
    assert re.findall(r"word (\d+)", shown) == ["001", "002"]
    assert 'data-run=""' in shown, "its stream would tell it a second time"


async def test_a_cursor_is_text_wherever_it_is_shown(browser: Browser, lists: ListsDouble) -> None:
    lists.lists["/api/v1/knowledge-bases"] = [{"id": "kb_1", "name": "Base"}]
    shown = (await browser.get('/documents?base=kb_1&after="><b>%26limit=1')).text
    assert 'data-after="&#34;&gt;&lt;b&gt;&amp;limit=1"' in shown
