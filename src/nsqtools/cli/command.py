"""A program as a click command: options, help, running on the event loop, errors to exit codes.

`run` never sees click: it gets its options and returns an exit code. Options are collected by
our own parser, so that all mistakes can be told at once; click keeps the command, its context and
the completion of words in a shell.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shutil
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import click
import click.shell_completion

from nsqtools import ending
from nsqtools.cli.parameters import parameters_of
from nsqtools.cli.streams import drop_stdout, say
from nsqtools.ending import INTERRUPTED
from nsqtools.errors import NsqToolsError, OptionsError
from nsqtools.options import help_text, load_parsed, options_of, parse_arguments

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nsqtools.cli.base import Program

FAILED = 1
# How long the last words of a process that is ended hard may take: a log that nobody reads blocks.
LAST_WORDS_S = 1.0
# The one table of exit codes. The codes of errors are those of their classes in errors.py.
EXIT_STATUS = {
    0: "done, or stopped by SIGTERM or SIGINT with nothing left to do",
    FAILED: "failed for a reason without a number of its own",
    2: "options are missing or wrong",
    3: "a connection failed, or a peer broke the protocol",
    4: "an archive is damaged or cannot be read",
    5: "a disk, a folder or an object store refused",
    INTERRUPTED: "interrupted, or cut short, before it could stop in order",
}
# What does not mend itself: a service manager should not try again (systemd/).
PERMANENT = frozenset({2, 4})
# glibc gives threads arenas of their own, and what is free in one no other thread uses: an archiver
# with a thread for each of eight topics was half as large again.
_M_ARENA_MAX = -8
# Where there is no limit at all: enough for 100,000 topics and connections.
_FILES_WANTED = 1 << 18
# Messages live shortly and in bulk; the collector's own thresholds cost a quarter of the speed.
GC_THRESHOLD = (50_000, 50, 50)


class OptionsCommand(click.Command):
    """A program's command, which leaves the reading of flags to the options class."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.options_class: type[Any] = resolve(program.options)
        super().__init__(
            program.name,
            add_help_option=False,
            callback=self._run,
            params=parameters_of(options_of(self.options_class)),
            short_help=program.headline,
            context_settings={"ignore_unknown_options": True},
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell asks for words
            return super().parse_args(ctx, args)
        options = options_of(self.options_class)
        arguments = parse_arguments(options, args, self.program.name)
        if arguments.wants_help:
            say(self.get_help(ctx))
            ctx.exit()
        if arguments.wants_version:
            say(f"{self.program.version}\n")
            ctx.exit()
        ctx.params["options"] = load_parsed(
            self.options_class, self.program.name, arguments, os.environ
        )
        return []

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem[Any]]:
        """Flags as they are spelt here, unless Go's spelling was begun."""
        found = super().shell_complete(ctx, incomplete)
        begun = len(incomplete) > 1
        return [item for item in found if begun or str(item.value).startswith("--")]

    def get_help(self, ctx: click.Context) -> str:
        return help_text(
            self.program.name,
            self.program.summary,
            options_of(self.options_class),
            usage=self.program.usage,
            examples=self.program.examples,
            exit_status=EXIT_STATUS,
            width=shutil.get_terminal_size((100, 24)).columns,
        )

    def _run(self, options: object) -> int:
        if not self.program.on_loop:
            return run_plainly(self.program, options)
        return run_on_loop(resolve(self.program.run), options)


def resolve(target: str) -> Any:
    """What `module:name` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def completion_variable(name: str) -> str:
    """What a shell sets to be told words instead of running the program, as click names it."""
    return f"_{name}_COMPLETE".upper()


def tune_memory() -> None:
    """Set collector and allocator of this process up for messages: much at a time, for a short time."""
    import ctypes

    gc.collect()
    gc.freeze()  # what is imported stays; the collector need not look at it again
    gc.set_threshold(*GC_THRESHOLD)
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def raise_file_limit() -> None:
    """As many descriptors as we may have: each topic and each nsqd takes some. Go's runtime, and so
    NSQ's own tools, do the same."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, _FILES_WANTED)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )


