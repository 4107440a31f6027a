"""Who we are: headers of the message, credentials and signatures; secrets are shown nowhere."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import delivering, options_of, publish, until_settled
from tests.support.clients import until
from tests.support.endpoints import Received, serving

from nsqtools.errors import OptionsError
from nsqtools.options import settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

SECRET = "s3cr3t"


async def received(
    nsqd: Nsqd,
    *flags: str,
    bodies: tuple[bytes, ...] = (b"body",),
    secrets: dict[str, str] | None = None,
) -> list[Received]:
    """What an endpoint gets of these bodies."""
    await publish(nsqd, *bodies)
    async with serving() as endpoint:
        variables = {
            f"NSQ_TO_HTTP_{name.upper()}": value for name, value in (secrets or {}).items()
        }
        async with delivering(nsqd, f"--post={endpoint.url()}", *flags, environ=variables):
            await until_settled(nsqd, len(bodies))
        return endpoint.received


async def test_headers_say_which_message_it_is(nsqd: Nsqd) -> None:
    (one,) = await received(nsqd, "--nsq-headers")
    assert re.fullmatch(r"[0-9a-f]{16}", one.headers["X-Nsq-Message-Id"])
    assert abs(int(one.headers["X-Nsq-Timestamp"]) / 1e9 - time.time()) < 60
    assert one.headers["X-Nsq-Attempts"] == "1"
    assert one.headers["X-Nsq-Topic"] == "t"


async def test_of_a_batch_they_say_the_topic(nsqd: Nsqd) -> None:
    found = await received(nsqd, "--nsq-headers", "--batch-size=9", bodies=(b"1", b"2"))
    names = {name for one in found for name in one.headers if name.startswith("X-Nsq-")}
    assert names == {"X-Nsq-Topic"}


@pytest.mark.parametrize(
    ("name", "secret", "expected"),
    [
        ("basic_auth", "user:s3cr3t", "Basic dXNlcjpzM2NyM3Q="),
        ("bearer_token", "s3cr3t", "Bearer s3cr3t"),
    ],
)
async def test_credentials_from_the_environment_or_a_file(
    nsqd: Nsqd, folder: Path, name: str, secret: str, expected: str
) -> None:
    path = folder / "secret"
    path.write_text(f"{secret}\n")
    (one,) = await received(nsqd, secrets={name: secret})
    assert one.headers["Authorization"] == expected
    flag = f"--{name.replace('_', '-')}-file={path}"
    options = options_of(nsqd, "--post=http://h/", flag)
    assert SECRET not in repr(options)
    assert SECRET not in repr(settings_of(options))


async def test_a_file_of_a_secret_is_read(nsqd: Nsqd, folder: Path) -> None:
    path = folder / "secret"
    path.write_text("tok\r\n")
    (one,) = await received(nsqd, f"--bearer-token-file={path}")
    assert one.headers["Authorization"] == "Bearer tok"


async def test_bodies_are_signed_with_the_time(nsqd: Nsqd) -> None:
    bodies = (b"one", b"two \xff")
    for one in await received(nsqd, bodies=bodies, secrets={"hmac_key": SECRET}):
        found = re.fullmatch(r"t=([0-9]+),v1=([0-9a-f]{64})", one.headers["X-Nsq-Signature"])
        assert found
        assert abs(int(found[1]) - time.time()) < 60
        signed = found[1].encode() + b"." + one.body
        assert found[2] == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()


async def test_what_is_signed_is_what_is_sent(nsqd: Nsqd) -> None:
    """Compressed, and in a batch."""
    flags = ("--batch-size=5", "--batch-format=length-prefixed", "--hmac-header=X-Sign")
    for one in await received(nsqd, *flags, secrets={"hmac_key": SECRET}):
        stamp, _, signature = one.headers["X-Sign"].partition(",v1=")
        signed = stamp.removeprefix("t=").encode() + b"." + one.body
        assert signature == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("flags", "environ", "problem"),
    [
        ((f"--basic-auth=user:{SECRET}",), {}, "cannot be given on the command line"),
        ((f"--hmac-key={SECRET}",), {}, "cannot be given on the command line"),
        (("--hmac-key-file=f",), {"HMAC_KEY": SECRET}, "are both given"),
        (("--basic-auth-file=f", "--bearer-token-file=g"), {}, "not both"),
        (("--hmac-header=a b",), {}, "character"),
    ],
)
def test_mistakes_do_not_show_secrets(
    nsqd: Nsqd, flags: tuple[str, ...], environ: dict[str, str], problem: str
) -> None:
    variables = {f"NSQ_TO_HTTP_{name}": value for name, value in environ.items()}
    with pytest.raises(OptionsError, match=problem) as caught:
        options_of(nsqd, "--post=http://h/", *flags, environ=variables)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", f"{SECRET}\nmore\n", f"{SECRET}\x00"])
async def test_a_file_that_holds_no_secret(nsqd: Nsqd, folder: Path, content: str | None) -> None:
    path = folder / "secret"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OptionsError, match=r"--bearer-token-file .*secret") as caught:
        await received(nsqd, f"--bearer-token-file={path}")
    assert SECRET not in str(caught.value)


async def test_an_endpoint_that_says_secrets_again(
    nsqd: Nsqd, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def echo(one: Received) -> web.Response:
        return web.Response(status=400, text=f"you said {one.headers}")

    async with serving(echo) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", f"--dead-letter-dir={folder}"),
            "--header=X-Key: s3cr3t of ours",
        )
        variables = {"NSQ_TO_HTTP_BEARER_TOKEN": SECRET * 3}
        async with delivering(nsqd, *flags, environ=variables):
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
    (path,) = folder.glob("*.jsonl")
    assert "you said" in path.read_text()
    assert SECRET not in path.read_text() + "".join(capsys.readouterr())


async def test_an_endpoint_that_says_again_what_is_secret_in_a_template(
    nsqd: Nsqd, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a query, too: many say which URL they did not find."""

    def echo(one: Received) -> web.Response:
        return web.Response(status=404, text=f"no {one.path}, {one.headers['X-Key']} is no key")

    async with serving(echo) as endpoint:
        url = endpoint.url(f"/?topic={{topic}}&key=a%2B{SECRET}")
        flags = (f"--header=X-Key: {{topic}}-{SECRET}", f"--dead-letter-dir={folder}")
        async with delivering(nsqd, f"--post={url}", *flags):
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
    (path,) = folder.glob("*.jsonl")
    assert "no /?topic=t&key=***, t***" in path.read_text()
    assert SECRET not in path.read_text() + "".join(capsys.readouterr())


