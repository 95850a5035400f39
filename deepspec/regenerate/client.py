"""Asks an HTTP server that may fail: what passes is tried again, what does not is one clear line.

Tried again, after a pause that doubles each time and varies by chance, is whatever may be otherwise the next
time: no connection, no answer in time, a connection that breaks, 408, 409, 425, 429 and 5xx, and an answer
that is not what was asked for. A server's own ``Retry-After`` is honoured.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import logging
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TypeVar

import httpx2

from deepspec.errors import ConfigError, DeepSpecError

logger = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
_PASSING = frozenset({408, 409, 425, 429})
_LONGEST_WAIT_S = 600.0
_CONNECT_S = 20.0
_REASON_CHARACTERS = 200

ParsedT = TypeVar("ParsedT")


class UnansweredError(DeepSpecError):
    """A request that was refused, or not answered by the last try; others may fare better."""


class MalformedError(Exception):
    """An answer that is not what was asked for."""


class _PassingError(Exception):
    """What may be otherwise the next time."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Patience:
    """How often and how soon a request is tried again.

    Attributes:
        retries: tries after the first. timeout_s: for a whole answer.
        first_s: the pause before the first retry; each further one is twice as long, up to ``longest_s``.
        sleep: what pauses.
    """

    retries: int = 6
    timeout_s: float = 600.0
    first_s: float = 1.0
    longest_s: float = 60.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def pause(self, num_failed: int, retry_after_s: float, chance: float) -> float:
        """Seconds before the next try; ``chance`` in [0, 1) spreads those of many requests."""
        longest = min(self.longest_s, self.first_s * 2.0 ** min(num_failed - 1, 30))
        return max(longest * (1 + chance) / 2, min(retry_after_s, _LONGEST_WAIT_S))


class Client:
    """One server's connections, for one event loop.

    Args:
        url: everything before ``/models``. connections: at once, at most.
    """

    def __init__(self, url: str, patience: Patience, *, connections: int = 1) -> None:
        key = os.environ.get(KEY_VARIABLE)
        self.url, self._patience = url, patience
        self._chance = random.Random()
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(patience.timeout_s, connect=min(_CONNECT_S, patience.timeout_s)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=not _is_here(httpx2.URL(url).host),  # a proxy leads away from this machine
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def ask(self, path: str, body: dict[str, Any] | None, parse: Callable[[Any], ParsedT]) -> ParsedT:
        """What ``parse`` makes of the JSON that ``path`` answers to ``body``, or to GET without one.

        Raises:
            ConfigError: the server refuses the key, or does not know the path or model.
            UnansweredError: it refuses this request, or the last try failed.
        """
        tries = 1 + self._patience.retries
        for num_failed in range(1, tries + 1):
            try:
                return parse(await self._try(path, body))
            except (_PassingError, MalformedError) as error:
                if num_failed == tries:
                    times = f", {tries} times tried" if tries > 1 else ""
                    raise UnansweredError(f"{self.url}{path}: {error}{times}") from error
                after = error.retry_after_s if isinstance(error, _PassingError) else 0.0
                pause_s = self._patience.pause(num_failed, after, self._chance.random())
                logger.debug("%s%s: %s; tried again in %.1f s", self.url, path, error, pause_s)
                await self._patience.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    async def _try(self, path: str, body: dict[str, Any] | None) -> Any:
        method = "GET" if body is None else "POST"
        try:
            async with asyncio.timeout(self._patience.timeout_s):
                response = await self._http.request(method, self.url + path, json=body)
        except (TimeoutError, httpx2.TimeoutException):
            raise _PassingError(f"no answer within {self._patience.timeout_s:g} s (--timeout)") from None
        except httpx2.RequestError as error:
            raise _PassingError(f"{_words(str(error)) or type(error).__name__}") from error
        if not response.is_success:
            self._refuse(path, response)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise MalformedError(f"the answer is no JSON: {_words(response.text)!r}") from error

    def _refuse(self, path: str, response: httpx2.Response) -> None:
        """Raise what a status means."""
        status = response.status_code
        said = f"{self.url}{path} answers {status}: {_reason(response)}"
        if status in _PASSING or status >= 500:
            raise _PassingError(f"{status}: {_reason(response)}", _retry_after(response))
        if status in (401, 403):
            is_set = "is set, to a key it refuses" if os.environ.get(KEY_VARIABLE) else "is not set"
            raise ConfigError(f"{said}; the API key is read from {KEY_VARIABLE}, which {is_set}")
        if status == 404:
            raise ConfigError(
                f"{said}; --server is the base address of an OpenAI-compatible server, as in http://localhost:8000/v1"
            )
        if response.is_redirect:
            raise ConfigError(
                f"{said}; it leads to {response.headers.get('Location')!r}, give that to --server"
            )
        raise UnansweredError(said)


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reason(response: httpx2.Response) -> str:
    """What the server says is wrong, in its own words."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        found = response.text
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return (
        _words(found if isinstance(found, str) else str(found)) or response.reason_phrase or "no reason given"
    )


def _words(text: str) -> str:
    return " ".join(text.split())[:_REASON_CHARACTERS]


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server wants to be left alone for; 0 where it does not say."""
    given = response.headers.get("Retry-After", "").strip()
    if given.isdecimal():
        return float(given)
    try:
        until = email.utils.parsedate_to_datetime(given)
    except ValueError:
        return 0.0
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
