"""The pictures of the README: `make pictures` asks the handbook on a fresh installation and photographs the pages.

python -m tests.e2e.pictures [--data DIR]    (with DIR: a running installation, which keeps what is made)
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx2

from deploy.client import Client
from deploy.installation import Installation, load
from tests.e2e.visitor import Visitor, visitor
from tests.services.process import REPOSITORY

PICTURES: Final = REPOSITORY / "docs" / "pictures"
HANDBOOK: Final = REPOSITORY / "docs" / "handbook"
QUESTION: Final = "How long are events of a run kept?"
QUESTION_ZH: Final = "一次运行的事件保留多久？"
PORT_BASE: Final = 21000
MAX_BYTES: Final = 150_000
_HEADRACE: Final = (sys.executable, "-m", "deploy.cli.main")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the pictures of the README.")
    parser.add_argument("--data", type=Path, help="data folder of a running installation")
    given = parser.parse_args().data
    if given is not None:
        photograph(load(given))
        return
    with tempfile.TemporaryDirectory(prefix="headrace-pictures-") as folder:
        subprocess.run(
            [*_HEADRACE, "up", "--detach", "--data", folder, "--port-base", str(PORT_BASE)], check=True
        )
        try:
            photograph(load(Path(folder)))
        finally:
            subprocess.run([*_HEADRACE, "down", "--data", folder], check=False)


def photograph(installation: Installation, folder: Path = PICTURES) -> None:
    """All pictures of one installation, into `folder`.

    Raises: AssertionError where a console complains, a citation does not open its quote, or a file is too large.
    """
    settings = installation.environment
    email, password = settings["HEADRACE_OWNER_EMAIL"], settings["HEADRACE_OWNER_PASSWORD"]
    gateway = settings["HEADRACE_GATEWAY_URL"]
    login = httpx2.post(f"{gateway}/api/v1/auth/login", json={"email": email, "password": password})
    with Client(gateway, login.raise_for_status().json()["access_token"]) as client:
        prepare(client, settings["HEADRACE_WEB_URL"], email, password)
    folder.mkdir(parents=True, exist_ok=True)
    for language, dark, question in (("en", False, QUESTION), ("zh", True, QUESTION_ZH)):
        ending = "" if language == "en" else "-zh"
        with visitor(settings["HEADRACE_WEB_URL"], language=language, dark=dark, height=640) as person:
            person.sign_in(email, password)
            person.begin("Handbook", question)
            person.answered()
            person.page.reload()
            person.page.locator(".sources summary").first.click()
            quotes = [text.split() for text in person.page.locator(".sources blockquote").all_inner_texts()]
            person.picture(folder / f"conversation{ending}.png")
            person.page.locator(".cite").first.click()
            assert person.page.locator("mark#quote").inner_text().split() in quotes, person.page.url
            person.picture(folder / f"source{ending}.png")
            if language == "en":
                for name in ("documents", "usage", "invoice", "operations"):
                    person.go(f"/{name}")
                    person.picture(folder / f"{name}.png")
            assert person.complaints == [], person.complaints
    for file in sorted(folder.glob("*.png")):
        assert file.stat().st_size < MAX_BYTES, f"{file} is larger than {MAX_BYTES} bytes"
        sys.stdout.write(f"{file} {file.stat().st_size} bytes\n")


def prepare(client: Client, web: str, email: str, password: str) -> None:
    """A knowledge base with the handbook, uploaded through the pages, and an agent that answers from it."""
    if not _bases(client):
        with visitor(web) as person:
            person.sign_in(email, password)
            _upload(person)
            assert person.complaints == [], person.complaints
    base = _bases(client)[0]["id"]
    deadline = time.monotonic() + 300
    while any(
        one["state"] != "indexed" for one in client.get(f"/api/v1/knowledge-bases/{base}/documents")["data"]
    ):
        assert time.monotonic() < deadline, "the handbook was not indexed in 5 minutes"
        time.sleep(2)
    if not any(one["slug"] == "handbook" for one in client.get("/api/v1/agents")["data"]):
        client.post(
            "/api/v1/agents",
            {
                "slug": "handbook",
                "name": "Handbook",
                "model": "local/local-extractive",
                "instructions": "Answer from the handbook.",
                "tools": ["knowledge_search"],
                "knowledge_bases": [base],
            },
        )


def _bases(client: Client) -> list[dict[str, Any]]:
    return [one for one in client.get("/api/v1/knowledge-bases")["data"] if one["slug"] == "handbook"]


def _upload(person: Visitor) -> None:
    person.go("/documents")
    person.page.locator("form[action='/bases'] input[name=name]").fill("Handbook")
    person.page.locator("form[action='/bases'] input[name=slug]").fill("handbook")
    person.page.click("form[action='/bases'] button")
    person.page.wait_for_url("**/documents?base=*")
    for file in sorted(HANDBOOK.glob("*.md")):
        person.page.set_input_files("input[type=file]", file)
        person.page.click("form[action='/documents'] button")
        person.page.locator(f"tr:has-text('{file.name}')").wait_for()


if __name__ == "__main__":
    main()
