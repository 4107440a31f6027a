"""Options from defaults, a TOML file, the environment and flags, the later ones winning.

All mistakes are collected and raised together as one OptionsError, before anything but the
configuration file is opened. What only follows from a mistake is not told: without its configuration
file a program misses much that nobody forgot.

An environment variable that is set but empty counts as not set. One that begins with the program's
name is a mistake when it is nearly that of an option (NSQ_TO_FILE_TOPICS). Others are left alone: a
container's links (NSQD_PORT_4150_TCP) and other programs have theirs.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nsqtools.errors import OptionsError
from nsqtools.options.arguments import CONFIG, Arguments, nearest, parse_arguments
from nsqtools.options.fields import Option, checks_of, options_of, variable_of
from nsqtools.options.kinds import Choice, OutOfRange, Setting
from nsqtools.options.shown import mask_passwords, printable, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

T = TypeVar("T")
CONFIG_BYTES_MAX = 1024 * 1024
# What is repeated is bounded: a list this long is a mistake, not a wish.
VALUES_MAX = 10_000
# How alike a variable and that of an option are (0 to 1) for it to be a typing mistake.
_TYPO_LIKENESS = 0.8
# What Docker and Kubernetes set for a service that is called as a program is.
_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP)(_.+)?)?)\Z")
_FLAG_NAMED = re.compile(r"--([a-z0-9-]+)")


def load(
    options_class: type[T], program: str, argv: Sequence[str], environ: Mapping[str, str]
) -> T:
    """The options of one run of `program`; raises OptionsError with every mistake there is."""
    arguments = parse_arguments(options_of(options_class), argv, program)
    return load_parsed(options_class, program, arguments, environ)


def load_parsed(
    options_class: type[T], program: str, arguments: Arguments, environ: Mapping[str, str]
) -> T:
    """As `load`, from a command line that has been read already."""
    options = options_of(options_class)
    loader = _Loader(program)
    loader.problems += arguments.problems
    loader.failed |= arguments.meant
    variable = variable_of(program, CONFIG)
    path = arguments.config or environ.get(variable)
    table = loader.read_file(path, options) if path else {}
    loader.take_words(options, arguments.words)
    loader.check_environment(options, environ)
    for made in options:
        variable = made.variable(program)
        if made.flag in arguments.values and not made.positional:
            loader.take_texts(made, arguments.values[made.flag], "")
        elif environ.get(variable) and not made.positional:
            texts = environ[variable].split(made.kind.separator) if made.repeat else []
            loader.take_texts(made, texts or [environ[variable]], variable)
        elif made.key in table and made.name not in loader.values:
            loader.take_toml(made, table[made.key], f"{made.key} in {path}")
    return loader.finish(options_class)


class _Loader:
    """Collects values and mistakes."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self.failed: set[str] = set()
        self.is_file_missing = False

    def read_file(self, path: str, options: Iterable[Option]) -> dict[str, Any]:
        """The file's table with aliases resolved; unknown keys are mistakes."""
        table = self._parse_file(path)
        keys = {alias: made.key for made in options for alias in (made.key, *made.aliases)}
        flags = {made.key: made.flag for made in options}
        found: dict[str, Any] = {}
        for key, value in table.items():
            if key not in keys:
                near = nearest(key, keys, prefix="")
                self.problems.append(f"unknown key {printable(key)} in {path}{near}")
                self.failed.update(flags[keys[meant]] for meant in get_close_matches(key, keys, 1))
            elif keys[key] in found:
                self.problems.append(f"{keys[key]} is given twice in {path}")
            else:
                found[keys[key]] = value
        return found

    def _parse_file(self, path: str) -> dict[str, Any]:
        import tomllib  # only where a file is named: a third of the start-up time of --version

        self.is_file_missing = True
        try:
            table = tomllib.loads(read_bounded(path).decode("utf-8"))
        except OSError as error:
            self.problems.append(f"cannot read --config {path}: {error.strerror or error}")
        except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError
            self.problems.append(f"cannot read --config {path}: {error}")
        else:
            self.is_file_missing = False
            return table
        return {}

    def check_environment(self, options: Iterable[Option], environ: Mapping[str, str]) -> None:
        """Variables that are nearly those of options."""
        prefix = variable_of(self.program, "")
        flags = {made.key.upper(): made.flag for made in options if not made.positional}
        flags[CONFIG.upper()] = CONFIG
        for variable in sorted(environ):
            name = variable.removeprefix(prefix)
            if name == variable or name in flags or not environ[variable] or _LINK.search(name):
                continue
            for near in get_close_matches(name, flags, 1, _TYPO_LIKENESS):
                shown = printable(variable)
                self.problems.append(f"unknown variable {shown}, did you mean {prefix}{near}?")
                self.failed.add(flags[near])

    def take_words(self, options: Iterable[Option], words: Sequence[str]) -> None:
        positional = next((made for made in options if made.positional), None)
        if positional is None and words:
            self.problems.append(f"unknown arguments: [{printable(' '.join(words))}]")
        elif positional is not None and words:
            self.take_texts(positional, words, "")

    def take_texts(self, made: Option, texts: Sequence[str], source: str) -> None:
        """Values written as text, from flags (`source` empty) or from the variable `source`."""
        if not made.repeat:
            texts = texts[-1:]
        values = [self._read(made, text, made.kind.parse, source) for text in texts]
        self._keep(made, values, source)

    def take_toml(self, made: Option, value: object, source: str) -> None:
        given = value if isinstance(value, list) and made.repeat else [value]
        values = [self._read(made, item, made.kind.from_toml, source) for item in given]
        self._keep(made, values, source)

    def _keep(self, made: Option, values: list[Any], source: str) -> None:
        if len(values) > VALUES_MAX:
            self._fail(made, f"{source or '--' + made.flag} has more than {VALUES_MAX} values")
        elif not made.repeat:
            self.values[made.name] = values[-1]
        else:
            good = [value for value in values if value is not None]
            self.values[made.name] = tuple(good if made.positional else dict.fromkeys(good))

    def _read(self, made: Option, given: Any, read: Any, source: str) -> Any:
        if given == "" and made.default is None and not made.repeat:
            return None
        try:
            return read(given)
        except OutOfRange as error:
            own = made.problem.format(flag=f"--{made.flag}", value=printable(str(given)))
            if own and isinstance(made.kind, Choice):
                own += f": {error}"  # NSQ's words do not say what would be right
            place = f" (from {source})" if own and source else ""
            self._fail(made, own + place if own else describe(made, given, source, error))
        except ValueError as error:
            self._fail(made, describe(made, given, source, error))
        return None

    def _fail(self, made: Option, problem: str) -> None:
        self.problems.append(problem)
        self.failed.add(made.flag)

    def finish(self, options_class: type[T]) -> T:
        """The options, or every problem; a check that names a flag which could not be read, or which
        was misspelt, tells of a consequence, not of a mistake, and is left out."""
        defaults = {made.name for made in options_of(options_class) if made.flag in self.failed}
        options = options_class(
            **{name: value for name, value in self.values.items() if name not in defaults}
        )
        for problem in () if self.is_file_missing else checks_of(options):
            if self.failed.isdisjoint(_FLAG_NAMED.findall(problem)):
                self.problems.append(problem)
        if self.problems:
            raise OptionsError(self.problems)
        return options


