"""House rules that a linter cannot state."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "nsqtools"
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_modules_are_short() -> None:
    long = {
        str(path.relative_to(SOURCE)): lines
        for path in modules()
        if (lines := len(path.read_text().splitlines())) > MODULE_LINES_MAX
    }
    assert not long, "split these: a module is one noun"


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(SOURCE)}:{function.lineno} {function.name}"
        for path in modules()
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long, "split these: branching stays in the parent, helpers stay straight"


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(SOURCE))
        for path in modules()
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert not silent


def test_every_public_class_has_a_docstring() -> None:
    silent = [
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
        and not any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases)
    ]
    assert not silent


@pytest.mark.slow
def test_the_embedded_broker_example_runs() -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "examples" / "embedded_broker.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["hello", "world"]), ended.stderr


@pytest.mark.slow
def test_the_webhook_example_runs() -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "examples" / "webhook.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (
        0,
        "taken: order 1, order 3\nthen: order 2, paid in florins\n",
    ), ended.stderr


@pytest.mark.slow
def test_the_example_of_an_object_store_runs() -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "examples" / "object_store.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = [line for line in ended.stdout.splitlines() if not line.startswith("published")]
    assert (ended.returncode, told) == (
        0,
        [
            "orders: 3 records, application/zstd",
            "again: order 1",
            "again: order 2",
            "again: order 3",
        ],
    ), ended.stderr


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(
            f"docs/{n}"
            for n in ("archives.md", "guarantees.md", "operations.md", "s3.md", "security.md")
        ),
    ],
)
def test_links_and_tests_that_are_named_exist(page: str) -> None:
    import re

    text = (ROOT / page).read_text()
    named = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    folder = (ROOT / page).parent
    assert all((folder / name).exists() for name in named), named
    for path in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
