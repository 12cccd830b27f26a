"""A TCP proxy that loses one answer, or one request, on purpose: the outcome is then unknown to the client."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Loss = Literal["request", "answer"]


class LossyProxy:
    """Forwards to 127.0.0.1:`target`. `lose(...)` arms it for the next request that contains a marker."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._marker, self._loss = b"", "answer"
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, loss: Loss, marker: bytes) -> None:
        """Break the connection of the next request whose first line contains `marker`."""
        self._loss, self._marker = loss, marker

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            answering = threading.Event()
            answering.set()
            back = threading.Thread(target=self._answer, args=(server, client, answering), daemon=True)
            back.start()
            while True:
                try:
                    piece = client.recv(1 << 16)
                except OSError:
                    return
                if not piece:
                    return
                first_line = piece.split(b"\r\n", 1)[0]
                if self._marker and first_line.startswith(b"PUT ") and self._marker in first_line:
                    self._marker, loss = b"", self._loss
                    self.lost += 1
                    if loss == "answer":
                        answering.clear()
                        self._forward_whole(client, server, piece)
                        server.recv(1 << 16)
                    return
                server.sendall(piece)

    @staticmethod
    def _forward_whole(client: socket.socket, server: socket.socket, piece: bytes) -> None:
        head, _, body = piece.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        missing = int(lengths[0].split(b":")[1]) - len(body)
        server.sendall(piece)
        while missing > 0:
            more = client.recv(1 << 16)
            server.sendall(more)
            missing -= len(more)

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket, answering: threading.Event) -> None:
        """Bytes back to the client. Peeks, so that an answer that is to be lost is left to its reader."""
        while True:
            try:
                if not server.recv(1, socket.MSG_PEEK):
                    return
                if not answering.is_set():
                    return
                client.sendall(server.recv(1 << 16))
            except OSError:
                return


@contextmanager
def lossy_proxy(target: int) -> Iterator[LossyProxy]:
    proxy = LossyProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
