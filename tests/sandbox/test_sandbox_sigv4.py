"""The signing, against the example that AWS documents, and the verifying, against everything that can be wrong."""

import calendar
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.sandbox import sigv4
from pmwatch.sandbox.s3errors import StorageError

# "Authenticating Requests: Using Query Parameters", Amazon S3 API reference
AWS_EXAMPLE = sigv4.Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
AWS_TIME = float(calendar.timegm((2013, 5, 24, 0, 0, 0)))
AWS_SIGNATURE = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
HOST = "examplebucket.s3.amazonaws.com"


def example_url() -> str:
    return sigv4.presign(
        AWS_EXAMPLE, "GET", origin=f"https://{HOST}", path="/test.txt", expires_seconds=86400, at=AWS_TIME
    )


def received(url: str, method: str = "GET", **headers: str) -> sigv4.ReceivedRequest:
    parts = urlsplit(url)
    pairs = [("Host", parts.netloc), *((name.replace("_", "-"), value) for name, value in headers.items())]
    return sigv4.ReceivedRequest(method, parts.path, parts.query, pairs)


def refusal(request: sigv4.ReceivedRequest, credentials: sigv4.Credentials = AWS_EXAMPLE, at: float = AWS_TIME) -> str:
    with pytest.raises(StorageError) as caught:
        sigv4.verify(request, credentials, now=at)
    return caught.value.code


def test_signature_of_the_documented_example() -> None:
    assert example_url() == (
        f"https://{HOST}/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        f"&X-Amz-Signature={AWS_SIGNATURE}"
    )


def test_the_documented_example_is_verified() -> None:
    query = sigv4.verify(received(example_url()), AWS_EXAMPLE, now=AWS_TIME)
    assert query.signed_headers == ("host",)
    assert query.expires_at == AWS_TIME + 86400


def test_valid_until_the_last_second() -> None:
    request = received(example_url())
    sigv4.verify(request, AWS_EXAMPLE, now=AWS_TIME + 86400)
    assert refusal(request, at=AWS_TIME + 86401) == "AccessDenied"


def test_clocks_may_differ_by_fifteen_minutes() -> None:
    request = received(example_url())
    sigv4.verify(request, AWS_EXAMPLE, now=AWS_TIME - 900)
    assert refusal(request, at=AWS_TIME - 901) == "RequestTimeTooSkewed"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (AWS_SIGNATURE, AWS_SIGNATURE[:-1] + "5"),
        (AWS_SIGNATURE, AWS_SIGNATURE.upper()),
        (AWS_SIGNATURE, "é"),
        ("/test.txt", "/test2.txt"),
        ("/test.txt", "//test.txt"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=86401"),
        ("T000000Z", "T000001Z"),
        ("X-Amz-Expires", "versionId=1&X-Amz-Expires"),
        (f"//{HOST}", "//other.s3.amazonaws.com"),
    ],
)
def test_a_change_breaks_the_signature(old: str, new: str) -> None:
    url = example_url()
    assert old in url
    assert refusal(received(url.replace(old, new))) == "SignatureDoesNotMatch"


def test_the_method_is_signed() -> None:
    assert refusal(received(example_url(), "PUT")) == "SignatureDoesNotMatch"


def test_the_secret_is_what_signs() -> None:
    assert refusal(received(example_url()), replace(AWS_EXAMPLE, secret_key="other")) == "SignatureDoesNotMatch"


def test_encodings_that_mean_the_same_are_the_same() -> None:
    request = received(example_url().replace("/test.txt", "/%74est.txt").replace("%2F", "%2f"))
    sigv4.verify(request, AWS_EXAMPLE, now=AWS_TIME)


def test_the_order_of_the_query_does_not_matter() -> None:
    url = example_url()
    base, _, query = url.partition("?")
    reordered = "&".join(reversed(query.split("&")))
    sigv4.verify(received(f"{base}?{reordered}"), AWS_EXAMPLE, now=AWS_TIME)


