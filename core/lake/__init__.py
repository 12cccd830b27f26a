"""The lake: Delta tables on the object store, read by Polars, DuckDB, Spark or Trino alike.

It brings the data stack with it; services must not import it.
"""

import os
import shutil
import time
from collections.abc import Collection
from typing import Final
from urllib.parse import unquote, urlsplit

from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSelector, PyFileSystem

from core.settings import ObjectSettings

BUCKET = "lake"
CONFIGURATION = {
    "delta.checkpointInterval": "5",
    "delta.logRetentionDuration": "interval 6 hours",
    "delta.deletedFileRetentionDuration": "interval 7 days",
}
"""A checkpoint each 5 commits keeps opening a table flat (with one each 20 a slice of 5,000 events costs 7 % more), and
so does a short log: on a folder every look lists all of its entries (11 ms for 3,000, measured). Older versions are
not read by anything of ours: usage as it was known earlier is read by slice (`assets.usage.asof`), and a snapshot is a
file of its own."""

TRUSTED_SECONDS: Final = 600.0
"""Far below the log's retention."""


class Handle(DeltaTable):
    """A table at a version. What an application id says there is asked once: delta-rs goes through the log each time
    (1.3 ms, measured, and a slice asks forty times)."""

    _at = -1
    _said: dict[str, int | None]

    def transaction_version(self, app_id: str) -> int | None:
        version = self.version()
        if version != self._at:
            self._at, self._said = version, {}
        if app_id not in self._said:
            self._said[app_id] = super().transaction_version(app_id)
        return self._said[app_id]


class Lake:
    """Where tables live and how to reach them. For one piece of work at a time."""

    def __init__(self, settings: ObjectSettings, *, generation: int = 1, of: Collection[str] = ()) -> None:
        """Args:
        generation: which generation of the tables `of` is meant; all other tables have one only.
        """
        self._settings, self._generation, self._of = settings, generation, frozenset(of)
        self._handles: dict[str, tuple[Handle, float]] = {}
        parts = urlsplit(settings.objects_url)
        if parts.scheme == "file":
            self._root = f"{unquote(parts.path)}/{BUCKET}"
        elif parts.scheme in {"s3", "s3s"}:
            self._root = f"s3://{settings.objects_bucket_prefix}{BUCKET}"
        else:
            raise ValueError(
                f"HEADRACE_OBJECTS_URL is {settings.objects_url!r}; use s3://, s3s:// or file://"
            )
        self._local = parts.scheme == "file"
        self._endpoint = f"{'https' if parts.scheme == 's3s' else 'http'}://{parts.netloc}"

    @property
    def local(self) -> bool:
        """True on a folder of this machine, where delta-rs does not fsync."""
        return self._local

    @property
    def generation(self) -> int:
        """Of the tables that can be made anew beside what is in use."""
        return self._generation

    def uri(self, table: str) -> str:
        return f"{self._root}/{self._folder(table)}"

    def _folder(self, table: str) -> str:
        return f"{table}.{self._generation}" if self._generation > 1 and table in self._of else table

    def options(self) -> dict[str, str]:
        """Storage options of delta-rs and Polars. Without the time-outs a write to a dead store hangs."""
        if self._local:
            return {}
        access, secret = self._settings.objects_access_key, self._settings.objects_secret_key
        return {
            "aws_endpoint_url": self._endpoint,
            "aws_allow_http": "true",
            "aws_access_key_id": access.get_secret_value() if access else "",
            "aws_secret_access_key": secret.get_secret_value() if secret else "",
            "aws_region": self._settings.objects_region,
            "timeout": "30s",
            "connect_timeout": "1s",
        }

    def open(self, table: str, *, version: int | None = None) -> DeltaTable | None:
        """A handle on the table as it is now (or was), None where it was never written.

        As it is now, it is the same handle each time, brought forward: that costs a fifth of opening it.
        Whoever holds it sees it move.
        """
        if version is None and table in self._handles:
            handle, since = self._handles[table]
            if not self._is_newest(handle, table, since):
                handle.update_incremental()
            return handle
        try:
            handle = Handle(self.uri(table), version=version, storage_options=self.options() or None)
        except TableNotFoundError:
            return None
        if version is None:
            self._handles[table] = handle, time.monotonic()
        return handle

    def _is_newest(self, handle: DeltaTable, table: str, since: float) -> bool:
        """True where it is sure that no commit came after the handle's.

        Versions are dense, so one look for the next entry says it; bringing a handle forward lists the
        whole log on a folder (4 ms for 400 entries, ten times a slice). A handle that is not young may
        be so old that the next entry was cleaned up again.
        """
        young = time.monotonic() - since < TRUSTED_SECONDS
        return (
            self._local
            and young
            and not os.path.exists(f"{self.uri(table)}/_delta_log/{int(handle.version()) + 1:020d}.json")
        )

    def drop(self, table: str) -> None:
        """Delete a table with all its files; nothing where it does not exist."""
        self.forget(table)
        if self._local:
            shutil.rmtree(self.uri(table), ignore_errors=True)
        elif self.open(table) is not None:
            store = PyFileSystem(DeltaStorageHandler(self.uri(table), self.options()))
            found = store.get_file_info(FileSelector("", recursive=True))
            # The log last: until it is gone, a drop that died can be done again.
            for path in sorted(
                (each.path for each in found if each.is_file), key=lambda path: "_delta_log" in path
            ):
                store.delete_file(path)
            self.forget(table)

    def forget(self, table: str) -> None:
        """Open the table anew the next time, whatever state its handle was left in."""
        self._handles.pop(table, None)
