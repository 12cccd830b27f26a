"""House laws that ruff and mypy cannot know (`make lint`): money is decimal, and nothing is incremented.

In money modules: no float literal, no `float`, no `round`, no `/`. A float cannot hold a tenth, and `/` on
decimals rounds to 28 digits in silence; `core.decimals.EXACT` raises instead. Paths may be joined to text.
In the kernel of money also no `sum`, which adds in that same context: `core.decimals.total` does not. A line
that ends in `# integers` says that it adds none, and one that ends in `# seconds`, or gives a value to a name that
does, that its floats are spans of time.
Pages are left out: they draw bars from amounts that are finished.

Everywhere: published numbers are absolute. Neither SQL (`set quantity = quantity + …`) nor Python
(`cell.quantity += …`) may add to a column that is published: a retry would add again (law 2).
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("core", "services", "assets", "quality", "sensors", "pipelines", "deploy")
KERNEL: Final = ("core/decimals.py", "core/rating/**/*.py", "core/prices/**/*.py", "core/invoices/**/*.py")
MONEY: Final = (
    *KERNEL,
    "core/aggregation.py",
    "core/conservation.py",
    "services/billing/**/*.py",
    "services/lookup/**/*.py",
    "assets/usage/**/*.py",
)
"""Where amounts and quantities are computed. Each pattern must find a file: one that finds none looks at nothing."""

COUNTS_IN_MEMORY: Final = {
    "services/billing/tail.py": "what arrived behind the published cells: read again from the log at each start",
}
"""Modules that may add to a field of these names, and why that is no published value."""
PUBLISHERS: Final = ("core", "services", "assets", "quality", "sensors", "pipelines")
PUBLISHED: Final = frozenset(
    {"quantity", "events", "landed", "counted", "duplicates", "quarantined", "rejected"}
)
"""Columns of published tables that must not grow by themselves."""
TABLES: Final = re.compile(r"\b(?:usage|invoice)_\w+|\binvoice\b")
SPAN: Final = re.compile(r"# seconds$|^\s*\w*_seconds\s*[:=]", re.IGNORECASE)
"""A line whose floats are spans of time."""
_ADDED: Final = re.compile(r"([\w{}]+)\s*=\s*(?:[\w{}]+\.)?\1\s*[+-]")
_COMMENT: Final = re.compile(r"--[^\n]*")


@dataclass(frozen=True, order=True)
class Finding:
    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def money(source: str, path: str, *, kernel: bool) -> Iterator[Finding]:
    """What a money module must not have."""
    tree, lines = ast.parse(source), source.splitlines()
    refused = {"float", "round", *(("sum",) if kernel else ())}
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and _is_float(node) and SPAN.search(lines[node.lineno - 1]):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield Finding(path, node.lineno, f'the float {node.value}: write decimal text, Decimal("…")')
        elif isinstance(node, ast.Name) and node.id in refused:
            if node.id != "sum" or not lines[node.lineno - 1].endswith("# integers"):
                yield Finding(path, node.lineno, f"`{node.id}`: {_INSTEAD[node.id]}")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not _joins_paths(node):
            yield Finding(
                path, node.lineno, "`/` rounds: use EXACT.divide of core.decimals, or `//` of integers"
            )
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
            yield Finding(path, node.lineno, "`/=` rounds: use EXACT.divide of core.decimals")


_INSTEAD: Final = {
    "float": "money and quantities are decimals (law 6)",
    "round": "the only rounding is round_amount of core.rating",
    "sum": "it adds in a context that rounds; use total of core.decimals",
}


def increments(source: str, path: str) -> Iterator[Finding]:
    """Python and the SQL in its strings that add to published columns."""
    tree = ast.parse(source)
    counts = path not in COUNTS_IN_MEMORY and path.split("/", maxsplit=1)[0] in PUBLISHERS
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
            name = _column(node.target)
            if counts and name in PUBLISHED:
                yield Finding(path, node.lineno, f"`{name}` grows by itself: publish absolute values (law 2)")
        elif isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside
        ):
            yield from sql(_text(node), path, node.lineno)


def sql(text: str, path: str, line: int = 1) -> Iterator[Finding]:
    """Statements that set a column of a published table to itself and more."""
    text = _COMMENT.sub(lambda comment: " " * len(comment[0]), text)
    start = 0
    for statement in text.split(";"):
        if TABLES.search(statement):
            for found in _ADDED.finditer(statement):
                at = line + text.count("\n", 0, start + found.start())
                yield Finding(path, at, f"`{found[0].strip()}`: publish absolute values (law 2)")
        start += len(statement) + 1


def check(root: Path = ROOT) -> list[Finding]:
    """Every finding of the project."""
    found = list[Finding]()
    kernel, of_money = ({file for glob in globs for file in root.glob(glob)} for globs in (KERNEL, MONEY))
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*")):
            path = str(file.relative_to(root))
            if file.suffix == ".sql":
                found += sql(file.read_text(), path)
            elif file.suffix == ".py":
                source = file.read_text()
                found += increments(source, path)
                if file in of_money:
                    found += money(source, path, kernel=file in kernel)
    return sorted(found)


def _is_float(node: ast.expr) -> bool:
    """A literal or the type itself, not what is computed of them."""
    return (isinstance(node, ast.Constant) and isinstance(node.value, float)) or (
        isinstance(node, ast.Name) and node.id == "float"
    )


def _joins_paths(node: ast.BinOp) -> bool:
    """`folder / "name"`: text cannot be divided by."""
    return _is_text(node.right)


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _column(target: ast.expr) -> str:
    """`quantity` of `cell.quantity` and `row["quantity"]`; a local variable is nobody's column."""
    if isinstance(target, ast.Attribute):
        return target.attr
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        return str(target.slice.value)
    return ""


def _text(node: ast.JoinedStr | ast.Constant) -> str:
    """A string as written; what is filled in stands in braces, without blanks."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(
        str(part.value)
        if isinstance(part, ast.Constant)
        else "{" + re.sub(r"\W", "_", ast.unparse(part)) + "}"
        for part in node.values
    )


def main() -> int:
    found = check()
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
