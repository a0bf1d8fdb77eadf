"""How a client is told where to go and what to bring: addresses, headers, settings."""

from __future__ import annotations

import pytest

from vitrail.client import Client
from vitrail.client.connection import parse_url
from vitrail.client.fake import FakeServer
from vitrail.errors import OptionError


def test_headers_travel_and_are_not_shown(kind):
    with FakeServer() as server, kind(server.url, headers={"X-Key": "secret"}) as client:
        client.info()
    assert server.headers["x-key"] == "secret"
    assert "secret" not in repr(Client("localhost", headers={"X-Key": "secret"}))


def test_a_header_of_ours_ends_those_of_the_caller(kind):
    """Triton reads the last one past its end."""
    with FakeServer() as server, kind(server.url, headers={"traceparent": "00-1-2-01"}) as client:
        client.info()
    sent = [name for name in server.headers if name in {"traceparent", "x-client"}]
    assert sent == ["traceparent", "x-client"]


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"grpc-timeout": "1"}, {"x": "new\nline"}])
def test_a_header_that_http2_cannot_carry_is_refused(kind, headers):
    with pytest.raises(OptionError, match="header"):
        kind("localhost", headers=headers)


@pytest.mark.parametrize(
    ("url", "target", "tls"),
    [
        ("localhost", "localhost:8001", False),
        ("127.0.0.1:1234", "127.0.0.1:1234", False),
        ("grpc://[::1]:5", "[::1]:5", False),
        ("unix:/run/vitrail.sock", "unix:/run/vitrail.sock", False),
        ("grpcs://far.example:443", "far.example:443", True),
    ],
)
def test_addresses_are_understood(url, target, tls):
    assert parse_url(url) == (target, tls)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost:8000", r"HTTP address; .* usually localhost:8001"),
        ("https://far.example", "HTTP address"),
        ("", "no server address"),
        ("localhost:port", "no server address"),
        ("localhost:99999", "no server address"),
        ("localhost:0", "no server address"),
        ("grpc://host/path", "no server address"),
        ("ftp://host", "no server address"),
        ("two words", "no server address"),
        ("[::1", "no server address"),
    ],
)
def test_a_wrong_address_is_refused_with_a_cure(url, words):
    with pytest.raises(OptionError, match=words):
        Client(url)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"route": "scenic"}, "route is 'scenic'"),
        ({"route": ["direct"]}, r"route is \['direct'\]"),
        ({"retries": True}, "retries is True; give an integer"),
        ({"headers": [("a", "b")]}, "headers are of type list; give a mapping"),
        ({"headers": None}, "headers are of type NoneType; give a mapping"),
        ({"shared_memory": "yes"}, "shared_memory is 'yes'; give True or False"),
        ({"retries": -1}, "retries is -1"),
        ({"retries": "2"}, "retries is '2'; give an integer"),
        ({"tls": "no"}, "tls is 'no'; give True, False or a TLS"),
        ({"headers": {"x": 5}}, "header 'x' has the value 5; give strings"),
        ({"idle_timeout_s": 0}, "idle_timeout_s is 0"),
        ({"deadline_s": 1e16}, r"deadline_s is 1e\+16; .* at most 604800"),
        ({"connect_timeout_s": 604_801}, "connect_timeout_s is 604801"),
        ({"idle_timeout_s": "soon"}, "idle_timeout_s is 'soon'"),
        ({"idle_timeout_s": True}, "idle_timeout_s is True"),
        ({"deadline_s": float("nan")}, "deadline_s is nan"),
    ],
)
def test_a_wrong_setting_is_refused(kind, settings, words):
    with pytest.raises(OptionError, match=words):
        kind("localhost", **settings)


def test_an_address_that_is_no_text_is_refused(kind):
    with pytest.raises(OptionError, match="address is of type int; give HOST:PORT"):
        kind(8001)


def test_shared_memory_is_refused_for_a_server_elsewhere():
    with pytest.raises(OptionError, match="on this machine"):
        Client("far.example:8001", shared_memory=True)
