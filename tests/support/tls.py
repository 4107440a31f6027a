"""Certificates that sign themselves."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_certificate(folder: Path, names: str) -> None:
    """`cert.pem` and `key.pem` for names such as `DNS:example.test,IP:127.0.0.1`."""
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=example.test"),
        *("-addext", f"subjectAltName={names}"),
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)


def serving_as(folder: Path) -> ssl.SSLContext:
    """For a server that has the certificate of a folder."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def trusting(folder: Path) -> ssl.SSLContext:
    """For a client that trusts that certificate alone."""
    return ssl.create_default_context(cafile=folder / "cert.pem")
