"""Merging flags, environment and file; and telling all mistakes at once."""

from __future__ import annotations

# ruff: noqa: RUF009 - option() makes a dataclass field
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from nsqtools.errors import OptionsError
from nsqtools.options import (
    ADDRESS,
    BOOL,
    DURATION,
    HTTP_ADDRESS,
    NAME_VALUE,
    PATH,
    SECRET,
    SIZE,
    TEXT,
    Choice,
    Int,
    Setting,
    help_text,
    load,
    option,
    options_of,
    repeated,
    settings_of,
)
from nsqtools.options.load import CONFIG_BYTES_MAX, VALUES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    name: str = option(TEXT, default="none", help="a name", group="First")
    count: int = option(
        Int(minimum=1, maximum=9), default="3", help="a count", problem="{flag} is odd: {value}"
    )
    wait_s: float = option(DURATION, default="30s", help="a wait")
    limit_bytes: int = option(SIZE, default="1k", help="a limit", aliases=("id",))
    verbose: bool = option(BOOL, default="false", help="a switch")
    work_dir: Path | None = option(PATH, help="a folder")
    address: tuple[str, ...] = repeated(ADDRESS, help="an address")
    opt: tuple[Setting, ...] = repeated(NAME_VALUE, help="a setting")
    password: str = option(SECRET, default="", help="a secret")

    def check(self) -> Iterator[str]:
        if self.name == "none":
            yield "--name is required"
        if self.count > 5 and self.verbose:
            yield "--count is too high for --verbose"


@dataclass(frozen=True, slots=True, kw_only=True)
class WithFiles:
    files: tuple[str, ...] = repeated(TEXT, help="a file", flag="file", positional=True)
    name: str = option(TEXT, default="", help="a name")


def read(argv: Sequence[str], environ: dict[str, str] | None = None) -> Sample:
    return load(Sample, "my-tool", argv, environ or {})


