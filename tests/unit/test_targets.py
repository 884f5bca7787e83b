"""A caller's URL is parsed unchanged, or refused with what is allowed; it is never repeated in full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.egress.addresses import AddressRules
from app.egress.targets import Target, TargetRefused, parse_target

PUBLIC = AddressRules()
INTERNAL = AddressRules(["127.0.0.0/8", "::1", "storage.internal"])


def test_path_and_query_stay_as_they_were_signed() -> None:
    url = "https://Bucket.s3.example.org/a%2Fb/c%20d.mp4?X-Amz-Signature=ab%2F+c&X-Amz-Date=1&=&x"
    target = parse_target(url, PUBLIC)
    assert target.host == "bucket.s3.example.org"
    assert target.resource == "/a%2Fb/c%20d.mp4?X-Amz-Signature=ab%2F+c&X-Amz-Date=1&=&x"
    assert target.shown == "https://bucket.s3.example.org/a%2Fb/c%20d.mp4"
    assert target.authority == "bucket.s3.example.org"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org", Target("https", "example.org", 443, "/")),
        ("https://example.org.:8443?x", Target("https", "example.org", 8443, "/?x")),
        ("HTTPS://example.org:443/a#part", Target("https", "example.org", 443, "/a")),
        ("https://xn--bcher-kva.example/", Target("https", "xn--bcher-kva.example", 443, "/")),
        ("https://8.8.8.8/", Target("https", "8.8.8.8", 443, "/")),
        ("https://[2606:4700::1111]/", Target("https", "2606:4700::1111", 443, "/")),
    ],
)
def test_public_addresses_over_https_are_accepted(url: str, expected: Target) -> None:
    assert parse_target(url, PUBLIC) == expected


def test_the_header_host_names_a_port_that_is_not_the_usual_one() -> None:
    assert parse_target("http://storage.internal:9000/b", INTERNAL).authority == "storage.internal:9000"
    assert parse_target("http://[::1]:80/b", INTERNAL).authority == "[::1]"
    assert parse_target("https://[::1]:9/b", INTERNAL).authority == "[::1]:9"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/", "is not https"),
        ("ftp://example.org/", "is not https"),
        ("file:///etc/passwd", "has no host"),
        ("//example.org/", "is not https"),
        ("example.org", "has no host"),
        ("https://", "has no host"),
        ("https:///a", "has no host"),
        ("https://user@example.org/", "user name"),
        ("https://user:secret@example.org/", "user name"),
        ("https://ok@127.0.0.1/", "user name"),
        ("https://example.org:22/", "names port 22"),
        ("https://example.org:0/", "names port 0"),
        ("https://example.org:99999/", "no valid port"),
        ("https://example.org:x/", "no valid port"),
        ("https://127.0.0.1/", "private or special"),
        ("https://169.254.169.254/latest/meta-data", "private or special"),
        ("https://[::1]/", "private or special"),
        ("https://[::ffff:127.0.0.1]/", "private or special"),
        ("https://[64:ff9b::7f00:1]/", "private or special"),
        ("https://[fd00:ec2::254]/", "private or special"),
        ("https://2130706433/", "has no host"),
        ("https://0x7f.1/", "has no host"),
        ("https://0177.0.0.1/", "has no host"),
        ("https://127.1/", "has no host"),
        ("https://0/", "has no host"),
        ("https://①②⑦.⓪.⓪.①/", "is not a URL"),
        ("https://bücher.example/", "is not a URL"),
        ("https://[fe80::1%25eth0]/", "has no host"),
        ("https://example.org\\@127.0.0.1/", "is not a URL"),
        ("https://example.org/a b", "is not a URL"),
        ("https://example.org/\r\nX: y", "is not a URL"),
        (" https://example.org/", "is not a URL"),
        ("https://[::1/", "is not a URL"),
        ("https://example.org/" + "a" * 9000, "is not a URL"),
    ],
)
def test_everything_else_is_refused(url: str, reason: str) -> None:
    with pytest.raises(TargetRefused, match=reason) as caught:
        parse_target(url, PUBLIC)
    assert "secret" not in str(caught.value)


def test_listed_hosts_may_be_private_without_tls_and_on_any_port() -> None:
    for url in (
        "http://127.0.0.1:1/a",
        "https://127.9.9.9/",
        "http://[::1]:8/",
        "http://storage.internal:9000/",
    ):
        assert parse_target(url, INTERNAL).shown.startswith(url.split("/a")[0].rstrip("/"))
    for url in ("http://example.org/", "https://10.0.0.1/", "http://other.internal/", "http://8.8.8.8/"):
        with pytest.raises(TargetRefused):
            parse_target(url, INTERNAL)


@given(st.text(max_size=60) | st.text(alphabet="htps:/@[]%.?#\\x0127ae-", max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}/a", f"https://a/{text}"):
        try:
            target = parse_target(url, PUBLIC)
        except TargetRefused:
            continue
        assert target.scheme == "https"
        assert target.port in (443, 8443)
        assert "@" not in target.authority
        assert target.resource.startswith("/")
        assert not set(target.resource + target.host) & set(" \r\n\t\\")
