"""nsq_to_http with --body-template, alone and with all that bodies go through."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import (
    counted,
    delivering,
    options_of,
    publish,
    until_settled,
    until_stats,
)
from tests.support.endpoints import Received, serving

from nsqtools.errors import OptionsError
from nsqtools.lifecycle import Lifecycle
from nsqtools.outputs.http import outcome as outcome_module
from nsqtools.programs.nsq_to_http.run import Shared, dry_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

SLACK = '{"text": "{topic}: {body}"}'
BODIES = [b'order "%d"\n' % number for number in range(50)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(outcome_module, "BACKOFF_MAX_S", 0.02)


async def test_a_webhook(nsqd: Nsqd) -> None:
    async with serving() as endpoint:
        flags = (f"--post={endpoint.url()}", f"--body-template={SLACK}")
        environ = {"NSQ_TO_HTTP_HMAC_KEY": "key"}
        async with delivering(nsqd, *flags, environ=environ):
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
    texts = [json.loads(body)["text"] for body in endpoint.bodies]
    assert sorted(texts) == sorted(f"t: {body.decode()}" for body in BODIES)
    for one in endpoint.received:
        assert one.headers["Content-Type"] == "application/json"
        stamp, _, signature = one.headers["X-Nsq-Signature"].partition(",v1=")
        signed = stamp.removeprefix("t=").encode() + b"." + one.body
        assert signature == hmac.new(b"key", signed, hashlib.sha256).hexdigest()


async def test_each_message_has_its_own(nsqd: Nsqd) -> None:
    template = '{"id": "{id}", "at": {timestamp}, "n": {attempts}, "from": "{nsqd}", "is": {body}}'
    async with serving() as endpoint:
        flags = (f"--post={endpoint.url('/{id}')}", f"--body-template={template}")
        async with delivering(nsqd, *flags, "--content-type=application/x"):
            await publish(nsqd, b"[1]", b'{"a": null}')
            await until_settled(nsqd, 2)
    found = {one.path[1:]: json.loads(one.body) for one in endpoint.received}
    assert sorted(str(one["is"]) for one in found.values()) == ["[1]", "{'a': None}"]
    for message_id, one in found.items():
        assert (one["id"], one["n"], one["from"]) == (message_id, 1, nsqd.tcp_address)
    assert {one.headers["Content-Type"] for one in endpoint.received} == {"application/x"}


@pytest.mark.parametrize(
    ("flags", "content_type"),
    [
        (("--batch-format=json",), "application/json"),
        (("--batch-format=lines",), "application/x-ndjson"),
        (("--batch-format=length-prefixed",), "application/octet-stream"),
    ],
)
async def test_in_a_batch_each_is_made(
    nsqd: Nsqd, flags: tuple[str, ...], content_type: str
) -> None:
    await publish(nsqd, *BODIES)
    async with serving() as endpoint:
        words = (f"--post={endpoint.url()}", f"--body-template={SLACK}", "--compress=gzip")
        async with delivering(nsqd, *words, *flags, "--batch-size=20") as run:
            await until_settled(nsqd, len(BODIES))
            assert counted(run, "ambiguous_messages") == 0, "newlines are escaped"
            assert counted(run, "requests") < len(BODIES) / 5
    assert {one.headers["Content-Type"] for one in endpoint.received} == {content_type}
    found = [one["text"] for each in endpoint.received for one in parted(each, content_type)]
    assert sorted(found) == sorted(f"t: {body.decode()}" for body in BODIES)


def parted(one: Received, content_type: str) -> list[dict[str, str]]:
    if content_type == "application/json":
        found: list[dict[str, str]] = json.loads(one.body)
        return found
    if content_type == "application/x-ndjson":
        return [json.loads(line) for line in one.body.splitlines()]
    rest, texts = one.body, []
    while rest:
        size = int.from_bytes(rest[:4], "big")
        texts.append(json.loads(rest[4 : 4 + size]))
        rest = rest[4 + size :]
    return texts


async def test_what_does_not_fit_goes_to_the_dead_letter_as_it_was(
    nsqd: Nsqd, folder: Path
) -> None:
    async with serving() as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", f"--body-template={SLACK}", "--batch-size=5"),
            *(f"--dead-letter-dir={folder}", "--batch-format=json"),
        )
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, b"good", b"\xff\xfe", b"fine")
            await until_settled(nsqd, 3)
            assert counted(run, "dead_lettered") == 1
    texts = [one["text"] for body in endpoint.bodies for one in json.loads(body)]
    assert sorted(texts) == ["t: fine", "t: good"]
    (path,) = folder.glob("*.jsonl")
    kept = json.loads(path.read_text())
    assert (kept["body_b64"], kept["status"]) == ("//4=", 0)
    assert kept["error"] == "the body is not UTF-8, and cannot stand within quotes"


async def test_a_bad_one_is_found_in_a_batch(nsqd: Nsqd, folder: Path) -> None:
    """A part of a batch is made of the same texts."""

    def answer(one: Received) -> web.Response:
        return web.Response(status=400 if b'"t: bad"' in one.body else 200)

    await publish(nsqd, *[b"good %d" % number for number in range(10)], b"bad")
    async with serving(answer) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", f"--body-template={SLACK}", "--batch-size=20"),
            *(f"--dead-letter-dir={folder}", "--batch-format=json"),
        )
        async with delivering(nsqd, *flags):
            await until_settled(nsqd, 11)
    (path,) = folder.glob("*.jsonl")
    assert json.loads(path.read_text())["body"] == "bad"


async def test_all_endpoints_and_a_sample(nsqd: Nsqd) -> None:
    async with serving() as one, serving() as two:
        flags = (f"--post={one.url()}", f"--post={two.url()}", "--mode=all", "--sample=0.5")
        async with delivering(nsqd, *flags, f"--body-template={SLACK}"):
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
    assert sorted(one.bodies) == sorted(two.bodies)
    assert 0 < len(one.bodies) < len(BODIES)
    assert all(body.startswith(b'{"text": "t: order') for body in one.bodies)


@pytest.mark.parametrize(
    ("body", "shown"),
    [(b'"x"', '\n\n{"text": "t: \\"x\\""}'), (b"\xff", "nothing would be sent: the body is not")],
)
async def test_a_dry_run_shows_it(
    nsqd: Nsqd, capsys: pytest.CaptureFixture[str], body: bytes, shown: str
) -> None:
    options = options_of(nsqd, "--post=http://h/", "--dry-run", f"--body-template={SLACK}")
    await publish(nsqd, body)
    async with Shared(options) as shared, Lifecycle(5.0, handle_signals=False) as life:
        assert await dry_run(options, shared, life)
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--get=http://h/%s", f"--body-template={SLACK}"), "--body-template needs --post"),
        (("--post=http://h/", "--body-template={body"), "should be JSON, as in"),
        (("--post=http://h/", '--body-template="{nothing}"'), "unknown field"),
    ],
)
def test_mistakes(nsqd: Nsqd, flags: tuple[str, ...], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        options_of(nsqd, *flags)


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ("--whitelist-json-field=a", '\n\n{"text": "t: {\\"a\\":1}"}'),
        ("--grep=absent", "nothing would be sent: the message is removed by --grep\n"),
        (
            "--transform=json:loads",
            "the message is refused: --transform returned dict: dict is not",
        ),
    ],
)
async def test_a_dry_run_shows_what_filters_leave_and_removes_nothing(
    nsqd: Nsqd, capsys: pytest.CaptureFixture[str], flag: str, shown: str
) -> None:
    options = options_of(nsqd, "--post=http://h/", "--dry-run", f"--body-template={SLACK}", flag)
    await publish(nsqd, b'{"a":1,"b":2}')
    async with Shared(options) as shared, Lifecycle(5.0, handle_signals=False) as life:
        assert await dry_run(options, shared, life)
    assert shown in capsys.readouterr().out
    await until_stats(nsqd, lambda now: (now["depth"], now["in_flight_count"]) == (1, 0))
