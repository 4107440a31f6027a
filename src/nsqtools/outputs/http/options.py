"""The options of delivery by HTTP: NSQ's flags, defaults and words, and ours beside them."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools.options import (
    ADDRESS,
    BOOL,
    FOLDER,
    PATH,
    SECRET,
    TEXT,
    Choice,
    Duration,
    Float,
    Int,
    Kind,
    Size,
    option,
    repeated,
)
from nsqtools.outputs.http.batches import BatchFormat, Batching, Encoding
from nsqtools.outputs.http.body_template import BODY_TEMPLATE
from nsqtools.outputs.http.outcome import STATUS, Rules
from nsqtools.outputs.http.proxy import ProxyKind
from nsqtools.outputs.http.request import GET_FIELD, HEADER, HEADER_NAME, Header, Method
from nsqtools.outputs.http.template import OF_MESSAGE, Template, escape_url
from nsqtools.outputs.http.url import split_url
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Mode = Literal["round-robin", "hostpool", "epsilon-greedy", "all"]
BATCH_FORMAT: Kind[BatchFormat] = Choice(("lines", "json", "length-prefixed"))
ENCODING: Kind[Encoding] = Choice(("none", "gzip", "zstd"))
# All of a batch is held in memory several times for a moment.
BATCH_SIZE_MAX = 10_000
Concurrency = Literal["fixed", "auto"]
CONCURRENCY: Kind[Concurrency] = Choice(("fixed", "auto"))
MODE: Kind[Mode] = Choice(("round-robin", "hostpool", "epsilon-greedy", "all"))
JSON = "application/json"
JSON_LINES = "application/x-ndjson"
CONTENT_TYPE = "application/octet-stream"
HMAC_HEADER = "X-Nsq-Signature"
# Each of them can be a connection, and so a file descriptor.
CONCURRENCY_MAX = 1000
# Whoever is sent on more often is sent in a circle.
REDIRECTS_MAX = 20
# With what a URL is tried before there is a topic.
EXAMPLE = {"topic": "topic", "channel": "channel"}

_ENDPOINTS = "Where messages go"
_REQUESTS = "What a request is"
_SECRETS = "Who we are"
_REPLIES = "What a reply means"
_GIVING_UP = "What is never taken"
_POSITIVE = Duration(minimum="1ns")
_SHOULD_BE_POSITIVE = "{flag} should be positive"


class UrlKind(Kind[str]):
    """The URL of an endpoint; a template."""

    metavar = "URL"
    explain = (
        "http://host:port/path, https://..., or http+unix://%2Frun%2Fapp.sock/path; {topic} {channel}"
        " {id} {timestamp} {attempts} and {nsqd} stand for those of a message"
    )
    separator = " "

    def parse(self, text: str) -> str:
        url = split_url(text, EXAMPLE)
        Template(url.target, fixed=EXAMPLE, escape=escape_url)
        return text

    def told(self, text: str) -> str:
        """Without the query: a key often stands there."""
        path, mark, query = text.partition("?")
        return f"{path}?..." if mark and query else text


class ContentType(Kind[str]):
    """A header's value that must not be empty."""

    metavar = "TYPE"

    def parse(self, text: str) -> str:
        if not text:
            raise ValueError("--content-type requires a value when used")
        return HEADER.parse(f"Content-Type: {text}").value


