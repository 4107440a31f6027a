"""nsq_to_http by way of proxies: those of the environment, and one that is named."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from tests.programs.nsq_to_http.helpers import (
    counted,
    delivering,
    options_of,
    publish,
    until_settled,
)
from tests.support.clients import until
from tests.support.endpoints import serving
from tests.support.proxies import proxying
from tests.support.tls import make_certificate, serving_as

from nsqtools.errors import OptionsError
from nsqtools.lifecycle import Lifecycle
from nsqtools.options import settings_of
from nsqtools.outputs.http import outcome as outcome_module
from nsqtools.programs.nsq_to_http.run import Shared, dry_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

SECRET = "s3cr3t"
BASIC = base64.b64encode(f"me:{SECRET}".encode())
BODIES = [b"%d" % number for number in range(20)]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.02)
    monkeypatch.setattr(outcome_module, "BACKOFF_MAX_S", 0.05)
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_PROXY".upper(), raising=False)


async def test_the_proxy_of_the_environment(nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as endpoint, proxying(f"me:{SECRET}", endpoint.address) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url(f"me:{SECRET}"))
        url = "http://endpoint.test/{topic}?a={attempts}"
        async with delivering(nsqd, f"--post={url}", "--header=X-A: {id}") as run:
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
            assert counted(run, "connections_opened") <= len(BODIES), "they are kept alive"
        assert sorted(endpoint.bodies) == sorted(BODIES)
        assert {one.path for one in endpoint.received} == {"/t?a=1"}
        assert {one.headers["Host"] for one in endpoint.received} == {"endpoint.test"}
        head = proxy.heads[0]
        assert head.startswith(
            b"POST http://endpoint.test/t?a=1 HTTP/1.1\r\nHost: endpoint.test\r\n"
        )
        assert b"\r\nProxy-Authorization: Basic %b\r\n" % BASIC in head


async def test_a_get_by_a_proxy(nsqd: Nsqd) -> None:
    async with serving() as endpoint, proxying() as proxy:
        url = endpoint.url("/?m=%s")
        async with delivering(nsqd, f"--get={url}", f"--proxy={proxy.url()}"):
            await publish(nsqd, b"a b%s")
            await until_settled(nsqd, 1)
        assert [one.path for one in endpoint.received] == ["/?m=a+b%25s"]
        assert proxy.heads[0].startswith(f"GET {endpoint.url('/?m=a+b%25s')} HTTP/1.1".encode())


async def test_what_needs_tls_goes_through_a_tunnel(nsqd: Nsqd, tmp_path: Path) -> None:
    """And the proxy sees nothing of it, nor the endpoint anything of the proxy's password."""
    make_certificate(tmp_path, "IP:127.0.0.1")
    secret = tmp_path / "secret"
    secret.write_text(f"me:{SECRET}\n")
    async with (
        serving(tls=serving_as(tmp_path)) as endpoint,
        proxying(f"me:{SECRET}") as proxy,
    ):
        flags = (
            *(f"--post={endpoint.url('/put')}", f"--tls-ca={tmp_path / 'cert.pem'}"),
            *(f"--proxy={proxy.url()}", f"--proxy-auth-file={secret}", "--n=2"),
        )
        async with delivering(nsqd, *flags):
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
        assert sorted(endpoint.bodies) == sorted(BODIES)
        assert len(proxy.heads) <= 2
        assert all(head.startswith(b"CONNECT 127.0.0.1:") for head in proxy.heads)
        assert all("Proxy-Authorization" not in one.headers for one in endpoint.received)


@pytest.mark.parametrize("is_direct", ["--no-proxy", "no_proxy", "loopback"])
async def test_without_a_proxy(nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch, is_direct: str) -> None:
    async with serving() as endpoint, proxying() as proxy:
        flags = [f"--post={endpoint.url()}"]
        if is_direct == "no_proxy":
            monkeypatch.setenv("no_proxy", "127.0.0.0/8")
            flags.append(f"--proxy={proxy.url()}")
        else:
            monkeypatch.setenv("ALL_PROXY", proxy.url())
            flags += ["--no-proxy"] if is_direct == "--no-proxy" else []
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
        assert (len(endpoint.received), proxy.heads) == (1, [])


async def test_a_password_that_is_wrong_costs_no_message(
    nsqd: Nsqd, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an outage of the way to the endpoint: nothing goes to the dead letter."""
    caplog.set_level("DEBUG")
    async with serving() as endpoint, proxying("me:other") as proxy:
        flags = (
            *(f"--post={endpoint.url()}", f"--dead-letter-dir={folder}"),
            f"--proxy={proxy.url()}",
        )
        environ = {"NSQ_TO_HTTP_PROXY_AUTH": f"me:{SECRET}"}
        assert SECRET not in repr(options_of(nsqd, *flags, environ=environ))
        assert SECRET not in repr(settings_of(options_of(nsqd, *flags, environ=environ)))
        async with delivering(nsqd, *flags, environ=environ):
            await publish(nsqd, *BODIES)
            await until(lambda: "endpoint is in trouble" in caplog.text)
            proxy.user = f"me:{SECRET}"
            await until_settled(nsqd, len(BODIES))
        assert sorted(endpoint.bodies) == sorted(BODIES)
    assert not list(folder.glob("*.jsonl"))
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("nsqtools")]
    assert any(
        f"status 407: credentials are missing or wrong through proxy {proxy.address}" in line
        for line in ours
    )
    assert not [line for line in ours if SECRET in line or BASIC.decode() in line]


async def test_a_dry_run_shows_no_password(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@proxy.test:1")
    options = options_of(nsqd, "--post=http://endpoint.test/", "--dry-run")
    await publish(nsqd, b"body")
    async with Shared(options) as shared, Lifecycle(5.0, handle_signals=False) as life:
        assert await dry_run(options, shared, life)
    shown = capsys.readouterr().out
    assert "POST http://endpoint.test/ HTTP/1.1" in shown
    assert "Proxy-Authorization: ***" in shown
    assert BASIC.decode() not in shown


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--proxy=http://h:1", "--no-proxy"), "--proxy or --no-proxy not both"),
        (("--proxy-auth-file=f",), "--proxy-auth-file needs --proxy"),
        ((f"--proxy=http://me:{SECRET}@h:1",), "holds credentials"),
        (("--proxy=https://h:1",), "not by https://"),
        ((f"--proxy-auth=me:{SECRET}",), "cannot be given on the command line"),
    ],
)
def test_mistakes(nsqd: Nsqd, flags: tuple[str, ...], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem) as caught:
        options_of(nsqd, "--post=http://h/", *flags)
    assert SECRET not in str(caught.value)


async def test_a_proxy_that_cannot_be_used_ends_the_run(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", f"socks5://me:{SECRET}@h:1")
    with pytest.raises(OptionsError, match="not by socks5://") as caught:
        async with Shared(options_of(nsqd, "--post=http://h/")):
            pass
    assert SECRET not in str(caught.value)
    async with Shared(options_of(nsqd, "--post=http://127.0.0.1/")):
        pass
