"""nsq_to_http: the shared run, with HTTP endpoints as its output."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote_plus

from nsqtools import __version__
from nsqtools.ending import INTERRUPTED
from nsqtools.errors import OptionsError
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.live import LiveLine
from nsqtools.observe.log import configure, get_log
from nsqtools.outputs.http.bodies import Bodies
from nsqtools.outputs.http.body_template import BodyTemplate
from nsqtools.outputs.http.credentials import Credentials, Secret, basic_of, credentials
from nsqtools.outputs.http.dry_run import DryRun
from nsqtools.outputs.http.following import Following, FollowingSender
from nsqtools.outputs.http.latencies import Latencies
from nsqtools.outputs.http.options import EXAMPLE
from nsqtools.outputs.http.output import DeliveryPolicy, HttpOutput
from nsqtools.outputs.http.picking import EpsilonGreedy, HostPool, Picker, RoundRobin
from nsqtools.outputs.http.pool import ClientOptions
from nsqtools.outputs.http.printer import Printer
from nsqtools.outputs.http.proxy import Proxies, forced_on, from_environment, split_proxy
from nsqtools.outputs.http.request import Header, RequestMaker
from nsqtools.outputs.http.sender import Endpoint, Pacing, Sender
from nsqtools.outputs.http.status_lines import StatusLines
from nsqtools.outputs.http.url import split_url
from nsqtools.pipeline.run import Run
from nsqtools.pipeline.transforming import Transforms
from nsqtools.programs.nsq_to_http.dead_letters import DeadLetters

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from nsqtools.programs.nsq_to_http.options import NsqToHttpOptions

_PICKERS: dict[str, type[RoundRobin]] = {
    "round-robin": RoundRobin,
    "hostpool": HostPool,
    "epsilon-greedy": EpsilonGreedy,
    "all": RoundRobin,  # nothing is picked
}

# Anything shorter stands in every text.
SECRET_LENGTH_MIN = 4
_FIELD = re.compile(r"\{[a-z]+\}")
_OF_TOPIC = (("X-Nsq-Topic", "{topic}"),)
_OF_MESSAGE = (
    ("X-Nsq-Message-Id", "{id}"),
    ("X-Nsq-Timestamp", "{timestamp}"),
    ("X-Nsq-Attempts", "{attempts}"),
)


async def run(options: NsqToHttpOptions) -> int:
    """Deliver until SIGTERM or SIGINT; 0 when everything taken was answered for, 130 when the end
    was cut short.

    Raises OptionsError for a file that cannot be read, and for a URL that is none with a topic in it.
    """
    with LiveLine("never" if options.dry_run or options.print else options.progress) as line:
        configure(
            options.log_level,
            options.log_prefix,
            log_format=options.log_format,
            stream=line.log_stream,
        )
        return await _deliver(options, line)


async def _deliver(options: NsqToHttpOptions, line: LiveLine) -> int:
    async with Lifecycle(options.shutdown_timeout_s) as life, Shared(options) as shared:
        if options.dry_run:
            return 0 if await dry_run(options, shared, life) else INTERRUPTED
        if line.is_shown:
            shared.latencies = Latencies()
        delivery = Run(
            options,
            lambda topic: output_of(options, topic, shared),
            line=line,
            more=lambda total: said(total, shared.latencies),
        )
        life.on_reload(delivery.rotate)
        return 0 if await delivery.run(life) else INTERRUPTED


def said(total: Counter[str], latencies: Latencies | None) -> list[str]:
    """What the line on a terminal says beside what it says of every run."""
    taken_s = latencies.take(0.5, 0.99) if latencies is not None else []
    times = [f"p50 {taken_s[0] * 1000:.1f} ms, p99 {taken_s[1] * 1000:.1f} ms"] if taken_s else []
    counted = {"retries": "retries", "rejected": "rejected", "dead_lettered": "dead letters"}
    return times + [f"{total[name]:,} {word}" for name, word in counted.items() if total[name]]


async def dry_run(options: NsqToHttpOptions, shared: Shared, life: Lifecycle) -> bool:
    """Print the request of the first message, and give it back; whether that ended in order."""

    def show(request: str) -> None:
        print(_for_terminal(request) if sys.stdout.isatty() else request, flush=True)
        life.stop("dry run")

    one = replace(options, max_in_flight=1)
    secrets = secrets_of(one, shared)
    transforms = Transforms(one)
    await transforms.open()

    def output_of(topic: str) -> DryRun:
        return DryRun(
            makers_of(one, topic, shared)[0],
            show,
            secrets,
            bodies_of(one, topic, shared),
            encoding=options.compress,
            steps=transforms.first,
        )

    get_log("http").info("a dry run waits for a message of which it can show the request")
    # What they would remove is not to be finished.
    trial = Run(one.without_transforms(), output_of)
    return await trial.run(life)


def _for_terminal(text: str) -> str:
    """What a message says must not move a cursor or set a title."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class Shared:
    """What the topics of a run share: how endpoints are asked, who we are, and dead letters.

    Entering raises OptionsError for a file that cannot be used, StorageError for a folder.
    """

    def __init__(self, options: NsqToHttpOptions) -> None:
        self._options = options
        # A dry run leaves no trace.
        kept = replace(options, dead_letter_dir=None, dead_letter_topic="")
        self.dead = DeadLetters(kept if options.dry_run else options)
        self.printer = Printer()
        self.latencies: Latencies | None = None
        """Noted when somebody looks."""

    async def __aenter__(self) -> Self:
        self.client = await asyncio.to_thread(client_options, self._options)
        self.stranger = self.client
        if self._options.follow_redirects:
            self.stranger = await asyncio.to_thread(stranger_options, self._options)
        self.credentials = await asyncio.to_thread(credentials_of, self._options)
        self.proxies = await asyncio.to_thread(proxies_of, self._options, os.environ)
        await self.dead.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.dead.__aexit__(exc_type, exc, traceback)
        await asyncio.to_thread(self.printer.__exit__, exc_type, exc, traceback)


