"""Imports go down the rows of the architecture only (README, "Where a line belongs")."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "nsqtools"

# A package may import the rows above it in this table, and what is named for it in SAME_ROW.
ROWS: dict[str, int] = {
    "errors": 1,
    "clock": 1,
    "ending": 1,
    "options": 1,
    "wire": 2,
    "ask": 2,
    "digest": 2,
    "durable": 2,
    "publish": 2,
    "observe": 2,
    "lifecycle": 2,
    "client": 3,
    "archive": 3,
    "broker": 3,
    "stores": 3,
    "transform": 4,
    "outputs": 4,
    "replay": 4,
    "lookupd": 4,
    "admin": 4,
    "pipeline": 5,
    "demo": 5,
    "programs": 6,
    "cli": 7,
}
# Within row 1 and row 2, what may lean on what.
SAME_ROW = {
    ("options", "errors"),
    ("lifecycle", "observe"),
    ("demo", "pipeline"),
    ("publish", "durable"),
}
FORBIDDEN_STDLIB = {
    "wire": ({"asyncio", "socket", "time", "ssl"}, "wire/ is sans-IO: bytes in, events out"),
    "archive": ({"socket", "click"}, "an archive knows no broker and no command line"),
    "stores": ({"asyncio", "click"}, "a store blocks, for worker threads"),
    "client": ({"click", "aiofiles"}, "the client reads and writes no files"),
}
REASONS = {
    "broker": "only programs, the pipeline's demo and tests may embed a broker",
}


def unit_of(path: Path) -> str:
    part = path.relative_to(SOURCE).parts[0]
    return part.removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module or ""
            if module == "nsqtools":
                found += [(node.lineno, f"nsqtools.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, module))
    return found


def violation(unit: str, imported: str) -> str | None:
    head, _, rest = imported.partition(".")
    if head != "nsqtools":
        banned, why = FORBIDDEN_STDLIB.get(unit, (set(), ""))
        return f"{unit} must not import {head}: {why}" if head in banned else None
    target = rest.partition(".")[0]
    if target in ("", "__version__", unit):
        return None
    if target not in ROWS:
        return f"{target} has no row in this table; say where it belongs"
    if ROWS[target] < ROWS[unit] or (unit, target) in SAME_ROW:
        return None
    reason = REASONS.get(
        target, "imports go down the rows only, so that each part can be read alone"
    )
    return f"{unit} (row {ROWS[unit]}) must not import {target} (row {ROWS[target]}): {reason}"


def test_imports_go_down_the_rows() -> None:
    problems = []
    for path in sorted(SOURCE.rglob("*.py")):
        unit = unit_of(path)
        if unit in ("__init__", "__main__"):
            continue
        assert unit in ROWS, f"{path}: {unit} has no row in ROWS; say where it belongs"
        for line, imported in imports_of(path):
            if problem := violation(unit, imported):
                problems.append(f"{path.relative_to(SOURCE)}:{line}: {problem}")
    assert not problems, "\n".join(problems)


def test_the_table_can_refuse() -> None:
    assert violation("wire", "asyncio")
    assert violation("client", "nsqtools.broker.topic")
    assert violation("archive", "nsqtools.client")
    assert violation("wire", "nsqtools.errors") is None


def cycles(modules: dict[str, set[str]]) -> list[str]:
    """The modules that lead back to themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = modules[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    return sorted(module for module in modules if module in reached(module))


# Parts of one thing, which know each other by their types only.
KNOWN_CYCLES = {
    f"nsqtools.broker.{name}"
    for name in ("channel", "cursor", "reading", "redelivery", "stragglers", "topic")
}


def test_modules_of_the_broker_and_the_wire_import_in_no_circle() -> None:
    modules = {
        f"nsqtools.{folder}.{path.stem}": path
        for folder in ("broker", "wire")
        for path in (SOURCE / folder).glob("*.py")
    }
    graph = {}
    for name, path in modules.items():
        found = {imported for _, imported in imports_of(path)}
        # `from nsqtools.broker import config` names the module in another way.
        found |= {
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        graph[name] = found & (modules.keys() - {name})
    assert set(cycles(graph)) <= KNOWN_CYCLES
