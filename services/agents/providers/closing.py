"""Streams of answers that are closed with everything that reads them."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import httpx2


class _Closing(httpx2.AsyncByteStream):
    """A response's bytes, read once; `aclose` also ends the generator that reads them.

    Left alone it would stay at its `yield` until the event loop ends, which closes all generators at once:
    the outer ones, which close the inner ones, and these themselves. One of both then fails with
    "aclose(): asynchronous generator is already running".
    """

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream
        self._reader: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._reader = aiter(self._stream)
        return self._reader

    async def aclose(self) -> None:
        reader, self._reader = self._reader, None
        # One that is being read is ended by who reads it.
        if isinstance(reader, AsyncGenerator) and not reader.ag_running:  # type: ignore[attr-defined]
            await reader.aclose()
        await self._stream.aclose()


async def _wrap(response: httpx2.Response) -> None:
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Closing(response.stream)


CLOSING: Final = {"response": [_wrap]}
"""Event hooks of a client."""