def credentials_of(options: NsqToHttpOptions) -> Credentials:
    """Who we are. Blocking; raises OptionsError for a file that cannot be used."""
    return credentials(
        basic=Secret(name="basic-auth", value=options.basic_auth, path=options.basic_auth_file),
        bearer=Secret(
            name="bearer-token", value=options.bearer_token, path=options.bearer_token_file
        ),
        key=Secret(name="hmac-key", value=options.hmac_key, path=options.hmac_key_file),
        header_name=options.hmac_header,
    )


def proxies_of(options: NsqToHttpOptions, environ: Mapping[str, str]) -> Proxies:
    """Which proxies are asked. Blocking; raises OptionsError for one that cannot be used."""
    if options.no_proxy:
        return Proxies()
    if options.proxy is None:
        found = from_environment(environ)
    else:
        secret = Secret(name="proxy-auth", value=options.proxy_auth, path=options.proxy_auth_file)
        proxy = replace(split_proxy(options.proxy), authorization=basic_of(secret))
        found = forced_on(proxy, environ)
    for url in options.urls:
        try:
            found.of(split_url(url, EXAMPLE).origin)
        except ValueError as error:
            raise OptionsError([str(error)]) from None
    return found


def client_options(options: NsqToHttpOptions) -> ClientOptions:
    """How endpoints are asked. Raises OptionsError for certificates that cannot be used."""
    follows = options.follow_redirects > 0
    has_tls = follows or any(url.lower().startswith("https:") for url in options.urls)
    return ClientOptions(
        connect_timeout_s=options.http_client_connect_timeout_s,
        request_timeout_s=options.http_client_request_timeout_s,
        tls=_tls(options) if has_tls or options.tls_ca or options.tls_cert else None,
        server_name=options.tls_server_name,
        keeps_location=follows,
    )


def stranger_options(options: NsqToHttpOptions) -> ClientOptions:
    """How whoever a redirect leads to is asked: by its own name, and without our certificate."""
    return client_options(replace(options, tls_cert=None, tls_key=None, tls_server_name=""))