def read_bounded(path: str) -> bytes:
    """The bytes of a configuration file; raises OSError, and ValueError where they are many."""
    with Path(path).open("rb") as file:
        content = file.read(CONFIG_BYTES_MAX + 1)
    if len(content) > CONFIG_BYTES_MAX:
        raise ValueError(f"more than {CONFIG_BYTES_MAX} bytes")
    return content


def describe(made: Option, given: object, source: str, error: ValueError) -> str:
    """`invalid value "5" for --sync-interval: missing unit ...`, without the value of a secret."""
    place = source or (made.flag.upper() if made.positional else f"--{made.flag}")
    if made.kind.hidden:
        return f"invalid value for {place}: {error}"
    return f"invalid value {quoted(made.kind.told(str(given)))} for {place}: {mask_passwords(str(error))}"


def load_settings(options_class: type[T], settings: Iterable[Setting]) -> tuple[T, list[str]]:
    """Options given as `name,value` pairs, and every mistake in them, in NSQ's words.

    Values are never repeated for a name that is not known: a misspelt `auth_secret` is still a
    secret (spec: client-behaviour, part 1).
    """
    known = {made.key: made for made in options_of(options_class)}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for setting in settings:
        made = known.get(setting.name)
        if made is None:
            name, _, _ = setting.name.partition("=")  # some write name=value
            near = nearest(name, known, prefix="")
            problems.append(f"invalid option {quoted(name)[1:-1]}{near}")
            continue
        try:
            values[made.name] = made.kind.parse(setting.value)
        except OutOfRange as error:
            problems.append(f"invalid {made.key} ! {error.comparison}")
        except ValueError as error:
            shown = "" if made.kind.hidden else f" ({quoted(setting.value)[1:-1]})"
            problems.append(f"failed to coerce option {made.key}{shown} - {error}")
    options = options_class(**values)
    problems += checks_of(options)
    return options, problems
