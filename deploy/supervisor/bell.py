"""A one-way switch that threads and signal handlers share: rung once, it stays rung."""

import os
import select


class Bell:
    """Waiting on it costs nothing and ends at once when it rings; `ring` is safe in a signal handler."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def ring(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def has_rung(self) -> bool:
        return self.wait(0)

    def wait(self, seconds: float, *, also: int | None = None) -> bool:
        """Wait until it rings, `also` (a descriptor) becomes readable, or time is up; True where it rang."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        if also is not None:
            poll.register(also, select.POLLIN)
        return any(descriptor == self._descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000))
