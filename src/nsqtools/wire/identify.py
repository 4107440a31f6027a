"""IDENTIFY: what a client asks for, what nsqd grants (spec: tcp-protocol, part 3).

One exchange, both roles:

    client                                  broker
    IdentifyRequest.to_json()  ──────────►  parse_identify(body, limits) → ClientSettings
    IdentifyReply.parse(body)  ◄──────────  identify_response(settings, limits)

The body is JSON, read by Go's rules (`gojson`). Values are checked in nsqd's order, so that the
first mistake reported is the one nsqd reports.

Where `feature_negotiation` is absent the answer is a plain `OK` and nothing is negotiated, but the
interval, buffer, sample and timeout values of the request still hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nsqtools.errors import ProtocolError
from nsqtools.wire.gojson import INT32_MAX, JsonFields, MalformedJson, go_json

OK = b"OK"
UNBUFFERED = -1
HEARTBEAT_INTERVAL_DEFAULT_MS = 30_000
HEARTBEAT_INTERVAL_MIN_MS = 1_000
OUTPUT_BUFFER_SIZE_DEFAULT = 16_384
OUTPUT_BUFFER_SIZE_MIN = 64
MSG_TIMEOUT_MIN_MS = 1_000
SAMPLE_RATE_MAX = 99
DEFLATE_LEVEL_DEFAULT = 6
DEFLATE_LEVEL_HIGHEST = 9
# What an nsqd without feature negotiation, or one that leaves a key out, is taken to mean.
MAX_RDY_COUNT_DEFAULT = 2_500
MSG_TIMEOUT_DEFAULT_MS = 60_000
MAX_MSG_TIMEOUT_DEFAULT_MS = 900_000
OUTPUT_BUFFER_TIMEOUT_DEFAULT_MS = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifyRequest:
    """What a client tells nsqd about itself, and asks for.

    0 leaves a value to nsqd; -1 switches off heartbeats, the buffer, or its timer.
    """

    client_id: str
    hostname: str
    user_agent: str
    feature_negotiation: bool = True
    heartbeat_interval_ms: int = HEARTBEAT_INTERVAL_DEFAULT_MS
    sample_rate: int = 0
    output_buffer_size: int = 0
    output_buffer_timeout_ms: int = 0
    msg_timeout_ms: int = 0
    tls_v1: bool = False
    deflate: bool = False
    deflate_level: int = DEFLATE_LEVEL_DEFAULT
    snappy: bool = False
    topology_region: str = ""
    topology_zone: str = ""

    def to_json(self) -> bytes:
        """The body of the IDENTIFY command (without its length)."""
        fields: dict[str, str | int | bool] = {
            "client_id": self.client_id,
            "hostname": self.hostname,
            "user_agent": self.user_agent,
            "feature_negotiation": self.feature_negotiation,
            "heartbeat_interval": self.heartbeat_interval_ms,
            "sample_rate": self.sample_rate,
            "output_buffer_size": self.output_buffer_size,
            "output_buffer_timeout": self.output_buffer_timeout_ms,
            "msg_timeout": self.msg_timeout_ms,
            "tls_v1": self.tls_v1,
            "deflate": self.deflate,
            "deflate_level": self.deflate_level,
            "snappy": self.snappy,
        }
        if self.topology_region or self.topology_zone:
            fields["topology_region"] = self.topology_region
            fields["topology_zone"] = self.topology_zone
        return go_json(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What this broker grants; the defaults are nsqd's (spec: tcp-protocol, parts 3 and 8)."""

    version: str
    max_rdy_count: int = MAX_RDY_COUNT_DEFAULT
    max_heartbeat_interval_ms: int = 60_000
    max_output_buffer_size: int = 65_536
    output_buffer_timeout_ms: int = OUTPUT_BUFFER_TIMEOUT_DEFAULT_MS
    min_output_buffer_timeout_ms: int = 25
    max_output_buffer_timeout_ms: int = 30_000
    msg_timeout_ms: int = MSG_TIMEOUT_DEFAULT_MS
    max_msg_timeout_ms: int = MAX_MSG_TIMEOUT_DEFAULT_MS
    max_deflate_level: int = 6
    deflate: bool = True
    snappy: bool = True
    tls_v1: bool = False
    auth_required: bool = False
    topology_region: str = ""
    topology_zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What holds for one client's connection after IDENTIFY; `tls_v1`, `deflate` and `snappy` are
    granted ones: the upgrades that follow the answer.

    `heartbeat_interval_ms` 0 means no heartbeats, `output_buffer_size` 1 no buffer,
    `output_buffer_timeout_ms` 0 no timer. The topology is the client's own.
    """

    client_id: str = ""
    hostname: str = ""
    user_agent: str = ""
    heartbeat_interval_ms: int = HEARTBEAT_INTERVAL_DEFAULT_MS
    output_buffer_size: int = OUTPUT_BUFFER_SIZE_DEFAULT
    output_buffer_timeout_ms: int = OUTPUT_BUFFER_TIMEOUT_DEFAULT_MS
    sample_rate: int = 0
    msg_timeout_ms: int = MSG_TIMEOUT_DEFAULT_MS
    tls_v1: bool = False
    deflate: bool = False
    deflate_level: int = DEFLATE_LEVEL_DEFAULT
    snappy: bool = False
    feature_negotiation: bool = False
    topology_region: str = ""
    topology_zone: str = ""


def default_settings(limits: ServerLimits) -> ClientSettings:
    """What holds for a connection before any IDENTIFY (its names are the broker's to fill in)."""
    return ClientSettings(
        output_buffer_timeout_ms=limits.output_buffer_timeout_ms,
        msg_timeout_ms=limits.msg_timeout_ms,
        deflate_level=min(DEFLATE_LEVEL_DEFAULT, limits.max_deflate_level),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The request as decoded, not checked yet; 0 means absent."""

    client_id: str
    hostname: str
    user_agent: str
    feature_negotiation: bool
    heartbeat_interval: int
    output_buffer_size: int
    output_buffer_timeout: int
    sample_rate: int
    msg_timeout: int
    tls_v1: bool
    deflate: bool
    deflate_level: int
    snappy: bool
    topology_region: str
    topology_zone: str

    @classmethod
    def decode(cls, body: bytes) -> _Asked:
        fields = JsonFields.decode(body)
        return cls(
            client_id=fields.text("client_id"),
            hostname=fields.text("hostname"),
            user_agent=fields.text("user_agent"),
            feature_negotiation=fields.flag("feature_negotiation"),
            heartbeat_interval=fields.integer("heartbeat_interval"),
            output_buffer_size=fields.integer("output_buffer_size"),
            output_buffer_timeout=fields.integer("output_buffer_timeout"),
            sample_rate=fields.integer("sample_rate", highest=INT32_MAX),
            msg_timeout=fields.integer("msg_timeout"),
            tls_v1=fields.flag("tls_v1"),
            deflate=fields.flag("deflate"),
            deflate_level=fields.integer("deflate_level"),
            snappy=fields.flag("snappy"),
            topology_region=fields.text("topology_region"),
            topology_zone=fields.text("topology_zone"),
        )


def parse_identify(
    body: bytes, limits: ServerLimits, previous: ClientSettings | None = None
) -> ClientSettings:
    """Read an IDENTIFY body and settle what holds for the connection.

    `previous` are the settings of an earlier IDENTIFY on the connection: what this one leaves out
    stays. Raises ProtocolError with nsqd's code and text (spec: tcp-protocol, 2.1); all are fatal.
    """
    try:
        asked = _Asked.decode(body)
    except MalformedJson as error:
        raise ProtocolError("E_BAD_BODY", "IDENTIFY failed to decode JSON body") from error
    before = previous or default_settings(limits)
    settings = replace(
        before,
        client_id=asked.client_id,
        hostname=asked.hostname,
        user_agent=asked.user_agent,
        heartbeat_interval_ms=_heartbeat_interval(asked, limits, before),
        output_buffer_timeout_ms=_buffer_timeout(asked, limits, before),
        output_buffer_size=_buffer_size(asked, limits, before),
        sample_rate=_sample_rate(asked),
        msg_timeout_ms=_msg_timeout(asked, limits, before),
        feature_negotiation=asked.feature_negotiation,
        topology_region=asked.topology_region,
        topology_zone=asked.topology_zone,
    )
    if settings.output_buffer_size == 1:
        settings = replace(settings, output_buffer_timeout_ms=0)
    return _grant(asked, limits, settings) if asked.feature_negotiation else settings


def _grant(asked: _Asked, limits: ServerLimits, settings: ClientSettings) -> ClientSettings:
    deflate = limits.deflate and asked.deflate
    snappy = limits.snappy and asked.snappy
    if deflate and snappy:
        raise ProtocolError(
            "E_IDENTIFY_FAILED", "cannot enable both deflate and snappy compression"
        )
    level = DEFLATE_LEVEL_DEFAULT
    if deflate and asked.deflate_level > 0:
        level = asked.deflate_level
    return replace(
        settings,
        tls_v1=limits.tls_v1 and asked.tls_v1,
        deflate=deflate,
        deflate_level=min(level, limits.max_deflate_level),
        snappy=snappy,
    )


def _invalid(what: str, value: int) -> ProtocolError:
    return ProtocolError("E_BAD_BODY", f"IDENTIFY {what} ({value}) is invalid")


def _heartbeat_interval(asked: _Asked, limits: ServerLimits, before: ClientSettings) -> int:
    value = asked.heartbeat_interval
    if value == 0:
        return before.heartbeat_interval_ms
    if value == -1:
        return 0
    if HEARTBEAT_INTERVAL_MIN_MS <= value <= limits.max_heartbeat_interval_ms:
        return value
    raise _invalid("heartbeat interval", value)


def _buffer_timeout(asked: _Asked, limits: ServerLimits, before: ClientSettings) -> int:
    value = asked.output_buffer_timeout
    if value == 0:
        return before.output_buffer_timeout_ms
    if value == -1:
        return 0
    if limits.min_output_buffer_timeout_ms <= value <= limits.max_output_buffer_timeout_ms:
        return value
    raise _invalid("output buffer timeout", value)


def _buffer_size(asked: _Asked, limits: ServerLimits, before: ClientSettings) -> int:
    value = asked.output_buffer_size
    if value == 0:
        return before.output_buffer_size
    if value == UNBUFFERED:
        return 1
    if OUTPUT_BUFFER_SIZE_MIN <= value <= limits.max_output_buffer_size:
        return value
    raise _invalid("output buffer size", value)


def _sample_rate(asked: _Asked) -> int:
    if 0 <= asked.sample_rate <= SAMPLE_RATE_MAX:
        return asked.sample_rate
    raise _invalid("sample rate", asked.sample_rate)


def _msg_timeout(asked: _Asked, limits: ServerLimits, before: ClientSettings) -> int:
    value = asked.msg_timeout
    if value == 0:
        return before.msg_timeout_ms
    if MSG_TIMEOUT_MIN_MS <= value <= limits.max_msg_timeout_ms:
        return value
    raise _invalid("msg timeout", value)


def identify_response(settings: ClientSettings, limits: ServerLimits) -> bytes:
    """The data of the response frame: JSON in nsqd's key order, or `OK` without negotiation."""
    if not settings.feature_negotiation:
        return OK
    return go_json(
        {
            "max_rdy_count": limits.max_rdy_count,
            "version": limits.version,
            "max_msg_timeout": limits.max_msg_timeout_ms,
            "msg_timeout": settings.msg_timeout_ms,
            "tls_v1": settings.tls_v1,
            "deflate": settings.deflate,
            "deflate_level": settings.deflate_level,
            "max_deflate_level": limits.max_deflate_level,
            "snappy": settings.snappy,
            "sample_rate": settings.sample_rate,
            "auth_required": limits.auth_required,
            "output_buffer_size": settings.output_buffer_size,
            "output_buffer_timeout": settings.output_buffer_timeout_ms,
            "topology_region": limits.topology_region,
            "topology_zone": limits.topology_zone,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifyReply:
    """What nsqd granted; the defaults stand for an nsqd that answered with a plain `OK`."""

    negotiated: bool = False
    version: str = ""
    max_rdy_count: int = MAX_RDY_COUNT_DEFAULT
    msg_timeout_ms: int = MSG_TIMEOUT_DEFAULT_MS
    max_msg_timeout_ms: int = MAX_MSG_TIMEOUT_DEFAULT_MS
    tls_v1: bool = False
    deflate: bool = False
    deflate_level: int = DEFLATE_LEVEL_DEFAULT
    max_deflate_level: int = DEFLATE_LEVEL_DEFAULT
    snappy: bool = False
    sample_rate: int = 0
    auth_required: bool = False
    output_buffer_size: int = OUTPUT_BUFFER_SIZE_DEFAULT
    output_buffer_timeout_ms: int = OUTPUT_BUFFER_TIMEOUT_DEFAULT_MS
    topology_region: str = ""
    topology_zone: str = ""

    @classmethod
    def parse(cls, body: bytes, asked: IdentifyRequest | None = None) -> IdentifyReply:
        """Read the data of nsqd's response frame.

        Raises ProtocolError when it is neither `OK` nor a JSON object with values that make sense,
        or grants an upgrade that `asked` did not ask for.
        """
        if body == OK:
            return cls()
        if not body.startswith(b"{"):
            raise ProtocolError("E_BAD_BODY", "IDENTIFY reply: neither OK nor a JSON object")
        try:
            reply = cls._from_fields(JsonFields.decode(body))
        except MalformedJson as error:
            raise ProtocolError("E_BAD_BODY", f"IDENTIFY reply: {error}") from error
        if reply.deflate and reply.snappy:
            raise ProtocolError("E_BAD_BODY", "IDENTIFY reply: deflate and snappy both granted")
        if asked is not None:
            reply._refuse_gifts(asked)
        return reply

    @classmethod
    def _from_fields(cls, fields: JsonFields) -> IdentifyReply:
        def count(key: str, default: int, lowest: int = 1, highest: int = INT32_MAX) -> int:
            value = fields.integer(key, default)
            if not lowest <= value <= highest:
                raise MalformedJson(f"{key} {value} is out of range {lowest}-{highest}")
            return value

        return cls(
            negotiated=True,
            version=fields.text("version"),
            max_rdy_count=count("max_rdy_count", MAX_RDY_COUNT_DEFAULT),
            msg_timeout_ms=count("msg_timeout", MSG_TIMEOUT_DEFAULT_MS),
            max_msg_timeout_ms=count("max_msg_timeout", MAX_MSG_TIMEOUT_DEFAULT_MS),
            tls_v1=fields.flag("tls_v1"),
            deflate=fields.flag("deflate"),
            # Not a limit on us: it is the level of what nsqd sends, and 0 is legal there.
            deflate_level=count("deflate_level", DEFLATE_LEVEL_DEFAULT, 0, DEFLATE_LEVEL_HIGHEST),
            max_deflate_level=count(
                "max_deflate_level", DEFLATE_LEVEL_DEFAULT, 0, DEFLATE_LEVEL_HIGHEST
            ),
            snappy=fields.flag("snappy"),
            sample_rate=count("sample_rate", 0, 0, SAMPLE_RATE_MAX),
            auth_required=fields.flag("auth_required"),
            output_buffer_size=count("output_buffer_size", OUTPUT_BUFFER_SIZE_DEFAULT, 0),
            output_buffer_timeout_ms=count(
                "output_buffer_timeout", OUTPUT_BUFFER_TIMEOUT_DEFAULT_MS, 0
            ),
            topology_region=fields.text("topology_region"),
            topology_zone=fields.text("topology_zone"),
        )

    def _refuse_gifts(self, asked: IdentifyRequest) -> None:
        for upgrade in ("tls_v1", "deflate", "snappy"):
            if getattr(self, upgrade) and not getattr(asked, upgrade):
                raise ProtocolError(
                    "E_BAD_BODY", f"IDENTIFY reply: {upgrade} granted but not asked for"
                )
