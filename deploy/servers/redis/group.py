"""One Redis master, its replicas, and the sentinels that make a replica the master when it is gone.

Who is the master is in the sentinels' own files, which they write (and sync) before anybody else
hears of it. So every start of a server, after a crash as after a night, reads it there. A master
that died while the sentinels watch waits for their decision and comes back as a replica: were it
back while they replace it, there would be two for a moment, and what the old one took would be
lost. For the same reason one that only hung takes no writes: no replica follows it any more.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from deploy.component import Component
from deploy.servers.redis import ENVIRONMENT, quoted, redis
from deploy.servers.resp import ask, pings

NAME: Final = "headrace"
"""What the sentinels call the master; the path of HEADRACE_CACHE_URL."""
SERVERS: Final = ("redis", "redis-replica-1", "redis-replica-2")
"""The first is the master of a new installation."""
SENTINELS: Final = ("sentinel-1", "sentinel-2", "sentinel-3")

DECIDED_SECONDS: Final = 8.0
"""How long a dead master waits for its successor; where none is found it leads again."""

_TEMPLATE = Path(__file__).parent / "sentinel.conf"
_QUORUM: Final = len(SENTINELS) // 2 + 1
_MONITOR = re.compile(rf"^sentinel monitor {NAME} \S+ (\d+) \d+$", re.MULTILINE)
_EPOCH = re.compile(rf"^sentinel config-epoch {NAME} (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Group:
    """All servers of one installation, below its data folder."""

    data: Path
    ports: Mapping[str, int]
    """Of each name in `SERVERS` and `SENTINELS`."""
    password: str
    """Of servers and sentinels; letters and digits, because a sentinel writes it down without quotes."""
    program: Path

    def components(self) -> list[Component]:
        """Servers first. Ready is a master, or a replica that follows; a sentinel that could act."""
        return [*map(self._server, SERVERS), *map(self._sentinel, SENTINELS)]

    def master(self) -> int:
        """Port of the master as the sentinels last wrote it, of the first server where none has."""
        found: list[tuple[int, int]] = []
        for name in SENTINELS:
            try:
                text = self._sentinel_file(name).read_text()
            except FileNotFoundError:
                continue
            if monitor := _MONITOR.search(text):
                epoch = _EPOCH.search(text)
                found.append((int(epoch[1]) if epoch else 0, int(monitor[1])))
        servers = [self.ports[name] for name in SERVERS]
        known = [pair for pair in found if pair[1] in servers]
        return max(known)[1] if known else servers[0]

    def _decided_master(self, port: int) -> int:
        """The master, once the sentinels that run have replaced the server at `port`, which is not running."""
        watching = [name for name in SENTINELS if pings(self.ports[name], self.password)]
        deadline = time.monotonic() + (DECIDED_SECONDS if len(watching) >= _QUORUM else 0.0)
        while self.master() == port and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.master()

    def _server(self, name: str) -> Component:
        port = self.ports[name]

        def replication() -> str:
            master = self._decided_master(port)
            return "\n".join(
                (
                    f'masterauth "{quoted(self.password)}"',
                    "replica-announce-ip 127.0.0.1",
                    "repl-diskless-sync-delay 0",
                    # else a master that was replaced takes writes until it hears of it
                    "min-replicas-to-write 1",
                    *([] if master == port else [f"replicaof 127.0.0.1 {master}"]),
                )
            )

        def trouble() -> str:
            facts = self._replication(port)
            if facts.get("role") != "slave":
                return ""
            return f"receives no changes from the master at 127.0.0.1:{facts.get('master_port', '?')}"

        return redis(
            self.data, port, self.password, server=self.program, name=name, replication=replication,
            ready=lambda: _follows_or_leads(self._replication(port)), trouble=trouble,
        )  # fmt: skip

    def _replication(self, port: int) -> dict[str, str]:
        """What the server says of its part and of loading its data; empty where it does not answer."""
        answer = ask(port, self.password, "INFO", "replication", "persistence")
        lines = answer.splitlines() if isinstance(answer, str) else []
        return {key: value for key, separator, value in (line.partition(":") for line in lines) if separator}

    def _sentinel_file(self, name: str) -> Path:
        return self.data / name / "sentinel.conf"

    def _sentinel(self, name: str) -> Component:
        port, file = self.ports[name], self._sentinel_file(name)
        given = file.with_name("given.conf")

        def prepare() -> None:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            wanted = self._filled(name, self.ports[SERVERS[0]])
            if file.exists() and given.exists() and given.read_text() == wanted:
                return  # it knows the others, the master and what it voted for
            for target, text in ((file, self._filled(name, self.master())), (given, wanted)):
                target.touch(mode=0o600)
                target.write_text(text)

        return Component(
            name=name,
            argv=(str(self.program), str(file), "--sentinel"),
            env=ENVIRONMENT,
            address=f"127.0.0.1:{port}",
            prepare=prepare,
            ready=lambda: self._could_act(port),
            trouble=lambda: _first_line(ask(port, self.password, "SENTINEL", "CKQUORUM", NAME)),
            # with the servers there it knows all of them at once, else it looks again after ten seconds;
            # and it goes before them, so that nobody is promoted while all stop
            needs=SERVERS,
        )

    def _filled(self, name: str, master: int) -> str:
        return Template(_TEMPLATE.read_text()).substitute(
            port=self.ports[name], folder=quoted(str(self.data / name)), password=quoted(self.password),
            group=NAME, master=master, quorum=_QUORUM,
        )  # fmt: skip

    def _could_act(self, port: int) -> bool:
        """It reaches enough of the others for a decision, and knows all replicas."""
        if not _first_line(ask(port, self.password, "SENTINEL", "CKQUORUM", NAME)).startswith("OK"):
            return False
        replicas = ask(port, self.password, "SENTINEL", "REPLICAS", NAME)
        return isinstance(replicas, list) and len(replicas) >= len(SERVERS) - 1


def _follows_or_leads(facts: Mapping[str, str]) -> bool:
    if facts.get("loading") != "0":
        return False
    return facts.get("role") == "master" or facts.get("master_link_status") == "up"


def _first_line(answer: object) -> str:
    return answer.partition("\n")[0] if isinstance(answer, str) else ""
