"""Passwords stay out of whatever is shown."""

from __future__ import annotations

import pytest

from nsqtools.options import mask_passwords, quoted
from nsqtools.options.shown import SHOWN_LENGTH_MAX


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:1/p?q", "http://user:***@host:1/p?q"),
        ("a http://u:p@w:d@host b", "a http://u:***@host b"),
        ("http://:token@host", "http://:***@host"),
        ("http://a:1,http://u:p@b", "http://a:1,http://u:***@b"),
        ("user:secret@host:4161", "user:***@host:4161"),
        ("http://user@host:4161", "http://user@host:4161"),
        ("at 10:30 a@b", "at 10:30 a@b"),
        ("http://host:1/a:b@c", "http://host:1/a:b@c"),
        ("127.0.0.1:4150", "127.0.0.1:4150"),
    ],
)
def test_passwords_are_masked(text: str, shown: str) -> None:
    assert mask_passwords(text) == shown


def test_a_password_is_masked_before_the_text_is_cut() -> None:
    url = "http://user:" + "s" * SHOWN_LENGTH_MAX + "@host"
    assert quoted(url) == '"http://user:***@host"'


def test_quoting() -> None:
    assert quoted('a"b\\c\n\x1b') == '"a\\"b\\\\c\\n\\x1b"'
    assert quoted("x" * 200) == '"' + "x" * SHOWN_LENGTH_MAX + '..."'
