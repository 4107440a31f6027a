"""NSQ's flags, in its words (spec: tools, part 2)."""

from __future__ import annotations

import pytest

from nsqtools.errors import OptionsError
from nsqtools.options import help_text, load, options_of
from nsqtools.outputs.http.pool import ClientOptions, Pool
from nsqtools.outputs.http.url import Origin
from nsqtools.programs.nsq_to_http.options import NsqToHttpOptions
from nsqtools.programs.nsq_to_http.run import client_options

GIVEN = {
    "topic": "t",
    "nsqd-tcp-address": "127.0.0.1:4150",
    "post": "http://127.0.0.1/",
}


def problems(*flags: str, without: str = "", environ: dict[str, str] | None = None) -> list[str]:
    given = [f"--{name}={value}" for name, value in GIVEN.items() if name != without]
    try:
        load(NsqToHttpOptions, "nsq_to_http", [*given, *flags], environ or {})
    except OptionsError as error:
        return list(error.problems)
    return []


def test_what_is_needed_is_enough() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("without", "flags", "problem"),
    [
        ("topic", (), "--topic and --channel are required"),
        ("", ("--channel=",), "--channel is required"),
        ("nsqd-tcp-address", (), "--nsqd-tcp-address or --lookupd-http-address required"),
        (
            "",
            ("--lookupd-http-address=127.0.0.1:4161",),
            "use --nsqd-tcp-address or --lookupd-http-address not both",
        ),
        ("post", (), "--get or --post required"),
        ("", ("--get=http://h/%s",), "use --get or --post not both"),
        ("post", ("--get=http://h/",), "invalid GET address - must be a printf string"),
        ("post", ("--get=http://h/%s%s",), "invalid GET address - must be a printf string"),
        ("", ("--sample=1.5",), "ERROR: --sample must be between 0.0 and 1.0"),
        ("post", ("--get=http://h/%s", "--content-type=x"), "--content-type only used with --post"),
        (
            "",
            ("--http-client-request-timeout=0s",),
            "--http-client-request-timeout should be positive",
        ),
        ("", ("--tls-key=k",), "--tls-key needs --tls-cert"),
        ("", ("--batch-format=json",), "--batch-format needs --batch-size"),
        ("", ("--hmac-header=X-Sign",), "--hmac-header needs --hmac-key-file"),
        (
            "",
            ("--dead-letter-nsqd-tcp-address=127.0.0.1:4150",),
            "--dead-letter-nsqd-tcp-address needs --dead-letter-topic",
        ),
    ],
)
def test_mistakes_have_nsqs_words(without: str, flags: tuple[str, ...], problem: str) -> None:
    assert problem in problems(*flags, without=without)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--mode=multicast", "should be one of round-robin, hostpool, epsilon-greedy, all"),
        ("--content-type=", "--content-type requires a value when used"),
        ("--header=Authorization secret", "value format should be 'Name: value'"),
        ("--post=http://user:secret@h/", "credentials"),
        ("--header=X-Name: 日本 secret", "a character that a header cannot have"),
        ("--n=0", "should be at least 1"),
        ("--ok-status=700", "should be a status"),
    ],
)
def test_values_that_cannot_be(flag: str, words: str) -> None:
    (problem,) = problems(flag)
    assert words in problem
    assert "secret" not in problem


def test_a_mistake_in_a_url_does_not_show_its_query() -> None:
    (problem,) = problems("--post=htp://h/x?token=secret")
    assert '"htp://h/x?..."' in problem


def test_a_dead_letter_topic_that_is_the_topic_is_one_mistake() -> None:
    found = problems("--dead-letter-topic={topic}")
    assert [one for one in found if "dead-letter" in one] == [
        "--dead-letter-topic should not be the topic itself"
    ]


def test_defaults_are_nsqs() -> None:
    options = load(
        NsqToHttpOptions,
        "nsq_to_http",
        [f"--{name}={value}" for name, value in GIVEN.items()],
        {},
    )
    assert (options.channel, options.n, options.mode, options.sample) == (
        *("nsq_to_http", 100, "hostpool"),
        1.0,
    )
    assert options.content_type == "application/octet-stream"
    assert options.http_client_connect_timeout_s == 2
    assert options.http_client_request_timeout_s == 20
    assert options.status_every == 250


def test_headers_come_from_the_environment_a_line_each() -> None:
    options = load(
        NsqToHttpOptions,
        "nsq_to_http",
        [f"--{name}={value}" for name, value in GIVEN.items()],
        {"NSQ_TO_HTTP_HEADER": "A: 1, 2\nAuthorization: Bearer secret"},
    )
    assert [(one.name, one.value) for one in options.header] == [
        ("A", "1, 2"),
        ("Authorization", "Bearer secret"),
    ]
    assert "secret" not in repr(options)


def test_help_says_how_repeated_values_are_parted() -> None:
    text = help_text(
        "nsq_to_http",
        "",
        options_of(NsqToHttpOptions),
        examples=(),
        exit_status={},
        width=1000,
    )
    text = " ".join(text.split())
    assert "--producer-opt by semicolons, those of --post and --get by spaces" in text
    assert "those of --header by newlines" in text


def test_two_endpoints_from_the_environment() -> None:
    options = load(
        NsqToHttpOptions,
        "nsq_to_http",
        ["--topic=t", "--nsqd-tcp-address=127.0.0.1:4150"],
        {"NSQ_TO_HTTP_POST": "http://a/?x=1,2 http://b/"},
    )
    assert options.urls == ("http://a/?x=1,2", "http://b/")


def test_the_scheme_of_tls_in_any_case_means_tls() -> None:
    """And nothing is ever sent in plain text to what wants TLS."""
    argv = ["--topic=t", "--channel=c", "--nsqd-tcp-address=h:1", "--post=HTTPS://h/"]
    options = load(NsqToHttpOptions, "nsq_to_http", argv, {})
    assert client_options(options).tls is not None
    origin = Origin(is_tls=True, host="h", port=443)
    with pytest.raises(ValueError, match="TLS is wanted"):
        Pool(origin, ClientOptions(connect_timeout_s=1, request_timeout_s=1))


def test_a_topic_that_is_its_own_dead_letter_is_no_matter_of_patterns() -> None:
    same = problems("--dead-letter-topic=t")
    assert same == ["--dead-letter-topic of t would be t, which cannot be"]
    dead = problems("--topic=t.dead", "--dead-letter-topic={topic}.dead", without="topic")
    assert dead == ["--dead-letter-topic leaves no --topic: they are dead letters themselves"]
    filtered = problems("--topic-exclude=^t$")
    assert filtered == ["--topic-pattern and --topic-exclude leave no --topic"]