def problems(argv: Sequence[str], environ: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(OptionsError) as caught:
        read(argv, environ)
    return caught.value.problems


@pytest.mark.parametrize(
    "argv",
    [
        ["-name", "a", "-count", "4", "-verbose"],
        ["--name", "a", "--count", "4", "--verbose"],
        ["-name=a", "-count=4", "-verbose=true"],
        ["--name=a", "--count=4", "--verbose=1"],
        ["--name=b", "--count", "2", "--name=a", "--count=4", "--verbose=false", "--verbose"],
    ],
)
def test_every_way_to_write_a_flag(argv: list[str]) -> None:
    options = read(argv)
    assert (options.name, options.count, options.verbose) == ("a", 4, True)


def test_a_value_may_hold_anything() -> None:
    assert read(["--name=a=b"]).name == "a=b"
    assert read(["--name", "--count"]).name == "--count"
    assert read(["--name", "-"]).name == "-"
    assert read(["--name="]).name == ""


def test_a_boolean_takes_no_word() -> None:
    assert problems(["--name=a", "--verbose", "false"]) == ("unknown arguments: [false]",)
    assert read(["--name=a", "--verbose=false"]).verbose is False


def test_repeated_flags_add_up_and_doubles_count_once() -> None:
    argv = ["--name=a", "--address", "a:1", "-address=b:2", "--address=a:1"]
    assert read(argv).address == ("a:1", "b:2")


def test_flags_end_at_two_dashes() -> None:
    assert problems(["--name=a", "--", "--count", "x"]) == ("unknown arguments: [--count x]",)
    options = load(WithFiles, "t", ["a", "--name=n", "-", "--", "--b"], {})
    assert (options.files, options.name) == (("a", "-", "--b"), "n")


def test_the_same_word_twice_stays_twice() -> None:
    assert load(WithFiles, "t", ["a", "a"], {}).files == ("a", "a")


def test_precedence_is_default_file_environment_flag(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('name = "file"\ncount = 2\nwait = "1m"\nid = 5\nverbose = true\n')
    config = ["--config", str(file)]
    assert read(["--name=x"]).count == 3
    options = read(config)
    assert (options.name, options.count, options.wait_s, options.limit_bytes) == ("file", 2, 60, 5)
    environ = {"MY_TOOL_COUNT": "4", "MY_TOOL_VERBOSE": "f"}
    options = read(config, environ)
    assert (options.name, options.count, options.verbose) == ("file", 4, False)
    assert read([*config, "--count=5"], environ).count == 5
    assert read([], {"MY_TOOL_CONFIG": str(file)}).name == "file"


def test_a_higher_source_hides_the_mistakes_of_a_lower_one(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('name = "a"\ncount = 77\n')
    assert read(["--config", str(file), "--count=4"], {"MY_TOOL_COUNT": "x"}).count == 4


def test_repeated_values_from_environment_and_file(tmp_path: Path) -> None:
    environ = {"MY_TOOL_NAME": "a", "MY_TOOL_ADDRESS": "a:1,b:2", "MY_TOOL_OPT": "x,1;y,2"}
    options = read([], environ)
    assert options.address == ("a:1", "b:2")
    assert [(made.name, made.value) for made in options.opt] == [("x", "1"), ("y", "2")]
    assert read(["--address=c:3"], environ).address == ("c:3",)
    file = tmp_path / "t.toml"
    file.write_text('name = "a"\naddress = ["a:1", "b:2"]\nopt = "x,1"\n')
    options = read(["--config", str(file)])
    assert options.address == ("a:1", "b:2")
    assert options.opt[0].name == "x"


def test_an_empty_variable_is_not_set() -> None:
    assert read(["--name=a"], {"MY_TOOL_COUNT": ""}).count == 3


def test_an_empty_text_means_none_where_there_is_no_default() -> None:
    assert read(["--name=a", "--work-dir="]).work_dir is None
    assert read(["--name=a", "--work-dir=w"]).work_dir is not None


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('limt = 5\naddress = ["nowhere"]\nverbose = 1\n')
    argv = ["--config", str(file), "--wait", "5", "--cuont", "4", "left", "--count=12", "-name"]
    environ = {"MY_TOOL_OPT": ",x", "MY_TOOL_LIMIT": "5MB"}
    assert problems(argv, environ) == (
        "unknown flag --cuont, did you mean --count?",
        "flag needs an argument: --name",
        f"unknown key limt in {file}, did you mean limit?",
        "unknown arguments: [left]",
        "--count is odd: 12",
        'invalid value "5" for --wait: missing unit in duration, write for example 5s or 5ms',
        'invalid value "5MB" for MY_TOOL_LIMIT: unknown unit MB, known are k M G T KiB MiB GiB TiB',
        f'invalid value "1" for verbose in {file}: should not be of type int',
        f'invalid value "nowhere" for address in {file}: missing port in address, write host:port',
        "invalid value for MY_TOOL_OPT: should be name,value",
        "--name is required",
    )


def test_nsq_words_say_where_a_value_came_from() -> None:
    assert problems(["--name=a"], {"MY_TOOL_COUNT": "0"}) == (
        "--count is odd: 0 (from MY_TOOL_COUNT)",
    )


def test_a_check_of_what_could_not_be_read_is_left_out() -> None:
    assert problems(["--name=a\0", "--verbose", "--count=6"]) == (
        'invalid value "a\\x00" for --name: holds a NUL character',
        "--count is too high for --verbose",
    )


@pytest.mark.parametrize("argv", [["--password", "hunter2"], ["--password=hunter2"]])
def test_a_secret_is_refused_on_the_command_line_and_not_repeated(argv: list[str]) -> None:
    found = problems(["--name=a", *argv])
    assert len(found) == 1
    assert "set MY_TOOL_PASSWORD" in found[0]
    assert "hunter2" not in found[0]


@pytest.mark.parametrize(
    "argv",
    [
        ["--opt=auth_secret,hunter2"],
        ["--opt", "auth-secret,hunter2"],
        ["--opt=auth_secret=hunter2"],
        ["-opt=auth_secret,hunter2", "--opt=other,1"],
        ["--opt= auth_secret,hunter2"],
        ["--opt=auth_secret ,hunter2"],
        ["--opt", "\tAUTH_SECRET hunter2"],
        ["--opt='auth_secret':hunter2"],
    ],
)
def test_a_setting_that_is_a_secret_is_refused_on_the_command_line(argv: list[str]) -> None:
    [problem] = problems(["--name=a", *argv])
    assert problem == (
        "auth_secret in --opt cannot be given on the command line, where other users can read it:"
        " set MY_TOOL_AUTH_SECRET, or auth_secret in the file of --config"
    )


def test_the_value_of_an_unknown_flag_is_not_repeated() -> None:
    assert problems(["--name=a", "--pasword", "hunter2"]) == (
        "unknown flag --pasword, did you mean --password?",
    )


def test_secrets_stay_out_of_repr_and_settings() -> None:
    environ = {"MY_TOOL_PASSWORD": "hunter2", "MY_TOOL_OPT": "auth_secret,hunter2"}
    options = read(["--name=a"], environ)
    assert options.opt[0].value == "hunter2"
    assert options.password == "hunter2"
    assert "hunter2" not in repr(options)
    settings = settings_of(options)
    assert "hunter2" not in str(settings)
    assert settings["wait"] == "30s"
    assert settings["limit"] == "1000"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a = \n", "Invalid value"),
        (b"\xff\xfe", "decode"),
        (b"#" * (CONFIG_BYTES_MAX + 1), "more than"),
        (b"a = " + b"[" * 100_000, "recursion|nesting|Invalid"),
    ],
    ids=["syntax", "encoding", "size", "depth"],
)
def test_a_bad_file_is_a_mistake(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "t.toml"
    file.write_bytes(content)
    found = problems(["--name=a", "--config", str(file)])
    assert len(found) == 1
    with pytest.raises(OptionsError, match=f"cannot read --config {file}: .*({reason})"):
        read(["--name=a", "--config", str(file)])


def test_a_missing_file_is_a_mistake(tmp_path: Path) -> None:
    assert problems(["--name=a", f"--config={tmp_path}/no"]) == (
        f"cannot read --config {tmp_path}/no: No such file or directory",
    )


def test_a_key_and_its_alias_contradict(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('name = "a"\nid = 1\nlimit = 2\n')
    assert problems(["--config", str(file)]) == (f"limit is given twice in {file}",)


def test_repeated_values_are_bounded() -> None:
    many = ",".join(["a:1"] * (VALUES_MAX + 1))
    assert problems(["--name=a"], {"MY_TOOL_ADDRESS": many}) == (
        f"MY_TOOL_ADDRESS has more than {VALUES_MAX} values",
    )


def test_a_terminal_cannot_be_confused() -> None:
    found = problems(["--name=a", "--wait", "\x1b[2J5"])
    assert "\x1b" not in found[0]


def test_a_default_must_be_valid() -> None:
    with pytest.raises(ValueError, match="missing unit"):
        option(DURATION, default="5", help="never")


def test_help_tells_everything() -> None:
    text = help_text(
        "my-tool",
        "Does things.",
        options_of(Sample),
        examples=[("do it", "my-tool --name=a")],
        exit_status={0: "done", 2: "wrong options"},
        width=80,
    )
    flags = [made.flag for made in options_of(Sample) if not made.is_secret]
    for flag in (*flags, "config", "version", "help"):
        assert f"--{flag}" in text
    for part in ("First:", "MY_TOOL_PASSWORD", "MY_TOOL_", "(default 30s)", "(repeatable)"):
        assert part in text
    assert text.index("EXAMPLE") < text.index("my-tool --name=a") < text.index("EXIT STATUS")
    assert max(map(len, text.splitlines())) <= 80


def test_a_variable_that_is_nearly_one_is_a_mistake() -> None:
    environ = {
        "MY_TOOL_ADDRESES": "a:1",
        "MY_TOOL_WORKDIR": "/w",
        "MY_TOOL_CONFIGS": "x",
        "MY_TOOL_NAME": "n",
        "MY_TOOL_VERBOS": "",  # empty: not set
        "MY_TOOLS_COUNTS": "another tool's",
        "MY_TOOL_HOME": "left alone: like nothing of ours",
        # What Docker and Kubernetes set for a service my-tool-name and its ports.
        "MY_TOOL_NAME_PORT": "tcp://10.0.0.1:4150",
        "MY_TOOL_NAME_PORT_4150_TCP_ADDR": "10.0.0.1",
        "MY_TOOL_NAME_SERVICE_HOST": "10.0.0.1",
        "MY_TOOL_NAME_SERVICE_PORT": "4150",
    }
    assert problems([], environ) == (
        "unknown variable MY_TOOL_ADDRESES, did you mean MY_TOOL_ADDRESS?",
        "unknown variable MY_TOOL_CONFIGS, did you mean MY_TOOL_CONFIG?",
        "unknown variable MY_TOOL_WORKDIR, did you mean MY_TOOL_WORK_DIR?",
    )


def test_what_only_follows_from_a_missing_file_is_not_told(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert problems(["--config", str(missing), "--count=x"]) == (
        f"cannot read --config {missing}: No such file or directory",
        'invalid value "x" for --count: should be a whole number',
    )
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    (problem,) = problems(["--config", str(broken)])
    assert problem.startswith(f"cannot read --config {broken}: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class WithWords:
    color: str = option(
        Choice(("red", "blue")), default="red", help="a color", problem="{flag} is odd"
    )
    url: tuple[str, ...] = repeated(TEXT, help="an address")
    where: tuple[str, ...] = repeated(HTTP_ADDRESS, help="an address")


def test_a_wrong_choice_lists_the_right_ones_also_after_words_of_nsq() -> None:
    with pytest.raises(OptionsError) as caught:
        load(WithWords, "t", ["--color=x"], {})
    assert caught.value.problems == ("--color is odd: should be one of red, blue",)


def test_passwords_are_shown_nowhere() -> None:
    made = load(WithWords, "t", ["--url=http://u:hunter2@a", "--url=u:hunter2@b"], {})
    assert settings_of(made)["url"] == "http://u:***@a,u:***@b"
    argv = ["--where=http://u:hunter2@a", "http://u:hunter2@b", "--whre=u:hunter2@x"]
    with pytest.raises(OptionsError) as caught:
        load(WithWords, "t", argv, {"T_WHERES": "http://u:hunter2@a"})
    assert len(caught.value.problems) == 4
    assert "hunter2" not in str(caught.value)
    assert "u:***@a" in str(caught.value)


def test_what_a_terminal_would_obey_is_escaped() -> None:
    with pytest.raises(OptionsError) as caught:
        load(WithWords, "t", ["--\x1b[2J", "x\x1b[2J"], {})
    assert all(problem.isprintable() for problem in caught.value.problems)


@pytest.mark.parametrize(("argv", "environ"), [(["--nmae=n"], {}), ([], {"MY_TOOL_NAMES": "n"})])
def test_what_only_follows_from_a_typing_mistake_is_not_told(
    argv: list[str], environ: dict[str, str]
) -> None:
    (problem,) = problems(argv, environ)
    assert "did you mean" in problem
