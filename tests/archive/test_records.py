"""The encoders: what is fast must give what is plain."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.archive.helpers import any_batch, batch_of, payload

from nsqtools.archive.framed import FramedEncoder
from nsqtools.archive.groups import GROUP_BYTES_MAX, split
from nsqtools.archive.header import HeaderError, decode_header, encode_header, looks_damaged
from nsqtools.archive.jsonl import LINE_END, JsonlEncoder, _escaped_together, line_bytes_max
from nsqtools.archive.jsonl_reading import (
    JsonlDecoder,
    _Columns,
    _decode_alike,
    _decode_one_by_one,
    _decode_together,
)
from nsqtools.archive.lines import LinesEncoder, LineSplitter
from nsqtools.archive.stream import Damage, Records
from nsqtools.errors import ArchiveError
from nsqtools.wire.messages import Messages, count_messages, encode_payload

bodies_of_text = st.lists(st.text().map(str.encode) | st.sampled_from([b"", b'"', b"\\", b"\x7f"]))


PERCENTS = st.lists(st.sampled_from([b"%", b"%b", b"%%s", b"100%", b"%" * 300, b"a"]))
NAMES = st.sampled_from(["h:1", "%b", 'a"b', "\\", "\u20ac"])


@given(
    bodies=bodies_of_text | PERCENTS | st.lists(st.binary(max_size=5)),
    times=st.lists(st.sampled_from([0, 9, 10**18 - 1, 10**18, 10**17, 2**63 - 1, -1]), min_size=1),
    topic=NAMES,
    nsqd=NAMES,
)
def test_lines_written_together_are_lines_written_one_by_one(
    bodies: list[bytes], times: list[int], topic: str, nsqd: str
) -> None:
    messages = Messages(
        [
            encode_payload(times[at % len(times)], 7, b"%016x" % at, body)
            for at, body in enumerate(bodies)
        ],
        nsqd=nsqd,
    )
    encoder = JsonlEncoder(topic)
    together = bytes(encoder.encode([messages]).content)
    if bodies:
        assert together == b"".join(encoder._by_columns(messages, None))
        assert together == b"".join(encoder._by_columns(messages, _escaped_together(messages)))
    records = [json.loads(line) for line in together.split(b"\n")[:-1]]
    found = [(record["ts"], record["topic"], record["nsqd"]) for record in records]
    assert found == [(time, topic, nsqd) for time in messages.timestamps]


def test_text_without_the_character_between_is_written_together() -> None:
    def alike(bodies: list[bytes]) -> bool:
        messages = Messages([encode_payload(1, 1, b"0" * 16, body) for body in bodies])
        return JsonlEncoder("topic")._alike(messages, _escaped_together(messages)) is not None

    assert alike([b"a", b"", b'"%\\'])
    assert not alike([b"a", b"\x7f"])
    assert not alike([b"\x7f"])
    assert not alike([b"a", b"\xff"])
    # Many of what a formatting stops at cost more than lines one by one.
    assert alike([b"%" * 64, b"%" * 64])
    assert not alike([b"%" * 64, b"%" * 65])


@given(batches=st.lists(any_batch, max_size=3))
def test_every_line_is_json(batches: list[Messages]) -> None:
    lines = JsonlEncoder("topic").encode(batches).content.split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == count_messages(batches)
    for line in lines:
        assert json.loads(line)["topic"] == "topic"


@given(batches=st.lists(any_batch, max_size=3))
def test_ambiguous_bodies_are_counted(batches: list[Messages]) -> None:
    expected = sum(b"\n" in body for found in batches for body in found.bodies)
    assert LinesEncoder().encode(batches).ambiguous == expected


def test_an_nsqd_has_a_limit() -> None:
    encoder = JsonlEncoder("topic")
    with pytest.raises(ArchiveError, match="longer than 4096 bytes"):
        encoder.encode([batch_of([b"a"], nsqd="n" * 4096)])
    bodies = [b"\x01" * 1000]
    worst = Messages([encode_payload(-1, 65535, b"\x00" * 16, bodies[0])], nsqd="\x00" * 682)
    line = encoder.encode([worst]).content
    assert len(line) <= line_bytes_max(1000)


def test_a_name_that_is_no_text_can_be_read_back() -> None:
    line = bytes(JsonlEncoder("topic").encode([batch_of([b"a"], nsqd="h\udcff:1")]).content)
    (run,) = JsonlDecoder(1000).feed(line, 0)
    assert (run.bodies, run.nsqds) == ([b"a"], ["h?:1"])


def test_many_sizes_are_remembered_within_bounds() -> None:
    encoder = FramedEncoder(b"")
    for size in range(0, 10_000, 100):
        encoder.encode([batch_of([b"x" * (size + more) for more in range(100)])])
    assert len(encoder._prefixes) <= 4096


def test_groups_are_bounded() -> None:
    large = [payload(number, b"x" * (GROUP_BYTES_MAX // 3)) for number in range(7)]
    batches = [Messages(large, nsqd="a"), Messages([payload(8, b"")], nsqd="b")]
    pieces = list(split(batches))
    assert [count_messages(piece) for piece in pieces] == [2, 2, 2, 2]
    assert [found.nsqd for found in pieces[-1]] == ["a", "b"]
    huge = [payload(0, b"x" * (GROUP_BYTES_MAX + 1))] * 2
    assert len(list(split([Messages(huge, nsqd="a")]))) == 2


HEADER = encode_header(record_format="jsonl", topic="t", channel="c", host="h-\udcff")


def test_headers() -> None:
    found = decode_header(HEADER + b"more")
    assert found.size_bytes == len(HEADER)
    assert found.meta == {"format": "jsonl", "topic": "t", "channel": "c", "host": "h-\udcff"}


@pytest.mark.parametrize("cut", range(len(HEADER)))
def test_cut_headers_are_torn(cut: int) -> None:
    with pytest.raises(HeaderError) as caught:
        decode_header(HEADER[:cut])
    assert caught.value.torn


@given(at=st.integers(0, len(HEADER) - 1), mask=st.integers(1, 255))
def test_damaged_headers_are_known(at: int, mask: int) -> None:
    data = bytearray(HEADER)
    data[at] ^= mask
    with pytest.raises(HeaderError):
        decode_header(bytes(data))
    assert at >= 8 or looks_damaged(bytes(data))


def test_what_is_no_header() -> None:
    assert not looks_damaged(b"an ordinary line\n")
    assert not looks_damaged(b"")
    with pytest.raises(HeaderError, match="no file header"):
        decode_header(b"an ordinary line")


RECORD = {"ts": 1, "id": "0" * 16, "attempts": 1, "nsqd": "n", "topic": "t", "body": "b"}
ODD_VALUES: list[object] = [
    None,
    True,
    -1,
    2**16,
    2**64,
    1.5,
    "",
    "0" * 15,
    "\u20ac" * 16,
    [],
    {},
    "\ud800",
]


@given(
    changes=st.lists(
        st.dictionaries(
            st.sampled_from([*RECORD, "body_b64"]), st.sampled_from(ODD_VALUES), max_size=2
        ),
        min_size=1,
        max_size=4,
    ),
    dropped=st.sampled_from([None, *RECORD]),
)
def test_lines_decoded_together_are_lines_decoded_one_by_one(
    changes: list[dict[str, object]], dropped: str | None
) -> None:
    records = [RECORD | change for change in changes]
    if dropped is not None:
        del records[-1][dropped]
    lines = [json.dumps(record).encode() for record in records]
    check_as_one_by_one(lines)


def check_as_one_by_one(lines: list[bytes]) -> None:
    """With their newlines, and without."""
    try:
        (run,) = _decode_one_by_one(lines, 0, torn=False)
    except (Damage, ValueError):
        run = None
    for end in (b"", b"\n"):
        columns = _decode_together([line + end for line in lines], LINE_END[:-1] + end)
        assert (columns is None) == (run is None)
        if columns is not None and run is not None:
            together = columns.records(0, lambda: lines)
            assert (together.bodies, together.nsqds) == (run.bodies, run.nsqds)
            assert payloads_of(together) == payloads_of(run)


def payloads_of(run: Records) -> list[bytes]:
    assert run.messages is not None
    return run.messages.payloads


HEAD = struct.Struct(">QH16s")
LIKE_TODAY = st.integers(10**18 - 3, 10**18 + 3) | st.integers(0, 2**64 - 1)
RUN_BODIES = st.sampled_from(
    [b"", b"body", b'"', b"\\", b"\n", b"\x7f", b"\xff", "\u20ac".encode()]
)
SPLICES = [
    b'"',
    b"\\",
    b"\x7f",
    b"0",
    b"-",
    b" ",
    b"}",
    b"\xff",
    b"\\u007f",
    b"\\ud83d",
    b"\\ude00",
    b"",
]


@given(
    runs=st.lists(
        st.tuples(LIKE_TODAY, st.lists(RUN_BODIES, min_size=1, max_size=40), st.integers(1, 2)),
        min_size=1,
        max_size=3,
    ),
    splices=st.lists(
        st.tuples(
            st.integers(0, 40), st.integers(-9, 200), st.sampled_from(SPLICES), st.booleans()
        ),
        max_size=2,
    ),
)
def test_runs_of_our_own_lines_are_decoded_as_one_by_one(
    runs: list[tuple[int, list[bytes], int]], splices: list[tuple[int, int, bytes, bool]]
) -> None:
    batches = [
        Messages([HEAD.pack(ts, attempts, b"%016x" % at) + body for at, body in enumerate(bodies)])
        for ts, bodies, attempts in runs
    ]
    lines = bytes(JsonlEncoder("topic").encode(batches).content).split(b"\n")[:-1]
    for number, at, splice, replaces in splices:
        line = lines[number % len(lines)]
        at %= len(line)
        lines[number % len(lines)] = line[:at] + splice + line[at + replaces :]
    check_as_one_by_one(lines)


def test_a_run_of_our_own_lines_is_read_as_one() -> None:
    bodies = [b"%d" % number for number in range(100)]
    content = bytes(JsonlEncoder("topic").encode([batch_of(bodies)]).content)
    lines = content.splitlines(keepends=True)
    # The attempts of these differ from one to the next.
    assert _decode_alike(lines, LINE_END, _Columns()) == 0
    alike = [line for line in lines if b'"attempts":2' in line]
    assert _decode_alike(alike, LINE_END, _Columns()) == len(alike) >= 16
    assert _decode_alike(alike + lines + alike, LINE_END, _Columns()) == len(alike)


@pytest.mark.parametrize(
    "twice", [b'"ts":5,', b'"id":"aaaaaaaaaaaaaaaa",', b'"\\u0074s":5,', b'"attempts":9,'], ids=repr
)
def test_of_a_member_that_stands_twice_in_all_lines_the_last_counts(twice: bytes) -> None:
    lines = _our_lines(40)
    check_as_one_by_one([line.replace(b'"attempts"', twice + b'"attempts"', 1) for line in lines])


@pytest.mark.parametrize("at", [0, 1, 20, 39])
def test_a_body_without_one_of_its_quotes_is_damage(at: int) -> None:
    lines = _our_lines(40)
    lines[at] = lines[at].replace(b'"body":"', b'"body":')
    check_as_one_by_one(lines)
    lines[at] = lines[at][: lines[at].index(b'"body":')] + b'"body":"}'
    check_as_one_by_one(lines)


def test_runs_in_turn_are_read_as_such() -> None:
    """Two nsqds that deliver in turn: each line is looked at a few times, not once for each run."""
    lengths = [16, 17, 300, 40, 16, 1000, 16, 16]
    names = [f"nsqd-{at % 2}:4150" for at in range(len(lengths))]
    lines = [line for at, name in enumerate(names) for line in _our_lines(lengths[at], name)]
    columns = _Columns()
    assert _decode_alike(lines, LINE_END[:-1], columns) == sum(lengths)
    assert columns.nsqds == [name for at, name in enumerate(names) for _ in range(lengths[at])]
    many = _CountedLines(lines[:33] * 200)
    _decode_alike(many, LINE_END[:-1], _Columns())
    assert many.looked_at < 10 * len(many)


class _CountedLines(list[bytes]):
    """Lines, and how many of them were taken by slices."""

    looked_at = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.looked_at += len(found) if isinstance(key, slice) else 0
        return found


def _our_lines(count: int, nsqd: str = "h:4150") -> list[bytes]:
    payloads = [encode_payload(10**18 + at, 1, b"%016x" % at, b"body") for at in range(count)]
    content = bytes(JsonlEncoder("topic").encode([Messages(payloads, nsqd=nsqd)]).content)
    return content.split(b"\n")[:-1]


@pytest.mark.parametrize(
    "lines",
    [
        [b"{},{}", b""],
        [b'{"ts":1},{"body":"}', b'{"}'],
        [b'{"a":[{}', b"{}]}"],
        [b'{"a":{}', b'{"b":1}}'],
        [b"{}", b"{}"],
        [b"1", b"2"],
        [b"{", b"}"],
    ],
)
def test_records_do_not_span_lines(lines: list[bytes]) -> None:
    assert _decode_together(lines, LINE_END[:-1]) is None
    assert _decode_together([line + b"\n" for line in lines], LINE_END) is None


ODD_LINES = {
    b'{"ts":1,"id":"0000000000000000","attempts":1,"nsqd":"n","topic":"t","body":"b"}': b"b",
    b' {"topic":"t" , "body":"b","ts":1,"id":"0000000000000000","attempts":1,"nsqd":"n"}\r': b"b",
    b'{"ts":1,"id":"0000000000000000","attempts":1,"nsqd":"n","topic":"t","body":"a","body":"b"}': b"b",
    b'{"ts":NaN,"id":"0000000000000000","attempts":1,"nsqd":"n","topic":"t","body":"b"}': None,
    b'{"ts":1.0,"id":"0000000000000000","attempts":1,"nsqd":"n","topic":"t","body":"b"}': None,
    b'{"ts":1,"id":"0000000000000000","attempts":1,"nsqd":"\\ud800","topic":"t","body":"b"}': None,
    b'{"ts":1,"id":"0000000000000000","attempts":1,"nsqd":"\xff","topic":"t","body":"b"}': None,
    b'{"ts":1,"id":"0000000000000000","attempts":1,"nsqd":"n","topic":"t","body":"\t"}': None,
    b'{"ts":1,"id":"0000000000000000","attempts":1,"nsqd":"n","topic":"t","body":"b"},0,{}': None,
    b'["ts","id","attempts","nsqd","topic","body"]': None,
    b"null": None,
    b"": None,
}


@pytest.mark.parametrize(("line", "body"), ODD_LINES.items())
def test_what_a_line_may_look_like(line: bytes, body: bytes | None) -> None:
    sound = next(iter(ODD_LINES))
    together = _decode_together([sound, line, sound], LINE_END[:-1])
    if body is not None:
        assert together is not None
        assert together.bodies == [b"b", body, b"b"]
        return
    assert together is None
    runs = _decode_one_by_one([sound, line, sound], 0, torn=False)
    assert next(runs).bodies == [b"b"]
    with pytest.raises(Damage) as caught:
        next(runs)
    assert caught.value.offset == len(sound) + 1


@given(
    pieces=st.lists(
        st.lists(st.sampled_from([b"", b"a", b"\n", b"\r\n", b"abcd\n"])).map(b"".join)
    ),
    line_bytes_max=st.integers(1, 12),
)
def test_lines_with_their_ends_are_lines_without(pieces: list[bytes], line_bytes_max: int) -> None:
    plain, whole = LineSplitter(line_bytes_max), LineSplitter(line_bytes_max)
    offset = 0
    for piece in pieces:
        expected = _fed(plain, piece, offset, keepends=False)
        assert _fed(whole, piece, offset, keepends=True) == expected
        if not isinstance(expected[0], list):
            return  # it was damage
        offset += len(piece)
    assert _rest(whole) == _rest(plain)


def _rest(splitter: LineSplitter) -> Any:
    try:
        return splitter.rest()
    except Damage as damage:
        return damage.offset, damage.reason


def _fed(splitter: LineSplitter, piece: bytes, offset: int, *, keepends: bool) -> Any:
    try:
        lines, start = splitter.feed(piece, offset, keepends=keepends)
    except Damage as damage:
        return damage.offset, damage.reason
    return [line.removesuffix(b"\n") if keepends else line for line in lines], start
