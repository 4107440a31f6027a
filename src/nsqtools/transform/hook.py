"""A function of the user as a step: found at the start, called in a thread, trusted with nothing.

What it raises, and what it returns that is none of what it may, is a refusal of that one message.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsqtools.errors import OptionsError
from nsqtools.transform.steps import Refusal
from nsqtools.wire.frames import BODY_SIZE_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsqtools.transform.options import HookName
    from nsqtools.transform.steps import Work

    Function = Callable[[bytes], object]

# What one message may become: more is a mistake, and would take all memory.
SEVERAL_MAX = 10_000
# After so long a call hangs.
HANGS_S = 10.0
_ERROR_LENGTH_MAX = 200
_NOT_THE_USERS = (__file__, importlib.__file__)


class Stopped(Exception):  # noqa: N818 - reads as the fact it states
    """The run ends: what was not begun is left."""


def load(name: HookName, folder: Path | None = None) -> Function:
    """The function, imported also from `folder`. Blocking; raises OptionsError where it cannot be."""
    try:
        with _without_current_folder():
            if folder is not None and str(folder.absolute()) not in sys.path:
                sys.path.append(
                    str(folder.absolute())
                )  # at the end, where it hides nothing of ours
            found: Any = importlib.import_module(name.module)
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and f"{name.module}.".startswith(
            f"{error.name}."
        ):
            hint = "; --transform-path=FOLDER names a folder to import from, such as ."
        raise _cannot(name, f"{_said(error)}{hint}") from error
    for part in name.function.split("."):
        if not hasattr(found, part):
            where = getattr(sys.modules[name.module], "__file__", None) or "built in"
            raise _cannot(name, f"there is no {name.function} in {name.module} ({where})")
        found = getattr(found, part)
    if not callable(found):
        raise _cannot(name, f"it is no function but of type {type(found).__name__}")
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found):
        raise _cannot(name, "it must be a plain function that returns, no async one, no generator")
    function: Function = found
    return function


def _cannot(name: HookName, why: str) -> OptionsError:
    return OptionsError([f"cannot use --transform {name}: {why}"])


@contextlib.contextmanager
def _without_current_folder() -> Iterator[None]:
    """`python -m nsqtools` puts the current folder in front of all others; a file that lies there by
    chance is not to be run."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    is_ours = spec is not None and spec.name.partition(".")[0] == "nsqtools"
    first = sys.path[0] if sys.path else None
    if not is_ours or first not in ("", str(Path.cwd())):
        yield
        return
    sys.path.remove(first)
    try:
        yield
    finally:
        sys.path.insert(0, first)


class Hook:
    """The step, of one topic: one call at a time, in a thread; `stop` and `hangs_s` are for others."""

    def __init__(self, function: Function, name: str) -> None:
        self.name = name
        self.call_s = 0.0
        """How long a call took lately, in seconds; 0 while there was none."""
        self._function = function
        self._began_s: float | None = None
        self._is_stopped = False

    @property
    def hangs_s(self) -> float:
        """For how long a call has hung; 0 while none does."""
        began_s = self._began_s
        took_s = 0.0 if began_s is None else time.monotonic() - began_s
        return took_s if took_s > HANGS_S else 0.0

    def stop(self) -> None:
        """Have `apply` raise Stopped at its next message."""
        self._is_stopped = True

    def apply(self, work: Work) -> None:
        kept: list[int] = []
        count, began_s = len(work.places), time.monotonic()
        for at, body in zip(work.places, work.bodies(), strict=True):
            if self._is_stopped:
                raise Stopped
            made = self._call(body)
            if isinstance(made, Refusal):
                work.refused[at] = made
            elif not made:
                work.removed[at] = "transform"
            else:
                kept.append(at)
                if len(made) > 1:
                    work.several[at] = made
                elif made[0] is not body and made[0] != body:
                    work.changed[at] = made[0]
        work.places = kept
        took_s = (time.monotonic() - began_s) / count
        self.call_s = (self.call_s + took_s) / 2 if self.call_s else took_s

    def _call(self, body: bytes) -> list[bytes] | Refusal | None:
        self._began_s = time.monotonic()
        try:
            made = self._function(body)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in it ends nothing either
            return Refusal(f"--transform raised {type(error).__name__}", _said(error))
        finally:
            self._began_s = None
        return checked(made)


def checked(made: object) -> list[bytes] | Refusal | None:
    """What a function returned, as a list; None where there is nothing to take."""
    if type(made) is bytes:
        bodies = [made]
    elif made is None:
        return None
    elif isinstance(made, list):
        bodies = made
    else:
        if inspect.iscoroutine(made):
            made.close()
        return _wrong(made)
    if len(bodies) > SEVERAL_MAX:
        return Refusal(
            f"--transform made more than {SEVERAL_MAX} messages of one", str(len(bodies))
        )
    for body in bodies:
        if type(body) is not bytes:
            return _wrong(body)
        if len(body) > BODY_SIZE_MAX_BYTES:
            return Refusal("--transform made a message that is too large", f"{len(body)} bytes")
    return bodies


def _wrong(made: object) -> Refusal:
    kind = type(made).__name__
    return Refusal(f"--transform returned {kind}", f"{kind} is not bytes, list of bytes or None")


def _said(error: BaseException) -> str:
    """The error, and the line that raised it."""
    frames = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if one.filename[0] != "<" and one.filename not in _NOT_THE_USERS
    ]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - whatever it is, it is told
        text = "an error that cannot say what it is"
    return f"{type(error).__name__}: {text}"[:_ERROR_LENGTH_MAX] + where
