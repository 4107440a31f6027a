"""Object stores for tests: moto's server and `rclone serve s3`, two that were written apart.

Each is a process of its own on a port of its own. rclone's checks signatures and Content-MD5 and passes
over If-None-Match and If-Match; moto's does the opposite.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

ACCESS_KEY = "AKIDTESTTESTTEST"
SECRET_KEY = "SECRETsecretSECRETsecret"
PATIENCE_S = 60.0
_STARTED = re.compile(r"(?:Running on|Starting s3 server on) \[?(https?://[0-9.:]+)")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class StoreServer:
    """A server in a process; leaving the block kills it."""

    def __init__(self, name: str, folder: Path, *flags: str) -> None:
        """`folder` holds what rclone's stores; moto's keeps it in memory. `flags` are rclone's."""
        self.name = name
        self.folder = folder
        self._flags = flags
        self.endpoint_url = ""
        self._log: list[str] = []
        self._started = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._reading: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start("127.0.0.1:0")
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.kill()

    @property
    def has_conditions(self) -> bool:
        """Whether it knows If-None-Match and If-Match."""
        return self.name == "moto"

    @property
    def address(self) -> str:
        return self.endpoint_url.partition("://")[2]

    def _command(self, address: str) -> Sequence[str]:
        if self.name == "moto":
            host, _, port = address.rpartition(":")
            return (sys.executable, "-m", "moto.server", "-H", host, "-p", port)
        rclone = Path(sysconfig.get_path("scripts")) / "rclone"
        keys = f"--auth-key={ACCESS_KEY},{SECRET_KEY}"
        flags = ("--config=/dev/null", f"--addr={address}", keys)
        return (str(rclone), "serve", "s3", *flags, *self._flags, str(self.folder))

    def start(self, address: str) -> None:
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        self._started.clear()
        self._process = subprocess.Popen(
            self._command(address), stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stderr is not None
        self._reading = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reading.start()
        assert self._started.wait(PATIENCE_S), self._log

    def restart(self) -> None:
        """Kill it, and start it where it was."""
        self.kill()
        self.start(self.address)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._reading is not None:
            process.kill()
            process.wait()
            self._reading.join()

    def _read(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                self._log = [*self._log[-200:], line]
                if found := _STARTED.search(line):
                    self.endpoint_url = found[1]
                    self._started.set()

    def client(self) -> Any:
        """boto3's own client, as anybody would use it."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )
