"""Options of a store: each mistake is told, and nothing secret is taken."""

from __future__ import annotations

import pytest

from nsqtools.errors import OptionsError
from nsqtools.options import load, options_of, settings_of
from nsqtools.stores.options import StoreAccess, StoreOptions


def options(*flags: str) -> StoreOptions:
    return load(StoreOptions, "nsq_to_s3", flags, {})


def problems(*flags: str) -> list[str]:
    return list(options(*flags).check_store())


def test_defaults() -> None:
    made = options("--bucket=archive")
    assert problems("--bucket=archive") == []
    assert (made.part_size_bytes, made.upload_concurrency) == (8 << 20, 4)
    assert made.max_upload_rate_bytes == 0
    assert list(options().check_store(needs_bucket=False)) == []


def test_no_option_takes_a_secret() -> None:
    flags = {made.flag for made in options_of(StoreOptions)}
    assert not [flag for flag in flags if "secret" in flag or "token" in flag or "access" in flag]


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--bucket=Upper", "3 to 63"),
        ("--bucket=a/b", "3 to 63"),
        ("--endpoint-url=minio:9000", "http or https"),
        ("--endpoint-url=https://key:hidden@minio", "should not hold a user"),
        ("--endpoint-url=https://minio/?x=hidden", "http or https"),
        ("--region=eu west", "letters"),
        ("--addressing=host", "one of auto, path, virtual"),
        ("--sse=rot13", "one of none, AES256, aws:kms"),
        ("--acl=everyone", "one of private"),
        ("--object-tag=team", "NAME=VALUE"),
        ("--object-tag=aws:x=y", "the store's own"),
        ("--object-tag=a=b&c", "letters, digits"),
        ("--object-tag=a=" + "b" * 257, "a value 256"),
        ("--part-size=1MiB", "at least 5MiB"),
        ("--part-size=6GiB", "at most 5GiB"),
        ("--upload-concurrency=0", "at least 1"),
        ("--upload-concurrency=65", "at most 64"),
    ],
)
def test_a_value_that_cannot_be(flag: str, problem: str) -> None:
    with pytest.raises(OptionsError) as caught:
        options(flag)
    (told,) = caught.value.problems
    assert problem in told
    assert "key:hidden" not in told


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((), "--bucket is required"),
        (("--bucket=abc", "--sse-kms-key-id=k"), "needs --sse aws:kms"),
        (("--bucket=a_c",), "underscore"),
        (("--bucket=a.c", "--addressing=virtual"), "no certificate fits"),
        (("--bucket=abc", "--ca-file=x", "--endpoint-url=http://x"), "without https"),
        (("--bucket=abc", "--object-tag=a=1", "--object-tag=a=2"), "names a more than once"),
        (("--bucket=abc", *(f"--object-tag={n}=1" for n in range(11))), "at most 10 times"),
    ],
)
def test_options_that_contradict(flags: tuple[str, ...], problem: str) -> None:
    (told,) = problems(*flags)
    assert problem in told


def test_tags_are_shown_as_they_are_written() -> None:
    made = options("--bucket=abc", "--object-tag=team=a b", "--object-tag=x=")
    assert settings_of(made)["object_tag"] == "team=a b;x="


def test_who_reads_needs_less() -> None:
    """The bucket is first in the help, and is none of the flags of who names `s3://bucket/key`."""
    flags = [made.flag for made in options_of(StoreOptions)]
    access = [made.flag for made in options_of(StoreAccess)]
    assert flags[: len(access) + 1] == ["bucket", *access]
    made = load(StoreAccess, "x", ["--addressing=virtual", "--ca-file=/x"], {})
    assert list(made.check_access()) == []
    assert list(made.check_reach("a_b.c", "s3://a_b.c/d")) == [
        "s3://a_b.c/d: AWS has no bucket with an underscore, name an --endpoint-url",
        "--addressing virtual: no certificate fits the dots of s3://a_b.c/d",
    ]
