"""What went wrong, in our words: every failure of boto3 and what is below it becomes one of

    FileNotFoundError    there is no such object
    FileExistsError      the key is taken (the answer to If-None-Match)
    StoreError           is_passing: worth another try; otherwise somebody has to mend something

Nothing that a store says is trusted: its texts are cut, escaped, and rid of whatever looks like a
credential or a signature. The original exception is not chained, because tracebacks show its text.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nsqtools.errors import NsqToolsError, StoreError
from nsqtools.options import printable
from nsqtools.stores.location import Location

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT_LENGTH_MAX = 300
# From here on AWS refuses; a HEAD is refused without a word, and its Date is all there is to go by.
SKEW_S = 15 * 60

_PASSING = frozenset(
    {
        *("InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling"),
        *(
            "RequestTimeoutException",
            "ThrottlingException",
            "ThrottledException",
            "PriorRequestNotComplete",
        ),
        *(
            "RequestThrottled",
            "RequestThrottledException",
            "TooManyRequests",
            "RequestLimitExceeded",
        ),
        *("TooManyRequestsException", "BandwidthLimitExceeded", "OperationAborted"),
        *("ConditionalRequestConflict", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"),
        *("XAmzContentChecksumMismatch", "InvalidPart"),
    }
)
_WORN_OUT = frozenset(
    {
        *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"),
        *("InvalidToken", "InvalidClientTokenId", "UnrecognizedClientException"),
    }
)
# What other credentials might mend.
_IDENTITY = frozenset({"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_ACTIONS = {
    "put_object": ("PutObject",),
    "create_multipart_upload": ("PutObject",),
    "upload_part": ("PutObject",),
    "complete_multipart_upload": ("PutObject",),
    "abort_multipart_upload": ("AbortMultipartUpload",),
    "head_object": ("GetObject",),
    "get_object": ("GetObject",),
    "delete_object": ("DeleteObject",),
    "list_objects_v2": ("ListBucket",),
    "list_multipart_uploads": ("ListBucketMultipartUploads",),
}
# What those ask who have no --bucket.
_READS = frozenset({"list_objects_v2", "head_object", "get_object"})
_WORDS = {
    "put_object": "put",
    "create_multipart_upload": "begin upload of",
    "upload_part": "upload part of",
    "complete_multipart_upload": "complete upload of",
    "abort_multipart_upload": "abort upload of",
    "head_object": "look at",
    "get_object": "read",
    "delete_object": "delete",
    "list_objects_v2": "list",
    "list_multipart_uploads": "list uploads of",
}
_HINTS = {
    "NoSuchBucket": "Create the bucket, or name another with --bucket.",
    "InvalidAccessKeyId": "The store does not know this access key: is it that of another store?",
    "SignatureDoesNotMatch": "The secret key is not the one of this access key.",
    "InvalidObjectState": "The object is in an archive class: restore it first.",
    "KMS.NotFoundException": "The key of --sse-kms-key-id is not there, or is in another region.",
    "KMS.DisabledException": "Enable the key of --sse-kms-key-id.",
    "InvalidStorageClass": "The store has no such --storage-class.",
    "AccessControlListNotSupported": "The bucket has no ACLs: leave out --acl.",
    "KeyTooLongError": "Choose shorter names with --key-format.",
}
NO_STORE = "What answers may be no store: is --endpoint-url the address of its S3 API?"
_SECRETS = (
    re.compile(r"(?i)((?:x-amz-)?(?:signature|credential|security-token)\s*[=:]\s*)[^\s&,;\"'<>]+"),
    re.compile(r"(?i)((?:aws_)?(?:secret_access_key|session_token|access_key_id)\s*[=:]\s*)\S+"),
    re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: the method of boto3's client, and the place."""

    method: str
    bucket: str
    key: str = ""
    is_conditional: bool = False
    """Whether it was to succeed only where nothing has the key."""

    @property
    def place(self) -> str:
        return str(Location(self.bucket, self.key))

    @property
    def operation(self) -> str:
        return _WORDS.get(self.method, self.method.replace("_", " "))

    @property
    def permissions(self) -> str:
        """`s3:PutObject on arn:aws:s3:::bucket/key`."""
        actions = " and ".join(f"s3:{action}" for action in _ACTIONS.get(self.method, ()))
        on_bucket = self.method.startswith("list_")
        arn = f"arn:aws:s3:::{self.bucket}" + (
            "" if on_bucket else self.place[len(f"s3://{self.bucket}") :]
        )
        return f"{actions} on {arn}"

    def failed(
        self, reason: str, *, is_passing: bool, code: str = "", hint: str = ""
    ) -> StoreError:
        return StoreError(
            self.operation, self.place, reason, is_passing=is_passing, code=code, hint=hint
        )


