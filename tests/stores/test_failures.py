"""What goes wrong is told in words, without secrets, and as passing or not."""

from __future__ import annotations

import datetime as dt
import traceback
from typing import TYPE_CHECKING, Any

import botocore.auth
import pytest
from tests.support.faults import FaultProxy, error_body
from tests.support.stores import ACCESS_KEY, SECRET_KEY, StoreServer
from tests.support.tls import make_certificate

from nsqtools.errors import StoreError
from nsqtools.options import load
from nsqtools.stores.client import Store, open_store
from nsqtools.stores.failures import NO_STORE
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "t/file"
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow")


@pytest.fixture
def put(tmp_path: Path) -> Callable[[Store], StoreError]:
    """Puts a file, which has to fail; gives the error."""
    path = tmp_path / "file"
    path.write_bytes(b"")

    def put_one(store: Store) -> StoreError:
        with pytest.raises(StoreError) as caught:
            put_empty(store, path)
        return caught.value

    return put_one


def put_empty(store: Store, path: Path) -> None:
    path.write_bytes(b"")
    sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    store.put(path, KEY, size_bytes=0, sha256=sha256, metadata={})


@pytest.mark.parametrize(
    ("status", "code", "is_passing"),
    [
        (500, "InternalError", True),
        (503, "SlowDown", True),
        (429, "TooManyRequests", True),
        (400, "RequestTimeout", True),
        (400, "BadDigest", True),
        (200, "InternalError", True),
        (400, "ExpiredToken", True),
        (403, "AccessDenied", False),
        (404, "NoSuchBucket", False),
        (400, "InvalidStorageClass", False),
        (507, "XMinioStorageFull", False),
        (405, "MethodNotAllowed", False),
    ],
)
def test_an_answer_passes_or_stands(
    store: Store,
    proxy: FaultProxy,
    put: Callable[[Store], StoreError],
    status: int,
    code: str,
    is_passing: bool,
) -> None:
    proxy.fail_with(status, code, "PUT", message="some words")
    error = put(store)
    assert (error.is_passing, error.code) == (is_passing, code)
    assert f"put s3://{store.bucket}/{KEY}: " in str(error)
    assert f"{code}: some words" in str(error)


def test_a_403_names_the_permission(
    store: Store, proxy: FaultProxy, put: Callable[[Store], StoreError]
) -> None:
    proxy.fail_with(403, "AccessDenied", "PUT")
    assert f"s3:PutObject on arn:aws:s3:::{store.bucket}/{KEY}" in put(store).hint
    proxy.fail_with(403, "Forbidden", "HEAD")
    hint = put(store).hint
    assert f"s3:GetObject on arn:aws:s3:::{store.bucket}/{KEY}" in hint
    assert f"s3:ListBucket on arn:aws:s3:::{store.bucket} " in hint


def test_clocks_that_differ_are_both_shown(
    store: Store, proxy: FaultProxy, put: Callable[[Store], StoreError]
) -> None:
    for method in ("PUT", "HEAD"):  # a HEAD is refused without a word, and has a Date
        proxy.fail("skew", method)
        error = put(store)
        assert not error.is_passing
        own, store_time = (
            str(error).split("the clocks differ: here it is ")[1].split(" UTC, at the store ")
        )
        apart = dt.datetime.fromisoformat(store_time) - dt.datetime.fromisoformat(own)
        assert abs(apart - dt.timedelta(hours=2)) < dt.timedelta(minutes=5)
        assert "clock" in error.hint


