"""A function of the user: how it is found, and what becomes of what it returns and raises."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.transform.test_steps import left, messages_of

import nsqtools
from nsqtools.errors import OptionsError
from nsqtools.transform import hook as hook_module
from nsqtools.transform.hook import Hook, Stopped, load
from nsqtools.transform.options import HOOK
from nsqtools.transform.steps import Work

if TYPE_CHECKING:
    from collections.abc import Callable

FUNCTIONS = """
class Filters:
    @staticmethod
    def upper(body):
        return body.upper()

async def later(body):
    return body

def one_by_one(body):
    yield body

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "house_filters.py").write_text(FUNCTIONS)
    (tmp_path / "broken_filters.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needy_filters.py").write_text("import no_such_module_here\n")
    for name in ("house_filters", "broken_filters", "needy_filters"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def made_of(function: Callable[[bytes], object], *bodies: bytes) -> Work:
    work = Work(messages_of(*bodies))
    Hook(function, "m:f").apply(work)
    return work


def test_a_function_is_found_in_a_folder_that_is_named(folder: Path) -> None:
    function = load(HOOK.parse("house_filters:Filters.upper"), folder)
    assert function(b"a") == b"A"
    assert sys.path[-1] == str(folder), "where it hides nothing"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:f", "No module named 'no_such_module'.*; --transform-path=FOLDER names"),
        ("house_filters:lower", "there is no lower in house_filters .*house_filters.py"),
        ("house_filters:number", "it is no function but of type int"),
        ("house_filters:later", "no async one, no generator"),
        ("house_filters:one_by_one", "no async one, no generator"),
        ("broken_filters:f", "SystemExit: 3 at broken_filters.py:2"),
        ("needy_filters:f", "No module named 'no_such_module_here' at needy_filters.py:1$"),
    ],
)
def test_what_cannot_be_used_is_said_at_the_start(folder: Path, name: str, why: str) -> None:
    with pytest.raises(OptionsError, match=f"cannot use --transform {name}: .*{why}"):
        load(HOOK.parse(name), folder)


@pytest.mark.parametrize(
    "text", ["", "m", "m:", ":f", "m:f:g", "m.py:f()", "../m:f", "m:1", "m..n:f"]
)
def test_what_names_no_function_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="should be module:function"):
        HOOK.parse(text)


def test_the_current_folder_is_not_imported_from_unless_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although `python -m` puts it in front of all others."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", nsqtools.__spec__, raising=False)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    with pytest.raises(OptionsError, match="No module named 'house_filters'; --transform-path"):
        load(HOOK.parse("house_filters:Filters.upper"))
    assert sys.path[0] == str(folder)
    assert load(HOOK.parse("house_filters:Filters.upper"), Path())(b"a") == b"A"


def test_bodies_are_changed_dropped_and_parted() -> None:
    parts: dict[bytes, Any] = {b"c": b"C", b"d": None, b"e": [], b"p": [b"1", b"2"], b"l": [b"L"]}
    work = made_of(lambda body: parts.get(body, body), b"s", b"c", b"d", b"e", b"p", b"l", b"")
    assert left(work) == [b"s", b"C", b"1", b"2", b"L", b""]
    assert work.removed == {2: "transform", 3: "transform"}
    assert not work.refused


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("text", "--transform returned str"),
        (bytearray(b"x"), "--transform returned bytearray"),
        ((b"x",), "--transform returned tuple"),
        ([b"x", 1], "--transform returned int"),
        (True, "--transform returned bool"),
        ([b""] * (hook_module.SEVERAL_MAX + 1), "--transform made more than 10000 messages of one"),
    ],
)
def test_what_may_not_be_returned_is_a_refusal(made: object, reason: str) -> None:
    work = made_of(lambda body: made if body == b"bad" else body, b"a", b"bad", b"z")
    assert {at: refusal.reason for at, refusal in work.refused.items()} == {1: reason}
    assert left(work) == [b"a", b"z"]


def test_a_message_that_no_output_takes_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_module, "BODY_SIZE_MAX_BYTES", 3)
    work = made_of(lambda body: body * 2, b"a", b"bb")
    assert work.refused[1].reason == "--transform made a message that is too large"


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "error",
    [ValueError("why"), SystemExit(1), KeyboardInterrupt(), MemoryError(), UnsayableError()],
)
def test_whatever_it_raises_is_a_refusal_of_that_message(error: BaseException) -> None:
    def function(body: bytes) -> bytes:
        if body == b"bad":
            raise error
        return body

    work = made_of(function, b"a", b"bad", b"z")
    assert work.refused[1].reason == f"--transform raised {type(error).__name__}"
    assert " at test_hook.py:" in work.refused[1].detail
    assert left(work) == [b"a", b"z"]


async def test_a_coroutine_is_a_refusal() -> None:
    async def later() -> None: ...

    assert made_of(lambda _: later(), b"a").refused[0].reason == "--transform returned coroutine"


def test_it_stops_between_messages() -> None:
    seen: list[bytes] = []

    def function(body: bytes) -> bytes:
        seen.append(body)
        hook.stop()
        return body

    hook = Hook(function, "m:f")
    with pytest.raises(Stopped):
        hook.apply(Work(messages_of(b"1", b"2")))
    assert seen == [b"1"]


def test_a_call_that_takes_long_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_module, "HANGS_S", -1.0)
    seen: list[float] = []
    hook = Hook(lambda _: seen.append(hook.hangs_s), "m:f")
    hook.apply(Work(messages_of(b"1")))
    assert seen[0] > 0
    assert not hook.hangs_s
