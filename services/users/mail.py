"""Mails of the users service: what they say, and the seam through which they leave.

Until the platform has a service for notifications they are files in a folder, one RFC 5322 message
each, readable by the service's user only: they hold links that act for a person.

Mails leave after the answer, so that an answer takes as long for an address that nobody has.
"""

import asyncio
import os
import time
from datetime import timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlencode

from core.clock import now
from core.ids import new_id
from core.log import Logger
from core.tasks import cancel

MAX_WAITING: Final = 1000
_KEEP: Final = timedelta(days=7)
"""The rule `mail` of core.retention."""
_LOG: Final = Logger("users.mail")


class Mail(Protocol):
    """Takes a message for delivery."""

    async def send(self, message: EmailMessage) -> None:
        """Hand the message over. Raises: OSError where it cannot be taken now."""


class FolderMail:
    """A folder as the post office: `<time>-<id>.eml`, mode 0600, complete as soon as it has its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, message: EmailMessage) -> None:
        await asyncio.to_thread(self._write, bytes(message))

    def forget_old(self) -> int:
        """Delete what is older than a week; returns how many files went."""
        oldest = time.time() - _KEEP.total_seconds()
        old = [file for file in self._folder.glob("*.eml") if file.stat().st_mtime < oldest]
        for file in old:
            file.unlink(missing_ok=True)
        return len(old)

    def _write(self, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{now():%Y%m%dT%H%M%S}-{new_id('mail')}.eml"
        unfinished = self._folder / f"{name}.part"
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        unfinished.rename(self._folder / name)


class Post:
    """Sends in the background, in order; what waits at the end of the process is still sent.

    Args:
        mail: takes the messages.
        pages: public address of the web pages, where links lead.
    """

    def __init__(self, mail: Mail, pages: str) -> None:
        self._mail, self._pages = mail, pages.rstrip("/")
        self._waiting: asyncio.Queue[EmailMessage] = asyncio.Queue(MAX_WAITING)
        self._task = asyncio.create_task(self._run(), name="mail")

    async def close(self) -> None:
        """Send what waits, for at most 5 seconds."""
        try:
            async with asyncio.timeout(5):
                await self._waiting.join()
        except TimeoutError:
            _LOG.error("mails were not sent", left=self._waiting.qsize())
        await cancel(self._task)

    def verify(self, email: str, token: str) -> None:
        self._write(
            email,
            "Confirm your e-mail address",
            "Somebody, probably you, made an account with this address. Confirm it with the password that was chosen:",
            self._link("verify", token),
            "The link works for 24 hours. If it was not you, do nothing: without the password it is of no use.",
        )

    def exists(self, email: str) -> None:
        self._write(
            email,
            "You have an account already",
            "Somebody, probably you, tried to make an account with this address, which has one. Sign in here:",
            f"{self._pages}/sign-in",
            f"If you forgot the password, ask for a new one at {self._pages}/forgot",
        )

    def reset(self, email: str, token: str) -> None:
        self._write(
            email,
            "Choose a new password",
            "Somebody, probably you, asked for a new password. Choose it here:",
            self._link("reset", token),
            "The link works once and for one hour. If it was not you, do nothing: your password stays as it is.",
        )

    def changed(self, email: str) -> None:
        self._write(
            email,
            "Your password was changed",
            "The password of your account was changed, and every session was ended.",
            f"{self._pages}/sign-in",
            f"If it was not you, take the account back now: {self._pages}/forgot",
        )

    def invitation(self, email: str, token: str, organisation: str) -> None:
        self._write(
            email,
            "You are invited",
            f"You are invited to join the organisation {organisation!r}. Accept here:",
            self._link("invitation", token),
            "The link works once and for 7 days.",
        )

    def _link(self, page: str, token: str) -> str:
        return f"{self._pages}/{page}?{urlencode({'token': token})}"

    def _write(self, to: str, subject: str, before: str, link: str, after: str) -> None:
        message = EmailMessage()
        message["To"] = to
        message["From"] = "Headrace <no-reply@localhost.localdomain>"
        message["Subject"] = subject
        message["Date"] = format_datetime(now())
        message["Message-ID"] = f"<{new_id('mail')}@headrace>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(f"{before}\n\n{link}\n\n{after}\n", cte="8bit")
        try:
            self._waiting.put_nowait(message)
        except asyncio.QueueFull:
            _LOG.error("a mail was dropped", waiting=MAX_WAITING)

    async def _run(self) -> None:
        while True:
            message = await self._waiting.get()
            try:
                await self._mail.send(message)
            except OSError as error:
                _LOG.error("a mail was not sent", error=f"{type(error).__name__}: {error}")
            finally:
                self._waiting.task_done()
