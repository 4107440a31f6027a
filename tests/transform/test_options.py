"""The options of filters, as the tools take them."""

from __future__ import annotations

import pytest

from nsqtools.errors import OptionsError
from nsqtools.options import load
from nsqtools.programs.nsq_to_file.options import NsqToFileOptions
from nsqtools.programs.nsq_to_http.options import NsqToHttpOptions
from nsqtools.transform.chain import Chain

SOURCE = ("--topic=t", "--nsqd-tcp-address=127.0.0.1:4150")
ALL = (
    "--sample=0.5",
    "--grep=a",
    "--grep-exclude=b",
    "--non-json=keep",
    "--require-json-field=f",
    "--require-json-value=v",
    "--whitelist-json-field=f",
    "--whitelist-json-field=g",
    "--transform=m.n:f",
    "--transform-path=.",
)


def of_file(*flags: str) -> NsqToFileOptions:
    return load(NsqToFileOptions, "nsq_to_file", [*SOURCE, *flags], {})


def test_without_flags_there_is_no_step() -> None:
    assert not of_file().transforms


@pytest.mark.parametrize(
    "flag", [f for f in ALL if "non-json" not in f and "value" not in f and "path" not in f]
)
def test_any_of_them_is_a_step(flag: str) -> None:
    assert of_file(flag).transforms


def test_all_of_them_go_together_and_can_be_taken_off() -> None:
    options = of_file(*ALL)
    assert options.whitelist_json_field == ("f", "g")
    assert not options.without_transforms().transforms
    assert options.without_transforms() == of_file()


def test_both_tools_have_them() -> None:
    flags = [*SOURCE, "--post=http://h/", *ALL]
    assert load(NsqToHttpOptions, "nsq_to_http", flags, {}).sample == 0.5


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--sample=1.5",), "--sample must be between 0.0 and 1.0"),
        (("--grep=(",), "not a regular expression"),
        (("--require-json-value=1",), "--require-json-value needs --require-json-field"),
        (
            ("--non-json=keep", "--grep=a"),
            "--non-json needs --require-json-field or --whitelist-json-field",
        ),
        (("--non-json=lose",), "should be one of drop, keep"),
        (("--transform-path=.",), "--transform-path needs --transform"),
        (("--transform=filters.py",), "should be module:function"),
    ],
)
def test_mistakes(flags: tuple[str, ...], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        of_file(*flags)


def test_only_a_sample_is_cheap() -> None:
    assert Chain(of_file("--sample=0.5")).is_cheap
    assert not Chain(of_file("--sample=0.5", "--grep=a")).is_cheap
