"""Guards of every test: no network but this machine's own, and no skip that was not agreed on."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Generator
from typing import Any

import pytest

#: Why a test may be skipped; any other skip, and any expected failure, is a failure.
ALLOWED_SKIPS = (
    r"needs a CUDA device, and this machine has none",
    r"no browser \(chromium\) is installed",
    r"no environment with speculators is named \(make speculators\)",
    r"needs to make network namespaces, which this machine does not allow",
)


def refuse_network(send: Any) -> Any:
    """``connect`` or ``sendto`` (their last argument is the address) that reaches this machine alone."""

    def guarded(self: socket.socket, *args: Any) -> Any:
        if isinstance(args[-1], tuple):  # a path is a local socket
            _refuse(args[-1][0])
        return send(self, *args)

    return guarded


def _refuse(host: Any) -> None:
    if host and not _is_loopback(host):
        raise AssertionError(f"a test reached for {host}; tests use no network but this machine's own")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_names(look_up: Any) -> Any:
    """``socket.getaddrinfo`` that knows this machine alone: asking for a name is network, too."""

    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse(host)
        return look_up(host, *args, **kwargs)

    return guarded


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse_network(getattr(socket.socket, name)))
    monkeypatch.setattr(socket, "getaddrinfo", refuse_names(socket.getaddrinfo))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip without an agreed reason into a failure."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for modules that skip themselves."""
    return _judged((yield))


def _judged(report: Any) -> Any:
    if report.outcome == "skipped":
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if hasattr(report, "wasxfail") or not any(re.search(allowed, reason) for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped for a reason that tests/watch/guards.py does not allow: {reason}"
    return report
