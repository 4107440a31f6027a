"""A real nginx, where there is one: on loopback, in a folder of its own, gone with its block."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

END_TIMEOUT_S = 20.0
_CONFIG = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr notice;
{user}
events {{ worker_connections 512; }}
http {{
    log_format told '$connection $status $request_uri';
    access_log {folder}/access.log told;
    client_body_temp_path {folder}/temp;
    proxy_temp_path {folder}/temp;
    fastcgi_temp_path {folder}/temp;
    uwsgi_temp_path {folder}/temp;
    scgi_temp_path {folder}/temp;
    {http}
    server {{
        listen {address}{tls};
        {server}
    }}
}}
"""


def find() -> str:
    """The path of nginx, or nothing: what NGINX_BINARY names, else that of the PATH, where it can say its
    errors to us."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    found = os.environ.get("NGINX_BINARY", shutil.which("nginx", path=path))
    if not found:
        return ""
    said = subprocess.run([found, "-e", "stderr", "-v"], capture_output=True, check=False)
    return "" if said.returncode else found


MISSING = "nginx 1.19.5 or later is not installed"


class Asked(NamedTuple):
    """A request as nginx saw it."""

    connection: str
    status: int
    target: str


@dataclass
class Nginx:
    """One that runs."""

    address: str
    folder: Path
    scheme: str

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://{self.address}{path}"

    @property
    def asked(self) -> list[Asked]:
        lines = (self.folder / "access.log").read_text().splitlines()
        parted = (line.split(" ") for line in lines)
        return [Asked(connection, int(status), target) for connection, status, target in parted]

    def count(self, status: int) -> int:
        return sum(one.status == status for one in self.asked)


@contextlib.asynccontextmanager
async def nginx(
    folder: Path, server: str, *, http: str = "", certificate: Path | None = None
) -> AsyncIterator[Nginx]:
    """One with these lines in its server block, and these outside of it. With a `certificate` (a folder)
    it speaks TLS."""
    # nginx takes a socket that listens already, as at an upgrade: so its port is free and known.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        if certificate is not None:
            names = f"{certificate}/cert.pem; ssl_certificate_key {certificate}/key.pem;"
            server = f"ssl_certificate {names} {server}"
        config = _CONFIG.format(
            folder=folder,
            user=_user(),
            http=http,
            address=address,
            tls=" ssl" if certificate else "",
            server=server,
        )
        (folder / "nginx.conf").write_text(config)
        with (folder / "error.log").open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(find(), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")),
                env={**os.environ, "NGINX": f"{listener.fileno()};"},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
    try:
        yield Nginx(address, folder, "https" if certificate else "http")
        assert process.returncode is None, (folder / "error.log").read_text()
    finally:
        await _end(process)


def _user() -> str:
    """Its worker should be who we are, and read what is ours; for others than root it is so anyway."""
    if os.geteuid():
        return ""
    return f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};"


async def _end(process: asyncio.subprocess.Process) -> None:
    """With its worker, which is in the same session."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
