"""What may be asked of nsq_to_s3 together, and what would have no meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nsqtools.errors import OptionsError
from nsqtools.options import load
from nsqtools.programs.nsq_to_s3.options import NsqToS3Options

if TYPE_CHECKING:
    from pathlib import Path

GIVEN = ("--topic=t", "--nsqd-tcp-address=127.0.0.1:4150", "--bucket=archive")
SPOOL = "--spool-dir=/spool"


def mistakes(*flags: str) -> str:
    try:
        load(NsqToS3Options, "nsq_to_s3", [*GIVEN, *flags], {})
    except OptionsError as error:
        return str(error)
    return ""


def test_a_spool_needs_a_folder_and_nothing_else_does() -> None:
    assert mistakes(SPOOL) == mistakes("--ack=upload") == ""
    assert "--spool-dir is required with --ack=spool" in mistakes()


@pytest.mark.parametrize(
    "flag",
    [
        "--partition-by=publish-time",
        "--min-free-space=5%",
        "--watermark",
        "--max-spool-bytes=1GiB",
    ],
)
def test_what_only_files_of_a_spool_have(flag: str) -> None:
    assert mistakes(SPOOL, flag) == ""
    assert f"{flag.partition('=')[0]} has no meaning with --ack=upload" in mistakes(
        "--ack=upload", flag
    )


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--key-format=<TOPIC>.<EXT>", "missing <REV>"),
        ("--key-format=<DATETIME>.<REV>", "<DATETIME> is not known"),
        ("--key-format=../<REV>", "leads out"),
        ("--key-format=/<TOPIC>.<REV>", "--key-format: "),
        ("--host-identifier=<HOST>", "no part of a key"),
    ],
)
def test_keys_that_cannot_be_are_told_at_the_start(flag: str, told: str) -> None:
    assert told in mistakes(SPOOL, flag)


def test_periods_need_a_time_in_the_key() -> None:
    flags = (SPOOL, "--partition-by=publish-time", "--key-format=<TOPIC>/<FIRST>.<REV>.<EXT>")
    assert "needs strftime's directives in --key-format" in mistakes(*flags)


def test_a_profile_that_is_not_there_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("[profile archiver]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "missing"))
    assert mistakes(SPOOL, "--profile=archiver") == ""
    assert "--profile: AWS's configuration files have no 'nope'; there are archiver" in mistakes(
        SPOOL, "--profile=nope"
    )
    config.write_text("no section\n")
    assert "--profile: Unable to parse config file" in mistakes(SPOOL, "--profile=archiver")


def test_a_look_at_the_store_needs_no_topic() -> None:
    load(NsqToS3Options, "nsq_to_s3", ["--check", "--bucket=archive"], {})
    with pytest.raises(OptionsError, match="--bucket is required"):
        load(NsqToS3Options, "nsq_to_s3", ["--check"], {})