def test_a_real_store_whose_clock_differs(
    store: Store,
    server: StoreServer,
    put: Callable[[Store], StoreError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if server.name == "moto":
        pytest.skip("moto's server looks at no signature")
    real = botocore.auth.get_current_datetime  # type: ignore[attr-defined]

    def later(*args: Any, **more: Any) -> dt.datetime:
        moment: dt.datetime = real(*args, **more)
        return moment + dt.timedelta(hours=2)

    monkeypatch.setattr("botocore.auth.get_current_datetime", later)
    request = f"list s3://{store.bucket}/: the clocks differ"
    with pytest.raises(StoreError, match=request):
        next(store.list())


@pytest.mark.parametrize("kind", ["redirect", "malformed"])
def test_a_wrong_region_is_told_with_the_right_one(
    store: Store, proxy: FaultProxy, put: Callable[[Store], StoreError], kind: str
) -> None:
    if kind == "redirect":
        headers = {"x-amz-bucket-region": "eu-west-3"}
        body = error_body("PermanentRedirect")
        proxy.fail("status", times=100, status=301, body=body, headers=headers)
    else:
        body = error_body("AuthorizationHeaderMalformed", more="<Region>eu-west-3</Region>")
        proxy.fail("status", "PUT", times=100, status=400, body=body)
    error = put(store)
    assert not error.is_passing
    assert "the bucket is in region eu-west-3" in str(error)
    assert error.hint == "Use --region eu-west-3."


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_what_leads_elsewhere_is_asked_a_few_times(
    store: Store, proxy: FaultProxy, put: Callable[[Store], StoreError], status: int
) -> None:
    """A page to log in at: botocore would ask it for the bucket's region until the stack is full."""
    headers = {"Location": "http://127.0.0.1:1/login"}
    proxy.fail("status", times=10_000, status=status, headers=headers)
    error = put(store)
    assert f": {status}" in str(error)
    assert "--endpoint-url" in error.hint
    assert not error.is_passing
    assert len(proxy.lines) <= 3


@pytest.mark.parametrize("body", [b"<html><body>Welcome</body></html>", b""])
def test_what_is_no_list_is_not_an_empty_one(store: Store, proxy: FaultProxy, body: bytes) -> None:
    proxy.fail("status", times=100, status=200, body=body)
    with pytest.raises(StoreError, match="the answer says no IsTruncated") as caught:
        next(store.list(), None)
    assert caught.value.hint == NO_STORE


def test_a_store_that_is_not_there(
    bucket: str, server: StoreServer, put: Callable[[Store], StoreError]
) -> None:
    with FaultProxy(server.address).serving() as proxy:
        url = proxy.endpoint_url
    given = [f"--bucket={bucket}", f"--endpoint-url={url}"]
    with open_store(load(StoreOptions, "x", given, {})) as store:
        error = put(store)
    assert error.is_passing
    assert str(error).endswith(f": connection refused ({url})"), "whoever forgot a flag sees it"


def test_https_where_there_is_none(
    bucket: str, server: StoreServer, put: Callable[[Store], StoreError]
) -> None:
    url = f"https://{server.address}"
    given = [f"--bucket={bucket}", f"--endpoint-url={url}"]
    with open_store(load(StoreOptions, "x", given, {})) as store:
        error = put(store)
    assert error.is_passing
    assert str(error).endswith(f": what answers does not speak TLS ({url})")
    assert error.hint == "Is it http:// and not https://?"


def test_an_answer_that_is_none(store: Store, proxy: FaultProxy) -> None:
    proxy.fail("status", "list-type", times=100, status=200, body=b"<html>")
    with pytest.raises(StoreError) as caught:
        next(store.list())
    assert caught.value.is_passing


@pytest.mark.parametrize("status", [403, 503])
def test_what_a_store_says_cannot_forge_a_line_nor_tell_a_secret(
    store: Store, proxy: FaultProxy, put: Callable[[Store], StoreError], status: int
) -> None:
    echoed = (
        f"no\nFATAL: forged\u202e Credential={ACCESS_KEY}/20260101/x, Signature=5ec2e7, "
        f"https://s3/?X-Amz-Signature=5ec2e7&amp;X-Amz-Security-Token=70ce4 AKIAABCDEFGHIJKLMNOP "
        f"aws_secret_access_key = {SECRET_KEY} " + "x" * 10_000
    )
    proxy.fail_with(status, "Any\x85Code", "PUT", message=echoed)
    error = put(store)
    shown = "".join(traceback.format_exception(error))
    assert "forged" in str(error)
    for text in (str(error), repr(error), error.hint, error.code, error.reason):
        assert len(text) < 2000
        assert text.isprintable()
        for secret in (ACCESS_KEY, SECRET_KEY, "5ec2e7", "70ce4", "AKIAABCDEFGHIJKLMNOP"):
            assert secret not in text
            assert secret not in shown


def test_renewed_credentials_are_found(
    store: Store,
    proxy: FaultProxy,
    server: StoreServer,
    put: Callable[[Store], StoreError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Expired, then those of nobody, and then the right ones: no restart is needed."""
    proxy.fail_with(400, "ExpiredToken", "PUT")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFNOBODY")
    if server.name == "rclone":
        error = put(store)
        assert "403 InvalidAccessKeyId" in str(
            error
        )  # though a HEAD, which came first, has no words
        assert not error.is_passing
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    error = put(store)
    assert error.is_passing
    assert "Renew the credentials" in error.hint
    put_empty(store, tmp_path / "file")
    store.head(KEY)


def test_the_words_that_a_head_lacks_are_asked_for(
    store: Store, proxy: FaultProxy, put: Callable[[Store], StoreError]
) -> None:
    proxy.fail_with(400, "ExpiredToken", "HEAD", times=100)  # boto3 asks for the region, too
    proxy.fail_with(400, "ExpiredToken", "GET")
    error = put(store)
    assert (error.is_passing, error.code) == (True, "ExpiredToken")
    assert put(store).code == "400"


def test_no_credentials_yet(
    store: Store,
    put: Callable[[Store], StoreError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = put(store)
    assert error.is_passing
    assert "credentials" in str(error)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    put_empty(store, tmp_path / "file")


def test_a_profile_that_is_missing(
    opened: Callable[..., Store], put: Callable[[Store], StoreError]
) -> None:
    error = put(opened("--profile=nobody"))
    assert not error.is_passing
    assert "nobody" in str(error)


def test_a_certificate_is_trusted_only_when_it_is_named(
    tmp_path: Path, put: Callable[[Store], StoreError]
) -> None:
    make_certificate(tmp_path, "IP:127.0.0.1")
    folder = tmp_path / "store"
    (folder / "archive").mkdir(parents=True)
    flags = (f"--cert={tmp_path}/cert.pem", f"--key={tmp_path}/key.pem")
    with StoreServer("rclone", folder, *flags) as server:
        given = ["--bucket=archive", f"--endpoint-url={server.endpoint_url}"]
        assert server.endpoint_url.startswith("https:")
        with open_store(load(StoreOptions, "x", given, {})) as store:
            error = put(store)
        assert not error.is_passing
        assert "its certificate is not trusted: self" in str(error)
        assert "--ca-file" in error.hint
        given.append(f"--ca-file={tmp_path}/cert.pem")
        with open_store(load(StoreOptions, "x", given, {})) as store:
            put_empty(store, tmp_path / "file")
            store.head(KEY)


@pytest.mark.parametrize("content", ["", None])
def test_a_ca_file_that_is_none(
    content: str | None, tmp_path: Path, put: Callable[[Store], StoreError]
) -> None:
    """It is no outage, and it is named."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    given = ["--bucket=archive", "--endpoint-url=https://127.0.0.1:1", f"--ca-file={path}"]
    with open_store(load(StoreOptions, "x", given, {})) as store:
        error = put(store)
    assert not error.is_passing
    what = ": No such file or directory" if content is None else " holds no certificates in PEM"
    assert str(error) == f"connect to https://127.0.0.1:1: --ca-file {path}{what}"
