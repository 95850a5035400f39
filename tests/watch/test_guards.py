"""The guards bite: the network is refused, and so is a skip that nobody agreed on."""

from __future__ import annotations

import socket

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0), ("example.org", 443)])
@pytest.mark.parametrize("connect", ["connect", "connect_ex"])
def test_the_network_is_refused(address: tuple[object, ...], connect: str) -> None:
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with socket.socket(family) as made, pytest.raises(AssertionError, match="tests use no network"):
        getattr(made, connect)(address)


def test_a_datagram_and_the_look_up_of_a_name_are_refused() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as made,
        pytest.raises(AssertionError, match="tests use no network"),
    ):
        made.sendto(b"", ("192.0.2.1", 80))
    with pytest.raises(AssertionError, match=r"reached for example\.org"):
        socket.getaddrinfo("example.org", 443)


def test_this_machine_can_be_reached() -> None:
    assert socket.getaddrinfo("localhost", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("def test_a(): pytest.skip('no time')", {"failed": 1}),
        ("@pytest.mark.skip(reason='no time')\ndef test_a(): pass", {"errors": 1}),
        ("@pytest.mark.xfail(strict=True)\ndef test_a(): assert False", {"failed": 1}),
        ("pytest.importorskip('absent_module')\ndef test_a(): pass", {"errors": 1}),
        ("def test_a(): pytest.skip('needs a CUDA device, and this machine has none')", {"skipped": 1}),
    ],
)
def test_a_skip_needs_an_agreed_reason(body: str, outcome: dict[str, int], pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.watch.guards import *")
    pytester.makepyfile("import pytest\n" + body)
    pytester.runpytest_inprocess("-p", "no:randomly", "--strict-markers").assert_outcomes(**outcome)
