"""A bucket as its readers see it, with boto3's own client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from nsqtools.archive.reader import open_archive

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stores import StoreServer

BESIDE = (".manifest.json", ".watermark.json")


class Bucket:
    """One bucket of a server; leaving the block closes the client."""

    def __init__(self, server: StoreServer, name: str) -> None:
        self.name = name
        self._client: Any = server.client()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._client.close()

    def create(self) -> Self:
        self._client.create_bucket(Bucket=self.name)
        return self

    def keys(self, prefix: str = "") -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def archives(self) -> list[str]:
        """The keys of archives, without what stands beside them."""
        return [key for key in self.keys() if not key.endswith(BESIDE)]

    def head(self, key: str) -> tuple[str, dict[str, str]]:
        """Content type and metadata; some stores write the names in capitals."""
        found = self._client.head_object(Bucket=self.name, Key=key)
        return found["ContentType"], {k.lower(): v for k, v in found["Metadata"].items()}

    def read(self, key: str) -> bytes:
        body: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def bodies(self, scratch: Path, key: str) -> list[bytes]:
        """The messages of one archive."""
        path = scratch / "downloaded"
        path.write_bytes(self.read(key))
        with open_archive(path) as archive:
            return [body for batch in archive.batches() for body in batch.bodies]

    def all_bodies(self, scratch: Path) -> list[bytes]:
        return [body for key in self.archives() for body in self.bodies(scratch, key)]

    def unfinished_uploads(self) -> list[str]:
        """The keys of uploads in parts that nobody has completed."""
        try:
            found = self._client.list_multipart_uploads(Bucket=self.name)
        except self._client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchUpload":
                return []  # what rclone's server says when there is none
            raise
        return [one["Key"] for one in found.get("Uploads", ())]

    def begin_upload(self, key: str) -> None:
        """One in parts that nobody goes on with."""
        self._client.create_multipart_upload(Bucket=self.name, Key=key)
