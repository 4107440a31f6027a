"""A client's commands as the broker reads them, whole and in every possible piece."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsqtools.errors import NsqToolsError, ProtocolError
from nsqtools.wire import commands
from nsqtools.wire.bodies import joined, measured
from nsqtools.wire.decoder import (
    FIN_RUN_MAX,
    LINE_MAX_BYTES,
    Auth,
    ClientState,
    Cls,
    CommandDecoder,
    ConnectionDropped,
    Fin,
    Identify,
    Mpub,
    Nop,
    Pub,
    Rdy,
    Req,
    Sub,
    Touch,
)
from nsqtools.wire.limits import CommandLimits
from nsqtools.wire.mpub import SLICE_MESSAGES, read_mpub

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsqtools.wire.decoder import Command

LIMITS = CommandLimits(max_msg_size_bytes=100, max_body_size_bytes=1000)
ID, ID2 = b"0123456789abcdef", b"fedcba9876543210"
CONVERSATION: list[tuple[bytes, Command]] = [
    (commands.NOP, Nop()),
    (commands.identify(b"{}"), Identify(b"{}")),
    (commands.auth(b"secret"), Auth(b"secret")),
    (commands.pub("t", b"\n\0body"), Pub("t", b"\n\0body", None)),
    (commands.dpub("t", b"later", 1500), Pub("t", b"later", 1500)),
    (b"DPUB t \n\0\0\0\1x", Pub("t", b"x", 0)),
    (commands.mpub("t", [b"same", b"size"]), Mpub("t", measured([b"same", b"size"]))),
    (
        commands.mpub("t", [b"not", b"of", b"one size"]),
        Mpub("t", measured([b"not", b"of", b"one size"])),
    ),
    # nsqd follows the counts, not the size.
    (b"MPUB t\n\0\0\0\1\0\0\0\1\0\0\0\2xy", Mpub("t", measured([b"xy"]))),
    (commands.sub("t", "c"), Sub("t", "c")),
    (b"RDY\n", Rdy(1)),
    (b"RDY \r\n", Rdy(0)),
    (commands.rdy(2500), Rdy(2500)),
    # 2^64 + 7
    (b"RDY 18446744073709551623\n", Rdy(7)),
    (commands.fin([ID]), Fin(commands.fin([ID]))),
    (b"FIN %b ignored\r\n" % ID2, Fin(commands.fin([ID2]))),
    (commands.req([ID], 90), Req(ID, 90)),
    (commands.touch([ID]), Touch(ID)),
    (commands.pub("t", b"x"), Pub("t", b"x", None)),
    (commands.CLS, Cls()),
    (b"RDY nonsense\n", Nop()),
    (commands.fin([ID]), Fin(commands.fin([ID]))),
]
RAW = b"".join(raw for raw, _ in CONVERSATION)
EXPECTED = [command for _, command in CONVERSATION]


class Session:
    """Moves the state on as the broker's session does."""

    def __init__(self, limits: CommandLimits = LIMITS) -> None:
        self.decoder = CommandDecoder(limits)
        self.commands: list[Command] = []

    def receive(self, data: bytes) -> None:
        self.decoder.receive(data)
        while (command := self.decoder.next_command()) is not None:
            self.commands.append(command)
            if isinstance(command, Sub):
                self.decoder.state = ClientState.SUBSCRIBED
            elif isinstance(command, Cls):
                self.decoder.state = ClientState.CLOSING


def read(pieces: Iterable[bytes], limits: CommandLimits = LIMITS) -> list[Command]:
    session = Session(limits)
    for piece in pieces:
        session.receive(piece)
    return session.commands


def pieces_of(raw: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(raw), *(min(at, len(raw)) for at in cuts)})
    return [raw[start:stop] for start, stop in pairwise(places)]


def test_whole() -> None:
    assert read([b"  V2" + RAW]) == EXPECTED


def test_byte_by_byte() -> None:
    raw = b"  V2" + RAW
    assert read(raw[at : at + 1] for at in range(len(raw))) == EXPECTED


