"""`make figures`: write what the benches measured into README.md, between its two markers."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.bench.report import FOLDER

README = Path(__file__).parents[2] / "README.md"
_TABLE: Final = re.compile(r"\n\n(?=`make bench)")
_NAME: Final = re.compile(r"NAME=(\w+)")
_PROFILE: Final = re.compile(r"--profile[ =](\w+)")
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def table(result: Mapping[str, Any]) -> str:
    """One bench: its command, its machine, its ratios and its plain figures."""
    machine = result["machine"]
    name = result["bench"].partition("-")[0]
    command = f"make bench NAME={name}" + (f' ARGS="{result["arguments"]}"' if result["arguments"] else "")
    lines = [
        f"`{command}`, {result['measured_at'][:10]}, {machine['cpus']} cores, "
        f"{machine['memory_mb'] // 1024} GB, Python {machine['python']}:",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    lines += [f"| ratio: {words(name)} | {value} |" for name, value in result["ratios"].items()]
    for name, value in result["figures"].items():
        if isinstance(value, Mapping):
            shown = ", ".join(f"{key} {part}" for key, part in value.items() if not isinstance(part, Mapping))
        else:
            shown = str(value)
        if shown:
            lines.append(f"| {words(name)} | {shown} |")
    return "\n".join(lines)


def words(name: str) -> str:
    return name.replace("_", " ")


def record(text: str, results: list[Mapping[str, Any]]) -> str:
    """The README with these results in place of older ones; benches that did not run here keep theirs.

    Raises:
        ValueError: where a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    known, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md needs the markers {BEGIN} and {END}")
    tables = {_of(each): each for each in _TABLE.split(known.strip()) if each}
    tables |= {_of(each): each for each in map(table, results)}
    body = "\n\n".join(tables[bench] for bench in sorted(tables))
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def _of(table_of: str) -> tuple[str, str]:
    """Name and profile of the bench in the command above a table; run with other arguments it is still the same."""
    command = table_of.partition("`, ")[0]
    return _NAME.findall(command)[0], "".join(_PROFILE.findall(command))


def main() -> int:
    results = [json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))]
    README.write_text(record(README.read_text(), results))
    sys.stderr.write(
        f"README.md: figures of {', '.join(result['bench'] for result in results) or 'no bench'}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
