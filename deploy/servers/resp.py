"""Single commands over the Redis protocol by hand: the client library would cost the launcher 19 MB for them."""

import socket
from typing import BinaryIO

Answer = str | list["Answer"] | None


def pings(port: int, password: str) -> bool:
    """True where the server on loopback takes the password and answers PING, False for "not yet"."""
    return ask(port, password, "PING") == "PONG"


def ask(port: int, password: str, *words: str) -> Answer:
    """The answer of the server on loopback to one command; None where it does not answer within seconds.

    An error is its text, such as `NOQUORUM 1 usable Sentinels…`; a wrong password is None.
    """
    request = _command("AUTH", password) + _command(*words)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(2)
            connection.sendall(request)
            with connection.makefile("rb") as answer:
                return _read(answer) if answer.readline() == b"+OK\r\n" else None
    except (OSError, ValueError):
        return None


def _read(stream: BinaryIO) -> Answer:
    """One value of RESP2.

    Raises:
        ValueError: the connection ended in the middle.
    """
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ValueError("the answer ends early")
    kind, rest = line[:1], line[1:-2].decode(errors="replace")
    if kind == b"$":
        size = int(rest)
        return None if size < 0 else stream.read(size + 2)[:-2].decode(errors="replace")
    if kind == b"*":
        return [_read(stream) for _ in range(int(rest))]
    return rest


def _command(*words: str) -> bytes:
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