def test_cut_at_every_offset() -> None:
    raw = b"  V2" + RAW
    for at in range(len(raw) + 1):
        assert read([raw[:at], raw[at:]]) == EXPECTED


def test_with_trailing_bytes() -> None:
    session = Session()
    session.receive(b"  V2" + RAW + b"FIN 0123")
    assert session.commands == EXPECTED
    assert session.decoder.take_unread() == b"FIN 0123"


def test_every_command_alone_and_cut() -> None:
    state = ClientState.INIT
    for raw, command in CONVERSATION:
        for at in range(len(raw) + 1):
            session = Session()
            session.receive(b"  V2")
            session.decoder.state = state
            session.receive(raw[:at])
            assert session.commands == ([] if at < len(raw) else [command])
            session.receive(raw[at:])
            assert session.commands == [command]
        state = session.decoder.state


@given(st.lists(st.integers(0, len(RAW) + 4), max_size=10))
def test_any_cuts(cuts: list[int]) -> None:
    assert read(pieces_of(b"  V2" + RAW, cuts)) == EXPECTED


bodies = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=30) | st.integers(
    1, 120
).map(lambda count: [b"four"] * count)


@given(bodies, st.lists(st.integers(0, 1500), max_size=6), st.binary(max_size=20))
def test_mpub_is_read_back_whatever_the_cuts(
    messages: list[bytes], cuts: list[int], behind: bytes
) -> None:
    limits = CommandLimits(max_body_size_bytes=1 << 20)
    raw = b"  V2" + commands.mpub("t", messages) + commands.NOP
    assert read(pieces_of(raw, cuts), limits) == [Mpub("t", measured(messages)), Nop()]
    body = commands.mpub("t", messages).partition(b"\n")[2][4:]
    assert read_mpub(body + behind, limits).take() == measured(messages)


@given(bodies, st.data())
def test_a_batch_that_is_cut_or_changed_is_refused_or_read_but_nothing_else(
    messages: list[bytes], data: st.DataObject
) -> None:
    body = bytearray(commands.mpub("t", messages).partition(b"\n")[2][4:])
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(ProtocolError) as caught:
        read_mpub(bytes(body[:cut]), LIMITS)
    assert caught.value.code in ("E_BAD_BODY", "E_BAD_MESSAGE")
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read_mpub(bytes(body), LIMITS)
    except ProtocolError as error:
        assert error.code in ("E_BAD_BODY", "E_BAD_MESSAGE")  # noqa: PT017
    else:
        some = found.take()
        assert some is not None
        assert some == measured(some.each)
        assert some.size_bytes <= len(body)
        assert not found.left


