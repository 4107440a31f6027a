"""Who we are, for endpoints: an Authorization header, and a signature of each body.

Secrets come from files or the environment, never from the command line, and are in no `repr`.

    X-Nsq-Signature: t=1700000000,v1=<hex of HMAC-SHA256(key, "1700000000." + body)>

The time is that of the request, so that a receiver can refuse what is old.
"""

from __future__ import annotations

import base64
import hmac
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsqtools.errors import OptionsError
from nsqtools.outputs.http.request import HEADER, Header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# A secret is a line; a file that is longer is another one.
SECRET_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The headers of each request, and what signs bodies."""

    headers: tuple[Header, ...] = ()
    sign: Callable[[bytes], bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One that is given itself, or by the file that holds it; `name` is that of its flag."""

    name: str
    value: str = field(default="", repr=False)
    path: Path | None = None

    def read(self) -> str:
        """Without the end of its line. Blocking; raises OptionsError for a file that cannot be read."""
        if self.path is None:
            return self.value
        try:
            with self.path.open("rb") as file:
                text = file.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            problem = f"cannot read --{self.name}-file {self.path}: {error.strerror}"
            raise OptionsError([problem]) from error
        secret = text.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if not secret or len(text) > SECRET_BYTES_MAX or not secret.isprintable():
            raise OptionsError([f"--{self.name}-file {self.path} does not hold one line of text"])
        return secret


def credentials(*, basic: Secret, bearer: Secret, key: Secret, header_name: str) -> Credentials:
    """What the secrets make. Blocking; raises OptionsError."""
    headers: list[Header] = []
    if value := basic_of(basic):
        headers.append(Header(name="Authorization", value=value))
    if token := bearer.read():
        headers.append(_bearer(token, bearer.name))
    secret = key.read()
    sign = _signer(secret.encode("utf-8", "surrogateescape"), header_name) if secret else None
    return Credentials(headers=tuple(headers), sign=sign)


def basic_of(secret: Secret) -> str:
    """What a header says for `user:password`; nothing where there is none. Blocking; raises
    OptionsError."""
    user = secret.read()
    if not user:
        return ""
    if ":" not in user:
        raise OptionsError([f"--{secret.name} should be user:password"])
    token = base64.b64encode(user.encode("utf-8", "surrogateescape")).decode("ascii")
    return f"Basic {token}"


def _bearer(token: str, name: str) -> Header:
    try:
        return HEADER.parse(f"Authorization: Bearer {token}")
    except ValueError:  # whose text may hold a part of the secret
        raise OptionsError([f"--{name} holds what a header cannot"]) from None


def _signer(key: bytes, header_name: str) -> Callable[[bytes], bytes]:
    start = f"{header_name}: t=".encode("ascii")

    def sign(body: bytes) -> bytes:
        now = b"%d" % time.time()
        mac = hmac.digest(key, b"%b.%b" % (now, body), "sha256").hex()
        return b"%b%b,v1=%b\r\n" % (start, now, mac.encode("ascii"))

    return sign