URL = UrlKind()


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """How messages are delivered. Times are in seconds, sizes in bytes."""

    post: tuple[str, ...] = repeated(
        URL, help="endpoint to POST to; the message is the body", group=_ENDPOINTS
    )
    get: tuple[str, ...] = repeated(
        URL,
        help="endpoint to GET from; the message stands for the one %s in it, form-encoded",
        group=_ENDPOINTS,
    )
    mode: Mode = option(
        MODE,
        default="hostpool",
        help="which endpoint gets a message: in turn; those that work; the quicker, the more often;"
        " or each message to all",
        group=_ENDPOINTS,
    )
    n: int = option(
        Int(minimum=1, maximum=CONCURRENCY_MAX),
        default="100",
        help="requests of a topic that are under way at once",
        group=_ENDPOINTS,
    )
    concurrency: Concurrency = option(
        CONCURRENCY,
        default="fixed",
        help="fixed: up to --n requests at once; auto: for each endpoint as many, up to --n, as it takes"
        " without becoming slower",
        group=_ENDPOINTS,
    )
    rate_per_s: float = option(
        Float(minimum=0),
        default="0",
        help="requests of a topic a second, 0: as fast as it goes",
        group=_ENDPOINTS,
    )
    http_client_connect_timeout_s: float = option(
        _POSITIVE,
        default="2s",
        help="time for a connection to be made, to an endpoint or to nsqlookupd",
        group=_ENDPOINTS,
        problem=_SHOULD_BE_POSITIVE,
    )
    http_client_request_timeout_s: float = option(
        _POSITIVE,
        default="20s",
        help="time for a reply of an endpoint or of nsqlookupd",
        group=_ENDPOINTS,
        problem=_SHOULD_BE_POSITIVE,
    )
    tls_ca: Path | None = option(
        PATH,
        help="certificates (PEM) that an endpoint's may be signed by; default: the system's",
        group=_ENDPOINTS,
    )
    tls_cert: Path | None = option(
        PATH, help="client certificate (PEM), with its key unless --tls-key", group=_ENDPOINTS
    )
    tls_key: Path | None = option(PATH, help="key of the client certificate", group=_ENDPOINTS)
    tls_server_name: str = option(
        TEXT,
        default="",
        help="name that an endpoint's certificate must have; default: the URL's host",
        group=_ENDPOINTS,
    )
    proxy: str | None = option(
        ProxyKind(),
        help="proxy for all endpoints but those in NO_PROXY, http://host:port; default: what"
        " http_proxy, https_proxy and all_proxy of the environment say, and none for this machine",
        group=_ENDPOINTS,
    )
    no_proxy: bool = option(
        BOOL,
        default="false",
        help="use no proxy, whatever the environment says",
        group=_ENDPOINTS,
    )

    header: tuple[Header, ...] = repeated(
        HEADER,
        help="header of each request, 'Name: value'; the same fields as in a URL",
        group=_REQUESTS,
    )
    nsq_headers: bool = option(
        BOOL,
        default="false",
        help="tell in headers which message it is: X-Nsq-Topic, and where a request has one message"
        " X-Nsq-Message-Id, X-Nsq-Timestamp (ns) and X-Nsq-Attempts",
        group=_REQUESTS,
    )
    content_type: str = option(
        ContentType(),
        default=CONTENT_TYPE,
        help="content type of a POST; a body that is made JSON here has that of JSON instead of the"
        " default",
        group=_REQUESTS,
    )

    body_template: str | None = option(
        BODY_TEMPLATE,
        help='body of a POST instead of the message itself, such as {"text": "{topic}: {body}"}',
        group=_REQUESTS,
    )

    batch_size: int = option(
        Int(minimum=1, maximum=BATCH_SIZE_MAX),
        default="1",
        help="messages in a request; with more than one they are done together, and parted again"
        " when they are refused",
        group=_REQUESTS,
    )
    batch_bytes: int = option(
        Size(minimum=1),
        default="1MiB",
        help="bytes of messages in a request, roughly; a larger message goes alone",
        group=_REQUESTS,
        flag="batch-bytes",
    )
    batch_wait_s: float = option(
        Duration(),
        default="100ms",
        help="longest time that a message waits for others to join it",
        group=_REQUESTS,
    )
    batch_format: BatchFormat = option(
        BATCH_FORMAT,
        default="lines",
        help="lines: a message a line; json: an array; length-prefixed: each behind its size, 4"
        " bytes, big-endian",
        group=_REQUESTS,
    )
    compress: Encoding = option(
        ENCODING,
        default="none",
        help="compress bodies; the header Content-Encoding says how",
        group=_REQUESTS,
    )

    basic_auth: str = option(
        SECRET, default="", help="user:password of each request", group=_SECRETS
    )
    basic_auth_file: Path | None = option(PATH, help="file that holds it", group=_SECRETS)
    bearer_token: str = option(SECRET, default="", help="token of each request", group=_SECRETS)
    bearer_token_file: Path | None = option(PATH, help="file that holds it", group=_SECRETS)
    proxy_auth: str = option(
        SECRET, default="", help="user:password for the proxy of --proxy", group=_SECRETS
    )
    proxy_auth_file: Path | None = option(PATH, help="file that holds it", group=_SECRETS)
    hmac_key: str = option(
        SECRET,
        default="",
        help="key by which time and body are signed (HMAC-SHA256)",
        group=_SECRETS,
    )
    hmac_key_file: Path | None = option(PATH, help="file that holds it", group=_SECRETS)
    hmac_header: str = option(
        HEADER_NAME, default=HMAC_HEADER, help="header of the signature", group=_SECRETS
    )

    ok_status: tuple[range, ...] = repeated(
        STATUS, help="take this status for a success, as 2xx are", group=_REPLIES
    )
    retry_status: tuple[range, ...] = repeated(
        STATUS, help="try again after this status, as after 408, 425, 429 and 5xx", group=_REPLIES
    )
    reject_status: tuple[range, ...] = repeated(
        STATUS,
        help="never try again after this status, as after 3xx that is not followed and other 4xx",
        group=_REPLIES,
    )
    follow_redirects: int = option(
        Int(minimum=0, maximum=REDIRECTS_MAX),
        default="0",
        help="redirects of a request that are followed: 307 and 308, and of a GET 301, 302 and 303; to"
        " another origin without credentials, signature and --header",
        group=_REPLIES,
    )
    max_attempts: int = option(
        Int(minimum=0, maximum=65535),
        default="0",
        help="give a message up after so many tries, 0: never",
        group=_GIVING_UP,
    )
    max_age_s: float = option(
        Duration(),
        default="0s",
        help="give a message that fails up so long after it was published, 0: never",
        group=_GIVING_UP,
    )
    dead_letter_dir: Path | None = option(
        FOLDER,
        help="keep what is given up or refused in archives (jsonl) in this folder, with status and"
        " error; file_to_nsq publishes them again",
        group=_GIVING_UP,
    )
    dead_letter_topic: str = option(
        TEXT,
        default="",
        help="publish what is given up or refused to this topic; {topic} stands for its own",
        group=_GIVING_UP,
    )
    dead_letter_nsqd_tcp_address: tuple[str, ...] = repeated(
        ADDRESS, help="nsqd that has that topic; default: --nsqd-tcp-address", group=_GIVING_UP
    )
    dead_letter_max_ratio: float = option(
        Float(minimum=0.0, maximum=1.0),
        default="0.5",
        help="when a greater part of the last 100 messages fails, it is an outage: hold messages"
        " instead of giving them up; 1: never",
        group=_GIVING_UP,
    )
    status_every: int = option(
        Int(minimum=0),
        default="250",
        help="tell how long requests took after so many of them, at most once a second; 0: never",
    )

    dry_run: bool = option(
        BOOL,
        default="false",
        help="print the request that the first message would make, give it back, and end",
    )
    print: bool = option(
        BOOL, default="false", help="print a line for each request: status, time, message, endpoint"
    )

    @property
    def method(self) -> Method:
        return "GET" if self.get else "POST"

    @property
    def urls(self) -> tuple[str, ...]:
        return self.get or self.post

    @property
    def batching(self) -> Batching | None:
        """How messages are joined; None: each is a request."""
        if self.batch_size == 1:
            return None
        return Batching(
            messages_max=self.batch_size,
            bytes_max=self.batch_bytes,
            wait_s=self.batch_wait_s,
            format=self.batch_format,
        )

    @property
    def effective_content_type(self) -> str:
        """Of JSON, where it is that, unless something else was named."""
        if self.content_type != CONTENT_TYPE:
            return self.content_type
        if self.batching is None:
            return CONTENT_TYPE if self.body_template is None else JSON
        if self.batch_format == "json":
            return JSON
        is_json_lines = self.body_template is not None and self.batch_format == "lines"
        return JSON_LINES if is_json_lines else CONTENT_TYPE

    @property
    def rules(self) -> Rules:
        """What statuses mean."""
        return Rules(ok=self.ok_status, retry=self.retry_status, reject=self.reject_status)

    def check_output(self) -> Iterator[str]:
        """The mistakes that concern several of these options, in NSQ's words."""
        if self.content_type != CONTENT_TYPE and not self.post:
            yield "--content-type only used with --post"
        if not self.post and not self.get:
            yield "--get or --post required"
        if self.post and self.get:
            yield "use --get or --post not both"
        if any(url.count(GET_FIELD) != 1 for url in self.get):
            yield "invalid GET address - must be a printf string"
        if self.batch_size > 1 and not self.post:
            yield "--batch-size needs --post"
        if self.body_template is not None and not self.post:
            yield "--body-template needs --post"
        if self.compress != "none" and not self.post:
            yield "--compress needs --post"
        if self.batch_format != "lines" and self.batching is None:
            yield "--batch-format needs --batch-size"
        if self.batch_size > 1 and self._names_messages():
            yield "--batch-size: a URL or --header with {id}, {timestamp}, {attempts} or {nsqd}"
        yield from self._check_secrets()
        if self.dead_letter_dir and self.dead_letter_topic:
            yield "use --dead-letter-dir or --dead-letter-topic not both"
        if self.dead_letter_topic:
            yield from self._check_dead_letter_topic()
        elif self.dead_letter_nsqd_tcp_address:
            yield "--dead-letter-nsqd-tcp-address needs --dead-letter-topic"
        if self.tls_key and not self.tls_cert:
            yield "--tls-key needs --tls-cert"
        if self.proxy and self.no_proxy:
            yield "use --proxy or --no-proxy not both"

    def _check_secrets(self) -> Iterator[str]:
        for name in ("basic_auth", "bearer_token", "proxy_auth", "hmac_key"):
            if getattr(self, name) and getattr(self, f"{name}_file"):
                flag = name.replace("_", "-")
                yield f"--{flag} and --{flag}-file are both given"
        has_basic, has_bearer = (
            self.basic_auth or self.basic_auth_file,
            self.bearer_token or self.bearer_token_file,
        )
        if has_basic and has_bearer:
            yield "use --basic-auth-file or --bearer-token-file not both"
        if (self.proxy_auth or self.proxy_auth_file) and not self.proxy:
            yield "--proxy-auth-file needs --proxy"
        if self.hmac_header != HMAC_HEADER and not (self.hmac_key or self.hmac_key_file):
            yield "--hmac-header needs --hmac-key-file"

    def _names_messages(self) -> bool:
        """Whether a template has fields that differ between messages."""
        texts = (*self.urls, *(header.value for header in self.header))
        return any(f"{{{name}}}" in text for text in texts for name in OF_MESSAGE)

    def _check_dead_letter_topic(self) -> Iterator[str]:
        if not is_valid_name(self.dead_letter_topic_of("topic")):
            yield "--dead-letter-topic is no name of a topic"
        if self.dead_letter_topic == "{topic}":
            yield "--dead-letter-topic should not be the topic itself"

    def dead_letter_topic_of(self, topic: str) -> str:
        """The dead letter topic of a topic."""
        return self.dead_letter_topic.replace("{topic}", topic)
