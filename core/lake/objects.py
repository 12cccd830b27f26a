"""The files of a table as objects: which there are by the log, and their bytes."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler

from core.lake import Lake


class ObjectLostError(Exception):
    """The store does not have the object."""


@dataclass(frozen=True, slots=True)
class Named:
    """A file as the table's log names it."""

    path: str
    bytes: int
    records: int


def named(handle: DeltaTable) -> dict[str, Named]:
    """The files of the table as the handle sees it, by path."""
    actions = pl.DataFrame(handle.get_add_actions()).select("path", "size_bytes", "num_records")
    return {path: Named(path, size, records) for path, size, records in actions.iter_rows()}


def content(lake: Lake, table: str, path: str) -> bytes:
    """All bytes of one file of the table, as they lie in the store now.

    Raises:
        ObjectLostError: it is not there.
        OSError: the store does not answer.
    """
    store = DeltaStorageHandler(lake.uri(table), lake.options())
    try:
        found: bytes = store.open_input_file(path).read()
    except FileNotFoundError:
        raise ObjectLostError(f"{table}/{path} is not in the object store") from None
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flush(lake: Lake, table: str, paths: Iterable[str]) -> None:
    """fsync these files of a table and all of its log, checkpoints included, where it lies in a folder.

    delta-rs fsyncs nothing, and a checkpoint replaces entries that were: whoever destroys another copy of
    the facts makes sure here that this one survives a power loss.
    """
    if not lake.local:
        return
    root = Path(lake.uri(table))
    log = root / "_delta_log"
    for path in paths:
        _fsync(root / path)
    for entry in [each for each in log.iterdir() if each.is_file()]:
        with suppress(FileNotFoundError):  # cleaned up meanwhile: what replaces it is here as well
            _fsync(entry)
    for folder in (log, root, root.parent):
        _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
