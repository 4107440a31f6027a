"""The way to a store: one boto3 client for all threads, and what it is told.

Botocore makes one try. Which failures are worth another, and when, is decided here and by who calls;
a store that is down for weeks is not a failure that ends a run. What is sent is checked by the store: on
AWS by a checksum of its own kind (CRC32; SHA-256 where the whole object is in one request), elsewhere
by Content-MD5, which every store knows and most check, while `x-amz-checksum-*` is often passed over.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from nsqtools.clock import SystemClock
from nsqtools.errors import StoreClosed, StoreError
from nsqtools.options import mask_passwords
from nsqtools.stores.answers import bound
from nsqtools.stores.failures import Request, clean, explain, is_of_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.clock import Clock
    from nsqtools.stores.options import StoreOptions

T = TypeVar("T")

# Of what is asked of the store in passing: a page of a list, a look, a part among thousands.
TRIES = 4
FIRST_WAIT_S = 0.2
# How soon a wait for an answer notices that the store was closed.
_LOOK_S = 0.1
_AWS = (".amazonaws.com", ".amazonaws.com.cn")
# What a store that is not AWS is signed for, when nobody names a region.
_REGION = "us-east-1"


def is_aws(endpoint_url: str) -> bool:
    """Whether a store is Amazon's own."""
    return (urlsplit(endpoint_url).hostname or "").endswith(_AWS)


def profiles() -> list[str]:
    """The profiles of AWS's configuration files; raises ValueError for a file that is none."""
    import botocore.session
    from botocore import exceptions as boto

    try:
        return sorted(botocore.session.Session().available_profiles)
    except boto.BotoCoreError as error:
        raise ValueError(clean(str(error))) from None


class Connection:
    """Asks a store for things; used by any number of threads at once. Every call blocks."""

    def __init__(self, options: StoreOptions, *, clock: Clock | None = None) -> None:
        self._options = options
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._client: Any = None
        self._closed = threading.Event()
        self.is_aws = False
        """Known after the first request."""

    def close(self) -> None:
        """End every wait; what is asked for later is refused."""
        self._closed.set()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def prepare(self, wait_s: float) -> None:
        """Make all that the first request needs, which takes a tenth of a second of a processor in which
        nothing else runs, in any thread. The store is not asked; a failure is left to the first request.

        Credentials may have to be fetched: after `wait_s` that goes on in a thread of its own.
        """

        def connect() -> None:
            import encodings.idna  # noqa: F401 - looking up a host loads it

            # Whatever it is, the first request says it to somebody who waits for it.
            with contextlib.suppress(Exception):
                self._connected()

        thread = threading.Thread(target=connect, name="store-connect", daemon=True)
        thread.start()
        thread.join(wait_s)

    def wait(self, delay_s: float) -> None:
        """Sleep; raises StoreClosed when the store is closed meanwhile."""
        if self._closed.is_set() or (delay_s > 0 and self._closed.wait(delay_s)):
            raise StoreClosed

    def call(self, request: Request, **parameters: Any) -> dict[str, Any]:
        """One try of a request; raises what `failures.explain` makes of a failure."""
        self.wait(0)
        if self._options.requester_pays:
            parameters["RequestPayer"] = "requester"
        if request.key:
            parameters["Key"] = request.key
        client: Any = None
        try:
            client = self._connected()
            answer: dict[str, Any] = getattr(client, request.method)(
                Bucket=request.bucket, **parameters
            )
        except Exception as error:  # noqa: BLE001 - none of boto3's own may get out
            failure = explain(error, request, self._clock.time())
        else:
            return answer
        if is_of_identity(failure):
            self._forget(client)
        raise failure

    def patiently(self, request: Request, **parameters: Any) -> dict[str, Any]:
        """`call`, and again a few times while its failure is a passing one."""
        return self.tried(lambda: self.call(request, **parameters))

    def ask(self, request: Request, **parameters: Any) -> dict[str, Any]:
        """`patiently`, of what changes nothing: closing ends the wait for an answer, too."""
        return self.tried(lambda: self.until_closed(lambda: self.call(request, **parameters)))

    def until_closed(self, work: Callable[[], T]) -> T:
        """What `work` gives or raises; raises as `wait` does when the store is closed meanwhile.

        `work` is then left to itself, in a thread that no end of the process waits for: what waits for
        an answer cannot be woken. So it should change nothing.
        """
        made: list[T] = []
        failed: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                made.append(work())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                failed.append(error)
            done.set()

        threading.Thread(target=run, name="store-ask", daemon=True).start()
        while not done.wait(_LOOK_S):
            self.wait(0)
        if failed:
            raise failed[0]
        return made[0]

    def tried(
        self, call: Callable[[], dict[str, Any]], *, is_wanted: Callable[[], bool] = lambda: True
    ) -> dict[str, Any]:
        """A few tries of `call` while it is wanted, with jittered waits between."""
        for attempt in range(TRIES - 1):
            try:
                return call()
            except StoreError as error:
                if not error.is_passing or not is_wanted():
                    raise
            self.wait_after(attempt)
        return call()

    def wait_after(self, attempt: int) -> None:
        """The pause behind a try that failed, counted from 0."""
        self.wait(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _forget(self, client: Any) -> None:
        """Let the next call look for credentials again: they may have been renewed where they were
        found. Requests of others that are under way are not touched."""
        with self._lock:
            if self._client is client:
                self._client = None

    def _connect(self) -> Any:
        import boto3
        from botocore import exceptions as boto

        try:
            self._check_ca_file()
            session = boto3.session.Session(
                profile_name=self._options.profile, region_name=self._options.region
            )
            client = self._make(session, for_aws=self._options.endpoint_url is None)
            # The environment and the profile can name another store, too.
            self.is_aws = is_aws(client.meta.endpoint_url)
            if self.is_aws != (self._options.endpoint_url is None):
                client.close()
                client = self._make(session, for_aws=self.is_aws)
        except (boto.BotoCoreError, ValueError, OSError) as error:
            reason = clean(mask_passwords(str(error)))
        else:
            return client
        raise StoreError("connect to", self._options.endpoint_url or "S3", reason, is_passing=False)

    def _check_ca_file(self) -> None:
        """Raises ValueError: boto3 tells nothing of it before the first answer, and then not its name."""
        path = self._options.ca_file
        if path is None:
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError:
            raise ValueError(f"--ca-file {path} holds no certificates in PEM") from None
        except OSError as error:
            raise ValueError(f"--ca-file {path}: {error.strerror}") from None

    def _make(self, session: Any, *, for_aws: bool) -> Any:
        from botocore.config import Config

        options = self._options
        # The checksum is signed with the other headers, and stands for what is sent.
        s3: Any = {"addressing_style": options.addressing, "payload_signing_enabled": False}
        checksums: Any = "when_supported" if for_aws else "when_required"
        client = session.client(
            "s3",
            endpoint_url=options.endpoint_url,
            region_name=session.region_name or (None if for_aws else _REGION),
            verify=str(options.ca_file) if options.ca_file else None,
            config=Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=options.store_timeout_s,
                read_timeout=options.store_timeout_s,
                max_pool_connections=max(64, 4 * options.upload_concurrency),
                request_checksum_calculation=checksums,
                response_checksum_validation=checksums,
                s3=s3,
            ),
        )
        bound(client, options.store_timeout_s)
        client.meta.events.register("before-call.s3.HeadBucket", _once)
        return client


def _once(params: dict[str, Any], **_: Any) -> None:
    """Botocore asks for the bucket when a request is redirected, to learn its region; where that is
    redirected, too, it would ask for ever."""
    params["context"]["s3_redirect"]["redirected"] = True
