"""A person in front of the pages: headless Chromium, which tells of every error on its console."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from playwright.sync_api import ConsoleMessage, Locator, Page, sync_playwright

WAIT: Final = 60_000
"""Milliseconds that a page may take to show something."""
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


def chromium() -> Path:
    """Debian's browser. Raises: FileNotFoundError."""
    found = shutil.which("chromium")
    if found is None:
        raise FileNotFoundError(
            "chromium is missing: `apt-get install chromium`, or `headrace provision` as root"
        )
    return Path(found)


@dataclass
class Visitor:
    """One browser window on the pages at `address`."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    """What the console said about our pages: errors, warnings of the policy, exceptions."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(WAIT)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))

    def go(self, path: str) -> None:
        answer = self.page.goto(self.address + path)
        assert answer is not None
        assert answer.status == 200, f"{path}: {answer.status}"

    def sign_in(self, email: str, password: str) -> None:
        self.go("/sign-in")
        self.page.fill("input[name=email]", email)
        self.page.fill("input[name=password]", password)
        self.page.click("main button")
        self.page.wait_for_url("**/conversations")

    def begin(self, agent: str, question: str) -> None:
        """Open a conversation by asking."""
        self.go("/conversations")
        option = self.page.locator("select[name=agent] option", has_text=agent)
        self.page.select_option("select[name=agent]", option.get_attribute("value"))
        self.page.fill("textarea[name=text]", question)
        self.page.click("form.ask button")
        self.page.wait_for_url("**/conversations/cnv_*")

    def ask(self, question: str) -> None:
        """Go on with the conversation that is shown."""
        self.page.fill("#text", question)
        self.page.keyboard.press("Enter")

    @property
    def answers(self) -> Locator:
        return self.page.locator(".message.assistant .text")

    def answered(self, count: int = 1) -> str:
        """Text of the newest of `count` answers, once its run has ended."""
        self.answers.nth(count - 1).wait_for()
        self.settled()
        return self.answers.nth(count - 1).inner_text()

    def settled(self) -> None:
        """The run that is shown has ended. (The pages' policy refuses the eval of `wait_for_function`.)"""
        self.page.locator("#live[aria-busy='false']").wait_for(state="attached")

    def picture(self, file: Path) -> None:
        self.page.screenshot(path=file, animations="disabled")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")


@contextmanager
def visitor(
    address: str, *, language: str = "en", dark: bool = False, width: int = 1120, height: int = 780
) -> Iterator[Visitor]:
    """A fresh browser profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=[*FLAGS])
        context = browser.new_context(
            locale={"en": "en-GB", "zh": "zh-CN"}[language],
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": height},
            reduced_motion="reduce",
        )
        try:
            yield Visitor(context.new_page(), address)
        finally:
            context.close()
            browser.close()
