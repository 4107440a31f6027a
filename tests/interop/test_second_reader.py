"""What somebody who has only docs/formats.md can do with our files: examples/read_archive.py, DuckDB."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import PAIRS, batch_of, payload, write_file

from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "read_archive.py"
BODIES = [b"one", b"", "zwölf \u2028 \x01".encode(), b'{"a": 1}', b"\xff\xfe", b"x" * 70_000]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_archive", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_reader_that_was_written_from_the_documentation(
    example: ModuleType, tmp_path: Path, record_format: str, compression: str
) -> None:
    commits = [[batch_of(BODIES[:3])], [batch_of(BODIES[3:], 3)]]
    path = write_file(tmp_path, record_format, compression, commits)
    found = list(example.read_archive(path.read_bytes()))
    assert [body for *_, body in found] == BODIES
    if record_format != "lines":
        heads = [messages for commit in commits for batch in commit for messages in _heads(batch)]
        assert [tuple(head) for *head, _ in found] == heads
    # Files put together are an archive, too.
    assert len(list(example.read_archive(path.read_bytes() * 2))) == 2 * len(BODIES)


def _heads(batch: Messages) -> list[tuple[int, int, bytes]]:
    return list(zip(batch.timestamps, batch.attempts, batch.ids, strict=True))


def test_it_finds_damage_in_framed(example: ModuleType, tmp_path: Path) -> None:
    path = write_file(tmp_path, "framed", "none", [[batch_of([b"one"])]])
    data = path.read_bytes().replace(b"one", b"two")
    with pytest.raises(ValueError, match="damaged at byte"):
        list(example.read_archive(data))


def test_it_needs_nothing_of_ours() -> None:
    text = EXAMPLE.read_text()
    assert "nsqtools" not in re.sub(r'^""".*?"""', "", text, flags=re.DOTALL)
    code = [line for line in text.partition("import zstandard")[2].splitlines() if line.strip()]
    assert len(code) < 65


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    path = write_file(tmp_path, "framed", "zstd", [[Messages([payload(7, b"hello")])]])
    done = subprocess.run(
        [sys.executable, EXAMPLE, path], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split()[-1] == "hello"


def recipe() -> str:
    """The SQL of docs/archives.md."""
    text = (ROOT / "docs" / "archives.md").read_text()
    found = re.search(r"```sql\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_the_recipe_for_duckdb(tmp_path: Path) -> None:
    if importlib.util.find_spec("duckdb") is None:
        pytest.skip("duckdb is not installed")
    bodies = [b'{"status": 200}', b'{"status": 500}', b'{"status": 500}']
    write_file(tmp_path, "jsonl", "zstd", [[batch_of(bodies[:2])], [batch_of(bodies[2:], 2)]])
    sql = recipe().replace("/var/log/nsq/orders.*.zst", f"{tmp_path}/*.zst")
    assert str(tmp_path) in sql
    # In a process of its own: it tells of leaks of its bindings when it ends.
    program = "import duckdb, sys; print(duckdb.connect().execute(sys.argv[1]).fetchall())"
    found = subprocess.run(
        [sys.executable, "-c", program, sql], capture_output=True, text=True, check=True
    )
    rows = ast.literal_eval(re.sub(r"datetime\.datetime(\([0-9, ]+\))", r"\1", found.stdout))
    assert rows == [
        ((2023, 11, 14, 22, 13), "200", 1),
        ((2023, 11, 14, 22, 13), "500", 2),
    ]
