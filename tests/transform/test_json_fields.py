"""Steps that look at the fields of JSON objects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.transform.test_steps import left, messages_of

from nsqtools.transform.json_fields import JsonFields, only_fields
from nsqtools.transform.steps import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

BIG = 2**53 + 1
NOT_OBJECTS = [b"", b"no", b"[1]", b"1", b"null", b'{"a":1', b'{"a":NaN}', b'{"a":"\xff"}', b"{}{}"]


def passed(step: JsonFields, bodies: Sequence[bytes]) -> tuple[list[bytes], list[str]]:
    work = Work(messages_of(*bodies))
    step.apply(work)
    return left(work), [work.removed[at] for at in sorted(work.removed)]


def test_a_field_is_required() -> None:
    step = JsonFields(field="a")
    bodies = [b'{"a":null}', b'{"b":1}', b' { "\\u0061" : {"b":1} } ', b"{}"]
    assert passed(step, bodies) == ([bodies[0], bodies[2]], ["require-json-field"] * 2)


@pytest.mark.parametrize("body", NOT_OBJECTS)
def test_what_is_no_object_is_dropped_unless_it_is_to_be_kept(body: bytes) -> None:
    assert passed(JsonFields(field="a"), [body]) == ([], ["non-json"])
    kept = JsonFields(non_json="keep", field="a", value="1", whitelist=["b"])
    assert passed(kept, [body]) == ([body], [])


# Around what Python's decoder and orjson take, and far beyond.
@pytest.mark.parametrize("levels", [900, 980, 1000, 1023, 1024, 1025, 5000, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"[":', "}")])
def test_nesting_has_no_limit(levels: int, begin: str, end: str) -> None:
    """It raised, which stopped a topic for ever, or was no JSON."""
    deep = begin * levels + "1.5" + end * levels
    body = f'{{"a": {deep}, "b": 1.5, "c": "]"}}'.encode()
    assert passed(JsonFields(field="b", value="1.5"), [body]) == ([body], [])
    assert passed(JsonFields(whitelist=["b"]), [body]) == ([b'{"b": 1.5}'], [])
    kept = f'{{"a": {deep},"c": "]"}}'.encode()
    assert passed(JsonFields(whitelist=["a", "c"]), [body]) == ([kept], [])
    broken = [body[:-1], body.replace(b"1.5,", b"1.5,,"), body.replace(b"1.5]", b"01]")]
    for wrong in broken[: 3 if begin == "[" else 2]:
        assert passed(JsonFields(field="b"), [wrong]) == ([], ["non-json"])


@pytest.mark.parametrize(
    ("wanted", "text", "is_right"),
    [
        ("x", '"x"', True),
        ("x", '"X"', False),
        ("1", '"1"', True),
        ("1", "1", True),
        ("1", "1.0", True),
        ("1", "10e-1", True),
        ("1e2", "100", True),
        ("+.5", "0.50", True),
        ("0.1", "0.1", True),
        ("0.1", "0.1000000000000000055511151231257827", False),
        (str(BIG), str(BIG), True),
        (str(BIG), str(BIG - 1), False),
        (str(2**80 + 1), str(2**80 + 1), True),
        (str(2**80 + 1), str(2**80), False),
        ("1e400", "1e400", True),
        ("1e400", "1e401", False),
        ("1e99999999999999999999", "1e99999999999999999999", False),
        ("1", "1e999999999", False),
        ("1", "true", False),
        ("true", "true", False),
        ("", '""', True),
        ("null", "null", False),
        ("1", "[1]", False),
        ("1", '{"a":1}', False),
        ("é", '"\\u00e9"', True),
    ],
)
def test_a_value_is_required_exactly(wanted: str, text: str, is_right: bool) -> None:
    body = f'{{"b":0,"a":{text}}}'.encode()
    expected = ([body], []) if is_right else ([], ["require-json-value"])
    assert passed(JsonFields(field="a", value=wanted), [body]) == expected


def test_a_value_of_a_missing_field_is_no_reason_to_try_again() -> None:
    """NSQ's tool requeues such a message until it gives it up."""
    assert passed(JsonFields(field="a", value="1"), [b'{"b":1}']) == ([], ["require-json-field"])


def test_of_a_field_that_stands_twice_the_last_one_counts() -> None:
    step = JsonFields(field="a", value="2")
    assert passed(step, [b'{"a":1,"a":2}', b'{"a":2,"a":1}'])[0] == [b'{"a":1,"a":2}']


def test_half_a_surrogate_is_json_all_the_same() -> None:
    body = b'{"a":"\\ud800","n":1}'
    assert passed(JsonFields(field="n", value="1"), [body]) == ([body], [])


@pytest.mark.parametrize(
    ("body", "left_of_it"),
    [
        (b'{"c":1,"b":2,"a":3}', b'{"c":1,"a":3}'),
        (b' { "c" : 1 , "a" : [ 1 , 2 ] } \n', b' { "c" : 1 , "a" : [ 1 , 2 ] } \n'),
        (b' { "x" : 1 , "a" : [ 1 , 2 ] } \n', b'{"a" : [ 1 , 2 ]}'),
        (b'{"a":12345678901234567890123,"x":1}', b'{"a":12345678901234567890123}'),
        (b'{"a":1.10,"x":"}","c":"\\u003c<"}', b'{"a":1.10,"c":"\\u003c<"}'),
        (b'{"a":1,"x":0,"a":2}', b'{"a":1,"a":2}'),
        (b'{"\\u0061":1,"x":0}', b'{"\\u0061":1}'),
        (b'{"x":1}', b"{}"),
        (b"{}", b"{}"),
        (b'{"x":' + b"1" * 5000 + b',"a":1e5}', b'{"a":1e5}'),
    ],
)
def test_listed_fields_stay_as_they_are_written(body: bytes, left_of_it: bytes) -> None:
    assert passed(JsonFields(whitelist=["a", "c"]), [body]) == ([left_of_it], [])


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", 'q"', "é", "\\", ""]), values),
    st.sets(st.sampled_from(["a", "b", 'q"', "é", "\\", "", "absent"])),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_it_is_the_object_without_the_others(
    fields: dict[str, Any], names: set[str], indent: int | None, ascii_only: bool
) -> None:
    body = json.dumps(fields, indent=indent, ensure_ascii=ascii_only).encode(
        "utf-8", "surrogatepass"
    )
    made = json.loads(only_fields(body, names))
    assert made == {name: value for name, value in fields.items() if name in names}
    assert list(made) == [name for name in fields if name in names]