@pytest.mark.parametrize("name", sigv4.REQUIRED)
def test_each_parameter_is_required(name: str) -> None:
    base, _, query = example_url().partition("?")
    rest = "&".join(part for part in query.split("&") if not part.startswith(f"{name}="))
    assert refusal(received(f"{base}?{rest}")) == "AuthorizationQueryParametersError"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=604801"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=-1"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=soon"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=86400&X-Amz-Expires=1"),
        ("20130524T000000Z", "2013-05-24"),
        ("20130524T000000Z", "20130524T006100Z"),
        ("20130524T000000Z", "20130525T000000Z"),
        ("%2Faws4_request", ""),
        ("%2Faws4_request", "%2Faws5_request"),
        ("%2Fs3%2F", "%2Fec2%2F"),
        ("us-east-1", "eu-west-1"),
    ],
)
def test_malformed_parameters(old: str, new: str) -> None:
    url = example_url()
    assert old in url
    assert refusal(received(url.replace(old, new))) == "AuthorizationQueryParametersError"


def test_unknown_access_key() -> None:
    request = received(example_url().replace("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLF"))
    assert refusal(request) == "InvalidAccessKeyId"


def test_a_request_without_any_signature_is_denied() -> None:
    assert refusal(received(f"https://{HOST}/test.txt")) == "AccessDenied"


def test_a_second_kind_of_authorization_is_refused() -> None:
    assert refusal(received(example_url(), authorization="Bearer x")) == "InvalidArgument"


def test_amz_headers_must_be_signed() -> None:
    with pytest.raises(StorageError) as caught:
        sigv4.verify(received(example_url(), x_amz_acl="private"), AWS_EXAMPLE, now=AWS_TIME)
    assert caught.value.code == "AccessDenied"
    assert caught.value.details == {"HeadersNotSigned": "x-amz-acl"}


def test_other_headers_need_no_signature() -> None:
    sigv4.verify(received(example_url(), content_type="text/csv"), AWS_EXAMPLE, now=AWS_TIME)


def test_signed_headers_must_be_sent_unchanged() -> None:
    url = sigv4.presign(
        AWS_EXAMPLE,
        "PUT",
        origin=f"https://{HOST}",
        path="/a.csv",
        expires_seconds=60,
        at=AWS_TIME,
        headers={"Content-Type": "text/csv"},
    )
    assert "X-Amz-SignedHeaders=content-type%3Bhost&" in url
    sigv4.verify(received(url, "PUT", content_type="text/csv"), AWS_EXAMPLE, now=AWS_TIME)
    sigv4.verify(received(url, "PUT", content_type="  text/csv "), AWS_EXAMPLE, now=AWS_TIME)
    assert refusal(received(url, "PUT", content_type="text/plain")) == "SignatureDoesNotMatch"
    assert refusal(received(url, "PUT")) == "SignatureDoesNotMatch"


def test_a_session_token_is_part_of_the_signature() -> None:
    credentials = replace(AWS_EXAMPLE, session_token="tok/en+=")
    url = sigv4.presign(credentials, "PUT", origin=f"https://{HOST}", path="/a", expires_seconds=60, at=AWS_TIME)
    sigv4.verify(received(url, "PUT"), credentials, now=AWS_TIME)
    assert refusal(received(url, "PUT")) == "InvalidToken"
    without = "&".join(part for part in url.split("&") if "Security-Token" not in part)
    assert refusal(received(without, "PUT"), credentials) == "InvalidToken"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_path_can_be_signed(name: str) -> None:
    url = sigv4.presign(
        AWS_EXAMPLE, "PUT", origin=f"https://{HOST}", path=f"/bucket/{name}", expires_seconds=60, at=AWS_TIME
    )
    assert url.isascii()
    sigv4.verify(received(url, "PUT"), AWS_EXAMPLE, now=AWS_TIME)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_strange_requests_get_an_answer(path: bytes, query: bytes) -> None:
    request = sigv4.ReceivedRequest("PUT", path.decode("latin-1"), query.decode("latin-1"), [("host", HOST)])
    with pytest.raises(StorageError):
        sigv4.verify(request, AWS_EXAMPLE, now=AWS_TIME)
