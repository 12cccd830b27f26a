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
        ImportFileError: the file is missing, lacks a named column or has it twice, or a quote in it does not end.
    """
    lines = path.suffix.lower() in JSON_LINES
    if lines and mapped.columns:
        raise ImportFileError(f"{path} has JSON lines, which name their fields: leave --columns out")
    return _json_rows(path, mapped) if lines else _csv_rows(path, mapped)


def _csv_rows(path: Path, mapped: Mapped) -> Iterator[Row]:
    try:
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise ImportFileError(f"cannot open {path}: {error.strerror}") from error
    with file:
        reader = csv.reader(file, strict=True)
        header = list(mapped.columns) or next(_cells(path, reader), (0, None))[1]
        if header is None:
            raise ImportFileError(
                f"{path} is empty; its first line must name the columns, or --columns a,b,c"
            )
        if isinstance(header, csv.Error) or _is_no_text(header):
            raise ImportFileError(f"{path}, line 1: cannot be read as the names of columns in UTF-8")
        if missing := [name for name in mapped.named if name not in header]:
            raise ImportFileError(
                f"{path} has no column {', '.join(missing)}; it has {', '.join(header)}"
                f"{'' if mapped.columns else ' (where this is no header, name them: --columns a,b,c)'}"
            )
        if twice := [name for name in mapped.named if header.count(name) > 1]:
            raise ImportFileError(f"{path} has several columns {', '.join(twice)}; rename all but one")
        for line, cells in _cells(path, reader):
            if isinstance(cells, csv.Error):
                yield line, (), BadRow(line, str(cells))
            elif any(cells):
                yield line, cells, _csv_row(line, cells, header, mapped)


def _cells(path: Path, reader: Any) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Each row of CSV with the line it begins on, or why that line is none.

    Raises:
        ImportFileError: a quote runs over lines and does not end as one, so where rows begin is unknown from there on.
    """
    while True:
        line = reader.line_num + 1
        found: list[str] | csv.Error
        try:
            found = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > line:
                raise ImportFileError(
                    f"{path}, line {line}: a quote is opened and not closed in its cell ({error}, line {reader.line_num})"
                ) from error
            found = error
        yield line, found


def _is_no_text(cells: list[str]) -> bool:
    """True where bytes were not UTF-8: they were read as halves of surrogate pairs (PEP 383)."""
    return any("\udc80" <= letter <= "\udcff" for cell in cells if not cell.isascii() for letter in cell)


def _csv_row(line: int, cells: list[str], header: list[str], mapped: Mapped) -> dict[str, str] | BadRow:
    if _is_no_text(cells):
        return BadRow(line, "is not UTF-8 text")
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