def run_plainly(program: Program, options: object) -> int:
    """Runs a program's `run(options)` to its end, without a loop.

    What ends it from outside is answered here, before click, which has other answers.
    """
    try:
        run = resolve(program.run)
        gc.freeze()
        gc.enable()
        code: int = run(options)
        return code
    except BrokenPipeError:
        drop_stdout()
        return ending.BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"{program.name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def run_on_loop(run: Callable[[Any], Awaitable[int]], options: object) -> int:
    """Runs `run(options)` to its end, on uvloop where there is one."""
    import asyncio

    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None

    async def main() -> int:
        return await run(options)

    tune_memory()
    raise_file_limit()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


def execute(program: Program, argv: Sequence[str]) -> int:
    """Runs a program and returns its exit code; what goes wrong is told on stderr."""
    if completion_variable(program.name) in os.environ:
        from nsqtools.cli import completion  # noqa: F401 - it tells click of our shells
    try:
        result = OptionsCommand(program).main(
            list(argv), prog_name=program.name, standalone_mode=False
        )
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        print(f"{program.name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        drop_stdout()
        return FAILED
    except Exception as error:  # noqa: BLE001 - the outermost place: every error ends here
        return report(program, error)
    return result if isinstance(result, int) else 0


def end_hard(program: Program) -> NoReturn:
    """Ends the process although threads still work, with INTERRUPTED; says which."""

    def last_words() -> None:
        others = {threading.main_thread(), threading.current_thread()}
        hard_end = ending.THREAD_NAME
        names = [t.name for t in threading.enumerate() if t not in others and t.name != hard_end]
        tell(f"{program.name}: ended at once, not waiting for {', '.join(names)}")
        sys.stdout.flush()
        sys.stderr.flush()

    try:
        speaker = threading.Thread(target=last_words, daemon=True)
        speaker.start()
        speaker.join(LAST_WORDS_S)
    finally:  # also where no thread can be made any more
        os._exit(INTERRUPTED)


def report(program: Program, error: BaseException) -> int:
    """Tells an error on stderr and returns its exit code; a bug comes with its traceback."""
    causes = causes_of(error)
    ours = [cause for cause in causes if isinstance(cause, NsqToolsError)]
    for cause in ours:
        for line in lines_of(cause, program):
            tell(line)
    if len(ours) == len(causes):
        return max(cause.exit_code for cause in ours)
    _tell_traceback(error)
    for bug in (cause for cause in causes if not isinstance(cause, NsqToolsError)):
        tell(f"{program.name}: unexpected {type(bug).__name__}: {bug}")
    return FAILED


def tell(line: str) -> None:
    """Says something on stderr: as a line of the log where its lines are JSON, for who reads them. Names
    and reasons in it can be a stranger's."""
    from nsqtools.observe.lines import one_line
    from nsqtools.observe.log import get_log, is_json

    if is_json():
        get_log().error(line)
    else:
        print(one_line(line), file=sys.stderr)


def _tell_traceback(error: BaseException) -> None:
    from nsqtools.observe.lines import indented
    from nsqtools.observe.log import get_log, is_json

    if is_json():
        for part in traceback.format_exception(error):
            get_log().error(part.rstrip("\n"))
    else:
        print(indented("".join(traceback.format_exception(error))), file=sys.stderr)


def lines_of(error: NsqToolsError, program: Program) -> list[str]:
    """What an operator reads of one error: a line for each mistake, and what to do."""
    problems = error.problems if isinstance(error, OptionsError) else (str(error),)
    hint = error.hint
    if not hint and isinstance(error, OptionsError):
        hint = f"Read {program.usage} --help."
    return [f"{program.name}: {problem}" for problem in problems] + (
        [f"hint: {hint}"] if hint else []
    )


def causes_of(error: BaseException) -> list[BaseException]:
    """The errors inside the groups that task groups raise; each message once."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    found: dict[str, BaseException] = {}
    for inner in error.exceptions:
        for cause in causes_of(inner):
            found.setdefault(f"{type(cause)}{cause}", cause)
    return list(found.values())