def field_of(answer: Mapping[str, Any], name: str, request: Request) -> Any:
    """What an answer has to say; raises StoreError where it does not: something in between answered."""
    if name not in answer:
        raise request.failed(f"the answer says no {name}", is_passing=True, hint=NO_STORE)
    return answer[name]


class WornOut(StoreError):  # noqa: N818 - it is what the credentials are
    """The credentials are of no use any more, or not there yet: they have to be looked for anew."""


class NoCondition(StoreError):  # noqa: N818
    """The store does not know If-None-Match."""


class Changed(StoreError):  # noqa: N818
    """The object is not the one that it was."""


def explain(error: Exception, request: Request, now_s: float) -> Exception:
    """The error to raise; `now_s` is this machine's time. What is ours already is given back."""
    from botocore import exceptions as boto  # heavy, and there already where anything failed

    if isinstance(error, NsqToolsError):
        return error
    if isinstance(error, boto.ClientError):
        return _of_answer(error.response, request, now_s)
    if isinstance(
        error,
        boto.NoCredentialsError
        | boto.PartialCredentialsError
        | boto.CredentialRetrievalError
        | boto.TokenRetrievalError
        | boto.SSOError,
    ):
        return _worn_out(request, _said(error), "")
    if "CERTIFICATE_VERIFY_FAILED" in str(error) or "certificate verify failed" in str(error):
        reason = _after(_said(error), "certificate verify failed: ")
        hint = "Name the certificates that sign the store's own with --ca-file."
        return request.failed(
            f"its certificate is not trusted: {reason}", is_passing=False, hint=hint
        )
    if isinstance(error, boto.ReadTimeoutError | boto.ConnectTimeoutError | TimeoutError):
        return request.failed("no answer in time" + _from(error), is_passing=True)
    if "WRONG_VERSION_NUMBER" in str(error):
        reason = "what answers does not speak TLS" + _from(error)
        return request.failed(reason, is_passing=True, hint="Is it http:// and not https://?")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | OSError) or _is_cut(error):
        return request.failed(_of_network(error), is_passing=True)
    return request.failed(_said(error), is_passing=False)


def is_of_identity(error: Exception) -> bool:
    """Whether other credentials, which somebody may have put where they are found, could mend it."""
    return isinstance(error, WornOut) or (isinstance(error, StoreError) and error.code in _IDENTITY)


def _is_cut(error: Exception) -> bool:
    """Answers that ended early, or are no answers, and checksums that do not fit."""
    import http.client

    import urllib3.exceptions
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    return isinstance(
        error,
        urllib3.exceptions.HTTPError
        | http.client.HTTPException
        | ResponseParserError
        | boto.IncompleteReadError
        | boto.FlexibleChecksumError
        | boto.ChecksumError,
    )


def _of_network(error: Exception) -> str:
    # Botocore tells the URL, and keeps what happened.
    text = f"{_said(error)} {clean(str(getattr(error, 'kwargs', {}).get('error', '')))}".strip()
    for words, told in (
        ("Connection refused", "connection refused"),
        ("reset by peer", "connection reset"),
        ("Connection was closed", "connection lost"),
        ("Connection broken", "the answer was cut"),
        ("IncompleteRead", "the answer was cut"),
        ("Name or service not known", "no such host"),
        ("Temporary failure in name resolution", "its name cannot be resolved"),
    ):
        if words in text:
            return told + _from(error)
    return text


def _from(error: Exception) -> str:
    """` (http://host:9000)`: who was asked, where botocore knows; without the path."""
    asked = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))
    return f" ({asked.scheme}://{clean(asked.netloc)})" if asked.netloc else ""