def _tls(options: NsqToHttpOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise OptionsError([f"cannot use --tls-ca {options.tls_ca}: {error}"]) from error
    if options.tls_cert is not None:
        try:
            context.load_cert_chain(options.tls_cert, options.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise OptionsError([f"cannot use --tls-cert {options.tls_cert}: {error}"]) from error
    return context


def output_of(options: NsqToHttpOptions, topic: str, shared: Shared) -> HttpOutput:
    """The delivery of one topic. Raises OptionsError for what is no URL with this topic in it."""
    makers = makers_of(options, topic, shared)
    endpoints = [Endpoint(maker, shared.client, maker.label, topic) for maker in makers]
    sender = sender_of(options, topic, endpoints, shared)
    policy = DeliveryPolicy(
        concurrency=options.n,
        to_all=options.mode == "all",
        tries_kept_max=2 * options.max_in_flight,
        tries_max=options.max_attempts,
        age_max_s=options.max_age_s,
        dead_letter_max_ratio=options.dead_letter_max_ratio,
        batching=options.batching,
    )
    bodies = bodies_of(options, topic, shared)
    output = HttpOutput(topic, sender, policy, bodies, shared.dead.of(topic))
    if options.print:
        output.echo = shared.printer
    return output


def bodies_of(options: NsqToHttpOptions, topic: str, shared: Shared) -> Bodies:
    """What requests say of the messages of a topic."""
    template = None
    if options.body_template is not None:
        fixed = {"topic": topic, "channel": options.channel}
        template = BodyTemplate(options.body_template, fixed=fixed)
    strand = shared.dead.workers.strand(f"requests of {topic}")
    return Bodies(topic, options.batching, options.compress, template, strand)


def sender_of(
    options: NsqToHttpOptions, topic: str, endpoints: Sequence[Endpoint], shared: Shared
) -> Sender:
    """What asks the endpoints of a topic."""
    pacing = pacing_of(options, topic, endpoints, shared.latencies)
    picker, secrets = picker_of(options), secrets_of(options, shared)
    if not options.follow_redirects:
        return Sender(endpoints, picker, options.rules, pacing, secrets)
    following = Following(
        most=options.follow_redirects, client=shared.stranger, proxy_of=shared.proxies.of
    )
    return FollowingSender(endpoints, picker, options.rules, pacing, secrets, following)


def secrets_of(options: NsqToHttpOptions, shared: Shared) -> list[str]:
    """What must not be told though an endpoint says it: credentials, and the values of headers and of
    queries, whatever stands for their fields."""
    values = [one.value for one in shared.credentials.headers]
    values += shared.proxies.secrets()
    for template in (*(one.value for one in options.header), *queried(options.urls)):
        values += _FIELD.split(template)
    words = [value.partition(" ")[2] for value in values]
    found = {secret for secret in (*values, *words) if len(secret) >= SECRET_LENGTH_MIN}
    return sorted(found, key=len, reverse=True)


def queried(urls: Sequence[str]) -> list[str]:
    """The values in the queries of URLs, as they stand there and as they are meant."""
    pairs = [pair for url in urls for pair in url.partition("?")[2].split("&")]
    found = [value if equals else name for name, equals, value in (p.partition("=") for p in pairs)]
    return [*found, *map(unquote_plus, found)]


def makers_of(options: NsqToHttpOptions, topic: str, shared: Shared) -> list[RequestMaker]:
    """The requests of a topic to each endpoint. Raises OptionsError as `output_of`."""
    fixed = {"topic": topic, "channel": options.channel}
    headers = [*headers_of(options), *shared.credentials.headers]
    sign = shared.credentials.sign
    try:
        return [
            RequestMaker(
                options.method, url, headers, fixed=fixed, sign=sign, proxy_of=shared.proxies.of
            )
            for url in options.urls
        ]
    except ValueError as error:
        raise OptionsError([f"topic {topic} in a URL: {error}"]) from error


def pacing_of(
    options: NsqToHttpOptions,
    topic: str,
    endpoints: Sequence[Endpoint],
    latencies: Latencies | None,
) -> Pacing:
    """How many requests there may be."""
    labels = [endpoint.label for endpoint in endpoints]
    return Pacing(
        concurrency=options.n,
        rate_per_s=options.rate_per_s,
        is_adaptive=options.concurrency == "auto",
        latencies=latencies,
        status=StatusLines(options.status_every, topic, labels) if options.status_every else None,
    )


def picker_of(options: NsqToHttpOptions) -> Picker:
    """What chooses among the endpoints of a topic."""
    return _PICKERS[options.mode](len(options.urls))


def headers_of(options: NsqToHttpOptions) -> list[Header]:
    """Those of each request; what the user names goes before ours."""
    ours = [("User-Agent", f"{options.program}/{__version__}")]
    if options.method == "POST":
        ours.append(("Content-Type", options.effective_content_type))
    if options.compress != "none":
        ours.append(("Content-Encoding", options.compress))
    if options.nsq_headers:
        ours += [*_OF_TOPIC, *(_OF_MESSAGE if options.batching is None else ())]
    public = [Header(name=name, value=value, is_public=True) for name, value in ours]
    return [*public, *options.header]