async def test_a_key_may_be_any_bytes(nsqd: Nsqd) -> None:
    key = b"\xff" + SECRET.encode()
    variable = key.decode("utf-8", "surrogateescape")  # as Python reads the environment
    for one in await received(nsqd, secrets={"hmac_key": variable}):
        stamp, _, signature = one.headers["X-Nsq-Signature"].partition(",v1=")
        signed = stamp.removeprefix("t=").encode() + b"." + one.body
        assert signature == hmac.new(key, signed, hashlib.sha256).hexdigest()


async def test_no_log_line_shows_a_secret(
    nsqd: Nsqd, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with serving(status=401) as endpoint:
        url = endpoint.url(f"/?key={SECRET}")
        environ = {"NSQ_TO_HTTP_BEARER_TOKEN": SECRET}
        flags = (f"--post={url}", f"--header=X-Key: {SECRET}", f"--dead-letter-dir={folder}")
        async with delivering(nsqd, *flags, environ=environ):
            await publish(nsqd, b"1")
            await until_settled(nsqd, 1)
            endpoint.status = 500
            await publish(nsqd, b"2")
            await until(lambda: "endpoint is in trouble" in caplog.text)
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("nsqtools")]
    assert any(endpoint.address in line for line in ours)
    assert not [line for line in ours if SECRET in line]
    assert all(SECRET not in path.read_text() for path in folder.glob("*.jsonl"))
