"""Which addresses may be called."""

from __future__ import annotations

import pytest

from schemas.errors import ConfigurationError
from transforms.call.address import Address, AllowList, parse_base_url


@pytest.mark.parametrize(
    ("url", "clean", "address"),
    [
        ("https://api.example/v1/", "https://api.example/v1", Address("https", "api.example", 443)),
        ("https://API.Example:8443", "https://API.Example:8443", Address("https", "api.example", 8443)),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1", Address("http", "127.0.0.1", 8000)),
        ("http://localhost/v1", "http://localhost/v1", Address("http", "localhost", 80)),
        ("http://[::1]:9/v1", "http://[::1]:9/v1", Address("http", "::1", 9)),
    ],
)
def test_a_base_url_is_an_address_and_a_path(url: str, clean: str, address: Address) -> None:
    assert parse_base_url("b", url) == (clean, address)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example/v1",
        "http://10.0.0.7:8000/v1",
        "http://127.0.0.1.evil.example/v1",
        "http://localhost.evil.example/",
        "https://user:secret@api.example/v1",
        "https://api.example/v1?key=secret",
        "https://api.example/v1#top",
        "ftp://api.example",
        "api.example/v1",
        "https://",
        "https://api.example:port",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_could_give_a_key_away_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"backends\.b\.base_url") as caught:
        parse_base_url("b", url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.example/v1/messages", True),
        ("https://API.EXAMPLE:443/x", True),
        ("https://api.example./x", True),
        ("http://api.example/v1", False),
        ("https://api.example:444/v1", False),
        ("https://api.example.evil/v1", False),
        ("https://evil@api.example/", True),
        ("https://api.example@evil.example/", False),
    ],
)
def test_only_the_exact_scheme_host_and_port_are_allowed(url: str, allowed: bool) -> None:
    assert AllowList(frozenset({Address("https", "api.example", 443)})).allows_url(url) is allowed


@pytest.mark.parametrize(
    ("host", "ip", "admitted"),
    [
        ("api.example", "93.184.216.34", True),
        ("api.example", "10.1.2.3", True),  # a server of one's own, named in the workload
        ("api.example", "127.0.0.1", False),
        ("api.example", "::1", False),
        ("api.example", "169.254.169.254", False),
        ("api.example", "fe80::1%eth0", False),
        ("api.example", "0.0.0.0", False),
        ("api.example", "224.0.0.1", False),
        ("api.example", "::ffff:127.0.0.1", False),
        ("api.example", "::ffff:169.254.169.254", False),
        ("api.example", "::ffff:93.184.216.34", True),
        ("api.example", "64:ff9b::a9fe:a9fe", False),
        ("api.example", "2002:7f00:1::", False),
        ("localhost", "127.0.0.1", True),
        ("localhost", "::ffff:127.0.0.1", True),
        ("localhost", "169.254.169.254", False),
    ],
)
def test_a_name_never_leads_to_link_local_and_only_localhost_to_this_machine(
    host: str, ip: str, admitted: bool
) -> None:
    allowed = AllowList(frozenset({Address("https", host, 443)}))
    assert allowed.admit(host, ip, 443) is admitted
    assert allowed.allows_socket(ip, 443) is admitted
    assert not allowed.allows_socket(ip, 80)


@pytest.mark.parametrize(
    "ip", ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00:ec2::254", "::ffff:10.1.2.3"]
)
def test_a_providers_own_name_never_leads_to_a_private_network(ip: str) -> None:
    theirs, ours = Address("https", "api.example", 443), Address("https", "models.internal", 443)
    allowed = AllowList(frozenset({theirs, ours}), own=frozenset({ours}))
    assert not allowed.admit(theirs.host, ip, 443)
    assert not allowed.allows_socket(ip, 443)
    assert allowed.admit(theirs.host, "93.184.216.34", 443)
    assert allowed.admit(ours.host, ip, 443)
