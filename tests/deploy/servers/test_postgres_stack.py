"""PostgreSQL 15 by the recipe: the pair heals after SIGKILL, and a replica that lost its place is cloned again."""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from deploy.component import Component
from deploy.provision import Programs
from deploy.servers import postgres_stack
from deploy.servers.postgres_stack import Account, ordinary_account, system_account
from tests.deploy.servers.conftest import Run
from tests.servers import free_port, kill, stop, wait_for


@dataclass
class Pair:
    """One installation's primary and replica; ports may be drawn anew between starts."""

    folder: Path
    binaries: Path
    account: Account
    superuser: str = field(default_factory=lambda: secrets.token_hex(16))
    replication: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = field(default_factory=free_port)
    replica_port: int = field(default_factory=free_port)

    def primary(self) -> Component:
        return postgres_stack.primary(
            self.folder, self.port, self.superuser, binaries=self.binaries, account=self.account
        )

    def replica(self) -> Component:
        return postgres_stack.replica(
            self.folder, self.replica_port, self.port, superuser_password=self.superuser,
            replication_password=self.replication, binaries=self.binaries, account=self.account,
        )  # fmt: skip

    def ask(self, statement: str, *, on_replica: bool = False) -> Any:
        """The first column of the first row, None where there is no row."""
        port = self.replica_port if on_replica else self.port
        with closing(
            psycopg2.connect(
                host="127.0.0.1", port=port, user="postgres", password=self.superuser, dbname="postgres"
            )
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    def write(self, number: int) -> None:
        self.ask("create table if not exists numbers (n int primary key)")
        self.ask(f"insert into numbers values ({number})")

    def replicates(self, number: int) -> None:
        """Write on the primary and wait until the replica shows it."""
        self.write(number)
        wait_for(lambda: self._on_replica(number))

    def _on_replica(self, number: int) -> bool:
        try:
            return self.ask(f"select n from numbers where n = {number}", on_replica=True) is not None
        except psycopg2.Error:
            return False


# every account that this user may become: the user namespace of root and Debian's own user are two paths
ACCOUNTS = [ordinary_account, *([system_account] if os.geteuid() == 0 else [])]


@pytest.fixture(params=ACCOUNTS, ids=lambda account: account.__name__)
def pair(request: pytest.FixtureRequest, stack_programs: Programs) -> Iterator[Pair]:
    """A pair in a folder of mode 0700, opened only for the account that is another user."""
    account = request.param()
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    if account.owner is not None:
        folder.chmod(0o711)
    yield Pair(folder / "one", stack_programs.postgres, account)
    shutil.rmtree(folder)


def test_pair_heals(pair: Pair, run: Run) -> None:
    primary = run(pair.primary())
    replica = run(pair.replica())
    pair.replicates(1)
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        pair.ask("insert into numbers values (0)", on_replica=True)

    kill(primary)
    assert pair.ask("select count(*) from numbers", on_replica=True) == 1, "reads go on"
    wait_for(lambda: not pair.replica().ready())
    primary = run(pair.primary())
    wait_for(pair.replica().ready)
    pair.replicates(2)

    kill(replica)
    pair.write(3)
    replica = run(pair.replica())
    pair.replicates(4)

    kill(primary)
    kill(replica)
    pair.port, pair.replica_port = free_port(), free_port()
    pair.replica().prepare()  # the clone is kept while there is nobody to ask
    primary = run(pair.primary())
    replica = run(pair.replica())
    pair.replicates(5)
    assert pair.ask("select count(*) from numbers", on_replica=True) == 5

    stop(pair.replica(), replica)
    stop(pair.primary(), primary)
    assert (replica.returncode, primary.returncode) == (0, 0), (
        "stopped by themselves, not by the final SIGKILL"
    )


def test_replica_is_cloned_again_where_it_cannot_follow(pair: Pair, run: Run) -> None:
    primary = run(pair.primary())
    replica = run(pair.replica())
    pair.replicates(1)
    clone = (pair.folder / "postgres-replica").stat().st_ino

    stop(pair.replica(), replica)
    replica = run(pair.replica())
    assert (pair.folder / "postgres-replica").stat().st_ino == clone, "kept while it can follow"
    stop(pair.replica(), replica)

    pair.ask("select pg_drop_replication_slot('replica')")
    replica = run(pair.replica())
    assert (pair.folder / "postgres-replica").stat().st_ino != clone, "its slot was gone"
    pair.replicates(2)

    kill(replica)
    kill(primary)
    shutil.rmtree(pair.folder / "postgres")
    run(pair.primary())
    pair.write(7)
    run(pair.replica())
    pair.replicates(8)
    assert pair.ask("select count(*) from numbers", on_replica=True) == 2, "the other cluster's rows are gone"


def test_first_clone_needs_the_primary(pair: Pair) -> None:
    with pytest.raises(RuntimeError, match=f"needs the primary at 127.0.0.1:{pair.port}"):
        pair.replica().prepare()


def test_passwords_are_needed_and_not_shown(pair: Pair, run: Run) -> None:
    run(pair.primary())
    run(pair.replica())
    for component in (pair.primary(), pair.replica()):
        command = " ".join((*component.argv, *component.env.values()))
        assert pair.superuser not in command
        assert pair.replication not in command
    assert stat.S_IMODE((pair.folder / "postgres-replica.pgpass").stat().st_mode) == 0o600
    for port in (pair.port, pair.replica_port):
        for user, password in (("postgres", pair.replication), ("hr_replication", pair.superuser)):
            with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
                psycopg2.connect(host="127.0.0.1", port=port, user=user, password=password, dbname="postgres")


def test_a_folder_that_the_account_cannot_enter_is_refused(tmp_path: Path, stack_programs: Programs) -> None:
    blocked = Account(("false",), (os.geteuid(), os.getegid()))
    component = postgres_stack.primary(
        tmp_path, free_port(), secrets.token_hex(8), binaries=stack_programs.postgres, account=blocked
    )
    with pytest.raises(RuntimeError, match="user postgres cannot enter"):
        component.prepare()