@pytest.mark.parametrize("sizes", [(2,), (1, 2, 3)])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_batch_of_very_many_is_cut_in_slices(sizes: tuple[int, ...], pieces: int) -> None:
    count = 2 * SLICE_MESSAGES + 7
    messages = [b"%03d"[: sizes[number % len(sizes)]] for number in range(count)]
    raw = b"  V2" + commands.mpub("t", messages) + commands.NOP
    limits = CommandLimits(max_body_size_bytes=1 << 20)
    batch, nop = read(pieces_of(raw, [len(raw) * at // pieces for at in range(pieces)]), limits)
    assert isinstance(batch, Mpub)
    assert batch.rest is not None
    slices = [batch.bodies]
    while some := batch.rest.take():
        slices.append(some)
    assert [len(some.each) for some in slices] == [SLICE_MESSAGES, SLICE_MESSAGES, 7]
    assert slices == [measured(some.each) for some in slices]
    assert joined(slices) == measured(messages)
    assert nop == Nop()


def read_as_subscriber(pieces: Iterable[bytes]) -> list[Command]:
    session = Session()
    session.receive(b"  V2")
    session.decoder.state = ClientState.SUBSCRIBED
    for piece in pieces:
        session.receive(piece)
    return session.commands


ids = st.lists(st.binary(min_size=16, max_size=16).filter(lambda raw: b"\n" not in raw), min_size=1)


@given(ids, st.lists(st.integers(0, 400), max_size=4))
def test_a_run_of_fins_is_all_of_its_ids(many: list[bytes], cuts: list[int]) -> None:
    # A space ends an id, and a CR behind it is the line's: what is left is no id (spec: part 1).
    is_right = not any(b" " in one or one.endswith(b"\r") for one in many)
    try:
        found = read_as_subscriber(pieces_of(commands.fin(many), cuts))
    except ProtocolError as error:
        assert str(error) == "E_INVALID invalid message ID"  # noqa: PT017
        assert not is_right
        return
    assert is_right
    got = [one for command in found for one in commands.fin_ids(command[0])]  # type: ignore[misc, arg-type]
    assert got == many


@given(ids, st.integers(0, 200), st.lists(st.integers(0, 9000), max_size=4))
def test_a_long_run_of_fins_may_hold_any_ids(odd: list[bytes], at: int, cuts: list[int]) -> None:
    odd = [one for one in odd if b" " not in one and not one.endswith(b"\r")]
    many = [b"%016x" % number for number in range(200)]
    many[at:at] = odd
    found = read_as_subscriber(pieces_of(commands.fin(many), cuts))
    assert [one for command in found for one in commands.fin_ids(command[0])] == many  # type: ignore[misc, arg-type]


topics = st.sampled_from(["t", "t2", "tt", "x" * 64, "t#ephemeral"])


@given(st.lists(st.tuples(topics, st.binary(min_size=1, max_size=30)), max_size=20), st.data())
def test_publishes_to_the_same_topic_and_to_others_are_read(
    many: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    raw = b"".join(commands.pub(topic, body) for topic, body in many)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=4))
    assert read_as_subscriber(pieces_of(raw, cuts)) == [Pub(t, body, None) for t, body in many]


def test_what_is_no_name_is_none_after_a_good_publish_either() -> None:
    with pytest.raises(ProtocolError, match="PUB topic name"):
        read_as_subscriber([commands.pub("t", b"x"), b"PUB t!\n\0\0\0\1x"])
    # Neither is a line of nothing, nor one that is longer than a line may be.
    for hostile in (b"\n", bytes(20_000)):
        with pytest.raises((ProtocolError, ConnectionDropped)):
            read_as_subscriber([hostile])


@pytest.mark.parametrize("wrong", [b"0123456 89abcdef", b"0123456789abcde\r", b" " * 16])
@pytest.mark.parametrize("place", range(3))
def test_an_id_with_a_space_or_a_cr_at_its_end_is_none_in_a_run_either(
    wrong: bytes, place: int
) -> None:
    many = [ID, ID2]
    many.insert(place, wrong)
    with pytest.raises(ProtocolError, match="invalid message ID") as caught:
        read_as_subscriber([commands.fin(many)])
    assert caught.value.fatal


def test_a_cr_inside_of_an_id_is_a_byte_like_others() -> None:
    assert read_as_subscriber([commands.fin([ID, b"01\r3456789abcdef"])]) == [
        Fin(commands.fin([ID, b"01\r3456789abcdef"]))
    ]


@pytest.mark.parametrize("before", [0, 60])
def test_a_cr_before_a_parameter_belongs_to_the_id(before: int) -> None:
    line = b"FIN 0123456789abcde\r x\n"
    found = read_as_subscriber([commands.fin([ID] * before) if before else b"", line])
    assert found[-1] == Fin(commands.fin([b"0123456789abcde\r"]))


def test_a_flood_of_fins_comes_in_bounded_commands() -> None:
    found = read_as_subscriber([commands.fin([ID] * (2 * FIN_RUN_MAX + 5))])
    sizes = [len(command.lines) for command in found if isinstance(command, Fin)]
    assert sizes == [commands.FIN_LINE_BYTES * count for count in (FIN_RUN_MAX, FIN_RUN_MAX, 5)]


@settings(max_examples=300)
@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from([raw for raw, _ in CONVERSATION])
        | st.sampled_from([b"PUB ", b"MPUB t\n", b"\n", b" ", b"FIN ", b"\0\0\0\5", b"SUB a b\n"]),
        max_size=20,
    ),
    st.sampled_from(list(ClientState)),
)
def test_only_documented_errors_escape_and_a_fatal_one_stays(
    pieces: list[bytes], state: ClientState
) -> None:
    session = Session()
    session.receive(b"  V2")
    session.decoder.state = state
    failure: NsqToolsError | None = None
    for piece in pieces:
        try:
            session.receive(piece)
        except (ProtocolError, ConnectionDropped) as error:
            stayed = failure is None or error is failure
            failure = error
        else:
            stayed = failure is None
        assert stayed
    end = session.decoder.receive_eof()
    assert end is None or isinstance(end, ProtocolError)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"  V1", "E_BAD_PROTOCOL"),
        (b"GET / HTTP/1.1\r\n", "E_BAD_PROTOCOL"),
        (b"  V2pub t\n", "E_INVALID invalid command pub"),
        (b"  V2\n", "E_INVALID invalid command "),
        (b"  V2PUB t\n\0\0\0\0", "E_BAD_MESSAGE PUB invalid message body size 0"),
        (b"  V2PUB t\n\0\0\0\x65", "E_BAD_MESSAGE PUB message too big 101 > 100"),
        (b"  V2MPUB t\n\0\0\3\xe9", "E_BAD_BODY MPUB body too big 1001 > 1000"),
        (b"  V2MPUB t\n\0\0\0\1\0\0\0\xc8", "E_BAD_BODY MPUB invalid message count 200"),
    ],
)
def test_violations_are_told_as_soon_as_they_are_seen(raw: bytes, code: str) -> None:
    for cut in range(len(raw)):
        with pytest.raises(ProtocolError) as caught:
            read([raw[:cut], raw[cut:]])
        assert str(caught.value) == code
        assert caught.value.fatal


