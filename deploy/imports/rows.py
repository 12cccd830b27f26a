"""Rows of a file, whatever its form: CSV with or without a header, or JSON lines. Pure."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.imports.mapping import BadRow, ImportFileError, Mapped
from deploy.imports.quantities import plain

JSON_LINES: Final = (".jsonl", ".ndjson")
_SHOWN: Final = 20

Row = tuple[int, Sequence[str], Mapping[str, str] | BadRow]
"""Its line, counted from 1; its content, which its identity is made of; its text by column, or why it is bad."""


def rows(path: Path, mapped: Mapped) -> Iterator[Row]:
    """Each row with content: of JSON lines where the name ends so, else of CSV.

    Raises:
        ImportFileError: the file is missing, not text in UTF-8, or lacks a named column.
    """
    lines = path.suffix.lower() in JSON_LINES
    if lines and mapped.columns:
        raise ImportFileError(f"{path} has JSON lines, which name their fields: leave --columns out")
    return _json_rows(path, mapped) if lines else _csv_rows(path, mapped)


def _csv_rows(path: Path, mapped: Mapped) -> Iterator[Row]:
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ImportFileError(f"cannot open {path}: {error.strerror}") from error
    with file:
        reader = csv.reader(file, strict=True)
        try:
            header: list[str] | None = list(mapped.columns) or next(reader, None)
            if header is None:
                raise ImportFileError(
                    f"{path} is empty; its first line must name the columns, or --columns a,b,c"
                )
            if missing := [name for name in mapped.named if name not in header]:
                raise ImportFileError(
                    f"{path} has no column {', '.join(missing)}; it has {', '.join(header)}"
                    f"{'' if mapped.columns else ' (where this is no header, name them: --columns a,b,c)'}"
                )
            line = reader.line_num + 1
            for cells in reader:
                if any(cells):
                    yield line, cells, _csv_row(line, cells, header, mapped)
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise ImportFileError(f"{path} is not UTF-8 text; convert it first") from error
        except csv.Error as error:
            raise ImportFileError(f"{path}, line {reader.line_num}: {error}") from error


def _csv_row(line: int, cells: list[str], header: list[str], mapped: Mapped) -> dict[str, str] | BadRow:
    if len(cells) == len(header):
        return dict(zip(header, cells, strict=True))
    said = "--columns names" if mapped.columns else "the header has"
    return BadRow(line, f"has {len(cells)} columns, {said} {len(header)}")


def _json_rows(path: Path, mapped: Mapped) -> Iterator[Row]:
    """A line that is no JSON is one bad row, for the next begins a new object whatever it holds."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImportFileError(f"cannot open {path}: {error.strerror}") from error
    with file:
        for line, content in enumerate(file, 1):
            text = content.removeprefix(b"\xef\xbb\xbf") if line == 1 else content
            if text.strip():
                try:
                    fields = _object(text)
                    yield line, (_canonical(fields),), _named(fields, mapped)
                except ValueError as error:
                    yield line, (), BadRow(line, str(error))
                except RecursionError:
                    yield line, (), BadRow(line, "is nested too deep")


def _object(text: bytes) -> dict[str, Any]:
    """Numbers stay text: a float would change them."""
    try:
        found = json.loads(
            text.decode(),
            parse_int=str,
            parse_float=plain,
            parse_constant=_no_number,
            object_pairs_hook=_each_name_once,
        )
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.colno}") from None
    if not isinstance(found, dict):
        raise ValueError("is not one JSON object")
    return found


def _no_number(name: str) -> str:
    raise ValueError(f"has {name}, which is no number")


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("names a field twice")
    return fields


def _canonical(fields: dict[str, Any]) -> str:
    """The same for the same content, whatever the order of names, the blanks and the escapes."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _named(fields: dict[str, Any], mapped: Mapped) -> dict[str, str]:
    if missing := [name for name in mapped.named if name not in fields]:
        raise ValueError(f"has no field {', '.join(missing)}; it has {_shown(fields)}")
    for name in mapped.named:
        if not isinstance(fields[name], str):
            raise ValueError(f"field {name}: is neither a number nor text")
    return {name: fields[name] for name in mapped.named}


def _shown(fields: dict[str, Any]) -> str:
    """The first names; half of a surrogate pair, which JSON may hold, cannot be printed."""
    names = ", ".join(list(fields)[:_SHOWN]) + (", …" if len(fields) > _SHOWN else "")
    return names.encode(errors="replace").decode() or "none"
