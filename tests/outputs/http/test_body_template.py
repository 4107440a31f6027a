"""Bodies by template: whatever a message holds, a request is JSON of the template's shape."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.outputs.http.batches import Unfit
from nsqtools.outputs.http.body_template import (
    BODY_TEMPLATE,
    TEMPLATE_LENGTH_MAX,
    BodyTemplate,
)
from nsqtools.wire.messages import Messages, encode_payload

FIXED = {"topic": "orders%", "channel": "c#ephemeral"}
ID = b"0123456789abcdef"
SLACK = '{"text": "{topic}: {body}"}'


def rendered(
    template: str, body: bytes = b"body", message_id: bytes = ID, nsqd: str = "[::1]:4150"
) -> bytes:
    messages = Messages([encode_payload(1_700_000_000_123_456_789, 2, message_id, body)], nsqd=nsqd)
    return BodyTemplate(template, fixed=FIXED).render(messages, 0)


@pytest.mark.parametrize(
    ("template", "body", "expected"),
    [
        (SLACK, b"a", b'{"text": "orders%: a"}'),
        (SLACK, b'"\\\n{id}\x00%b', rb'{"text": "orders%: \"\\\n{id}\u0000%b"}'),
        (SLACK, "ü ☃ 😀".encode(), '{"text": "orders%: ü ☃ 😀"}'.encode()),
        (SLACK, b"", b'{"text": "orders%: "}'),
        ('"{body}"', b"x", b'"x"'),
        ("{body}", b' {"a": [1]}\n', b' {"a": [1]}\n'),
        ('{"a":{"b":{body}},"c":[{body},{}]}', b"1", b'{"a":{"b":1},"c":[1,{}]}'),
        ('{"{topic}": {}}', b"x", b'{"orders%": {}}'),
        (
            '{"t":{timestamp},"T":"{timestamp}","n":{attempts}}',
            *(b"x", b'{"t":1700000000123456789,"T":"1700000000123456789","n":2}'),
        ),
        ('["{id}","{nsqd}","{channel}"]', b"", b'["0123456789abcdef","[::1]:4150","c#ephemeral"]'),
        ('"{body_base64}"', b"\xff\x00", b'"/wA="'),
        (r'"\\{body}\u007bbody}"', b"x", rb'"\\x\u007bbody}"'),
        ('"{ body} {BODY} {a b} {}"', b"x", b'"{ body} {BODY} {a b} {}"'),
        ('"100% %s %b"', b"x", b'"100% %s %b"'),
        ("[1]", b"x", b"[1]"),
    ],
)
def test_a_body(template: str, body: bytes, expected: bytes) -> None:
    assert rendered(template, body) == expected
    json.loads(expected)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("", "should be JSON"),
        ("{topic}: {body}", "{topic} should stand within quotes"),
        ('{"a": {id}}', "{id} should stand within quotes"),
        ('{"a": {nsqd}}', "{nsqd} should stand within quotes"),
        ('{"a": {body_base64}}', "{body_base64} should stand within quotes"),
        ('{"a": "{bdy}"}', "unknown field {bdy}, known are {topic} {channel}"),
        ('{"a": {bdy}}', "unknown field {bdy}"),
        ('{"a": "{body}}', "should be JSON"),
        ("{{body}}", "should be JSON"),
        ("{{body}: 1}", "should be JSON"),
        ("{body}{body}", "should be JSON"),
        ("1{attempts}", "should be JSON"),
        ("-{body}", "should be JSON"),
        ('"a" {body}', "should be JSON"),
        (r'"\{body}"', "should be JSON"),
        (r'"\u00{body}"', "should be JSON"),
        (r'"\u{body}"', "should be JSON"),
        ('"a\n{body}"', "should be JSON"),
        ("NaN", "should be JSON"),
        ('"\udcff"', "UTF-8"),
        (f'"{"x" * TEMPLATE_LENGTH_MAX}"', "longer than"),
    ],
)
def test_what_is_no_template(template: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("{", r"\{")):
        BODY_TEMPLATE.parse(template)


@pytest.mark.parametrize(
    ("template", "body", "problem", "reason"),
    [
        (SLACK, b"\xff", "the body is not UTF-8", "not UTF-8"),
        (SLACK, b"\xed\xa0\x80", "the body is not UTF-8", "not UTF-8"),
        ("[{body}]", b"no JSON", "the body is no JSON", "not JSON"),
        ("[{body}]", b"", "the body is no JSON", "not JSON"),
        ("[{body}]", b"1],[1", "the body is no JSON", "not JSON"),
        ("[{body}]", b"1,2", "the body is no JSON", "not JSON"),
        ("[{body}]", b'"\xff"', "the body is no JSON", "not JSON"),
        ("[{body}]", b"\xef\xbb\xbf1", "the body is no JSON", "not JSON"),
        ("[{body}]", b"[" * 100_000, "the body is no JSON", "not JSON"),
    ],
)
def test_what_does_not_fit(template: str, body: bytes, problem: str, reason: str) -> None:
    with pytest.raises(Unfit, match=problem) as caught:
        rendered(template, body)
    assert caught.value.reason == reason


@given(st.text(), st.binary(min_size=16, max_size=16), st.text())
def test_whatever_a_message_holds_it_comes_back(text: str, message_id: bytes, nsqd: str) -> None:
    body = text.encode("utf-8", "replace")
    template = '{"i":"{id}","x":"<{body}>","b":"{body_base64}","n":"{nsqd}","t":[{timestamp}]}'
    found = json.loads(rendered(template, body, message_id, nsqd))
    assert found == {
        "i": message_id.decode("latin-1"),
        "x": f"<{body.decode()}>",
        "b": base64.b64encode(body).decode(),
        "n": nsqd.encode("utf-8", "replace").decode(),
        "t": [1_700_000_000_123_456_789],
    }


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_json_stays_what_it_is(value: object) -> None:
    body = json.dumps(value).encode()
    assert json.loads(rendered('{"a":{body},"b":{"c":{body}}}', body)) == {
        "a": value,
        "b": {"c": value},
    }


@given(st.text('{}[]",:\\ abodytpic_1n', max_size=60), st.text(max_size=10))
def test_a_template_that_is_taken_gives_json(template: str, text: str) -> None:
    try:
        BODY_TEMPLATE.parse(template)
    except ValueError:
        return
    json.loads(rendered(template, json.dumps(text).encode()))