def test_a_line_may_have_16_kib_and_no_more() -> None:
    fits = b"NOP " + b"x" * (LINE_MAX_BYTES - 5) + b"\n"
    assert read([b"  V2", fits]) == [Nop()]
    for pieces in ([b"  V2", b"x" + fits], [b"  V2", fits[:-1] + b"x"]):
        with pytest.raises(ConnectionDropped, match="command line longer"):
            read(pieces)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"PUB t", None),
        (b"PUB t\n", "E_BAD_MESSAGE PUB failed to read message body size"),
        (b"PUB t\n\0\0\0\2x", "E_BAD_MESSAGE PUB failed to read message body"),
        (b"MPUB t\n", "E_BAD_BODY MPUB failed to read body size"),
        (b"MPUB t\n\0\0\0\x0e", "E_BAD_BODY MPUB failed to read message count"),
        (
            b"MPUB t\n\0\0\0\x0e\0\0\0\2\0\0\0\1x",
            "E_BAD_MESSAGE MPUB failed to read message(1) body size",
        ),
        (b"IDENTIFY\n\0\0\0\2{", "E_BAD_BODY IDENTIFY failed to read body"),
    ],
)
def test_what_an_end_in_the_middle_is_answered_with(raw: bytes, text: str | None) -> None:
    for pieces in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        session = Session()
        session.receive(b"  V2")
        for piece in pieces:
            session.receive(piece)
        failure = session.decoder.receive_eof()
        assert (str(failure) if failure else None) == text


def test_a_body_that_trickles_is_joined_once() -> None:
    limits = CommandLimits(max_msg_size_bytes=1 << 20, max_body_size_bytes=5 << 20)
    many = [bytes([number % 256]) * 1000 for number in range(1000)]
    raw = commands.mpub("t", many)
    session = Session(limits)
    session.receive(b"  V2")
    for at in range(0, len(raw), 1000):
        session.receive(raw[at : at + 1000])
    assert session.commands == [Mpub("t", measured(many))]


def test_sizes_are_signed() -> None:
    for size in (-1, -(2**31)):
        with pytest.raises(ProtocolError, match=f"invalid message body size {size}"):
            read([b"  V2PUB t\n" + struct.pack(">i", size)])