def _of_answer(response: Any, request: Request, now_s: float) -> Exception:
    told = response.get("Error", {})
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    code = clean(str(told.get("Code", "")))
    if code in _WORN_OUT:
        return _worn_out(request, _reason(status, code, told), code)
    if request.is_conditional and (
        status == 412 or code in ("PreconditionFailed", "EntityAlreadyExists")
    ):
        return FileExistsError(errno.EEXIST, "another object has the key", request.place)
    if status == 412:
        return Changed(
            request.operation,
            request.place,
            "the object was changed while it was read",
            is_passing=True,
            code=code,
        )
    if code in _MISSING and request.method in ("head_object", "get_object"):
        return FileNotFoundError(errno.ENOENT, "no such object", request.place)
    if request.is_conditional and _knows_no_condition(status, code, told):
        reason = "the store does not know If-None-Match"
        return NoCondition(request.operation, request.place, reason, is_passing=True, code=code)
    if skew := _skew(code, status, told, headers, now_s):
        hint = "Set the clock of this machine, by NTP for instance."
        return request.failed(skew, is_passing=False, code=code, hint=hint)
    if region := _right_region(status, code, told, headers):
        return request.failed(
            f"the bucket is in region {region}",
            is_passing=False,
            code=code,
            hint=f"Use --region {region}.",
        )
    is_passing = status >= 500 or status == 429 or code in _PASSING
    # An upload that is gone was completed or aborted: the next try begins another.
    is_passing |= code == "NoSuchUpload" and request.method != "list_multipart_uploads"
    is_passing = is_passing and status not in (501, 507)
    hint = "" if is_passing else _hint(status, code, request)
    return request.failed(_reason(status, code, told), is_passing=is_passing, code=code, hint=hint)


def _worn_out(request: Request, reason: str, code: str) -> WornOut:
    verb = "Renew" if code else "Put"  # without a code none were found, or not all of them
    hint = f"{verb} the credentials where boto3 finds them: environment, profile or role."
    return WornOut(request.operation, request.place, reason, is_passing=True, code=code, hint=hint)


def _reason(status: int, code: str, told: Mapping[str, Any]) -> str:
    """`503 SlowDown: please reduce your request rate`."""
    message = clean(str(told.get("Message") or ""))
    words = [str(status)] if status else []
    words += [code] if code and code != str(status) else []
    return " ".join(words) + (f": {message}" if message and message != code else "")


def _knows_no_condition(status: int, code: str, told: Mapping[str, Any]) -> bool:
    header = str(told.get("Header", "")) + str(told.get("Message", ""))
    if status == 501 or code == "NotImplemented":
        return True
    return status == 400 and "none-match" in header.lower()


def _hint(status: int, code: str, request: Request) -> str:
    if code == "NoSuchBucket" and request.method in _READS:
        return "Is this its name, and its store? --endpoint-url names one that is not AWS."
    if code in _HINTS:
        return _HINTS[code]
    if status == 301 or code in ("PermanentRedirect", "IllegalLocationConstraintException"):
        return "Name the bucket's region with --region, or its store with --endpoint-url."
    if (status in (404, 405) or 300 <= status < 400) and code in (str(status), ""):
        return NO_STORE  # an answer in S3's words would have a code of its own
    if status != 403:
        return ""
    hint = f"It needs {request.permissions}"
    if request.method != "list_objects_v2" and request.method in _READS:
        # Without the right to list AWS does not even tell that there is nothing.
        hint += (
            f", and s3:ListBucket on arn:aws:s3:::{request.bucket} to learn that nothing is there"
        )
    return hint + "."


def _skew(
    code: str, status: int, told: Mapping[str, Any], headers: Mapping[str, str], now_s: float
) -> str:
    """That the clocks differ, with both of them; "" where they do not."""
    server = _moment(str(told.get("ServerTime", ""))) or _moment(headers.get("date", ""))
    own = dt.datetime.fromtimestamp(now_s, dt.UTC)
    is_apart = server is not None and abs((server - own).total_seconds()) > SKEW_S
    if code not in ("RequestTimeTooSkewed", "RequestInTheFuture") and not (
        status == 403 and code in ("403", "Forbidden", "") and is_apart
    ):
        return ""
    there = server.strftime("%Y-%m-%d %H:%M:%S") if server else "another time"
    return f"the clocks differ: here it is {own:%Y-%m-%d %H:%M:%S} UTC, at the store {there}"


def _moment(text: str) -> dt.datetime | None:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _right_region(
    status: int, code: str, told: Mapping[str, Any], headers: Mapping[str, str]
) -> str:
    wrong = status in (301, 307) or code in (
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
        "IllegalLocationConstraintException",
    )
    if not wrong:
        return ""
    region = clean(str(told.get("Region") or headers.get("x-amz-bucket-region", "")))
    return region if re.fullmatch(r"[A-Za-z0-9-]{1,40}", region) else ""


def _said(error: Exception) -> str:
    return clean(str(error)) or type(error).__name__


def _after(text: str, words: str) -> str:
    """What follows the words, without OpenSSL's place in its own source."""
    return text.partition(words)[2].partition(" (_ssl")[0] or text


def clean(text: str) -> str:
    """Text from elsewhere as it may be shown: without secrets, on one line, cut."""
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    text = printable(text)
    return text if len(text) <= TEXT_LENGTH_MAX else text[:TEXT_LENGTH_MAX] + "..."
