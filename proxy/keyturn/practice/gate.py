"""Admission: a request is authenticated, counted and logged in one step, and its body is read."""

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from aiohttp import HttpVersion10, web

from keyturn.practice.accounts import Account, Accounts, Bucket, Endpoint, Target, Verdict, parse_target
from keyturn.practice.answers import (
    ApiError,
    failure,
    key_disabled,
    month_headers,
    rate_headers,
    refusal_of,
    unauthenticated,
)
from keyturn.practice.catalogue import Kind
from keyturn.practice.contents import RUN_PATH
from keyturn.practice.settings import PracticeSettings

_CAPACITY = 200_000
_THROTTLED = 429


class Arrival(NamedTuple):
    """One request that arrived.

    Attributes:
        at: When it was counted, in seconds of the API's clock.
        key: The name of its key, never the secret; empty if it had none.
        user: The name of the bucket that it counts against; empty if its key was not accepted.
        method: Its method.
        target: Its target as received, without the value of `apikey`.
        counted: Whether it took a place of the limit.
        status: What it was answered; 0 while it was not, and for good if its connection was cut.
    """

    at: float
    key: str
    user: str
    method: str
    target: str
    counted: bool
    status: int

    @property
    def throttled(self) -> bool:
        """Whether the limit refused it."""
        return self.status == _THROTTLED and not self.counted


@dataclass(slots=True, eq=False)
class Record:
    """An arrival in the making: its status comes later than it does."""

    at: float
    key: str
    user: str
    method: str
    target: str
    counted: bool
    status: int = 0

    def arrival(self) -> Arrival:
        """It as it stands now."""
        return Arrival(self.at, self.key, self.user, self.method, self.target, self.counted, self.status)


class ArrivalLog:
    """The last 200,000 arrivals, in the order in which they were counted."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._records: deque[Record] = deque(maxlen=capacity)
        self.throttled = 0

    def add(self, record: Record) -> None:
        """Take in a new arrival; whoever answers it sets its status."""
        self._records.append(record)
        if record.status == _THROTTLED:
            self.throttled += 1

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """All of them, oldest first."""
        return tuple(record.arrival() for record in self._records)

    def worst(self, window: float, per: Literal["key", "user"] = "key") -> dict[str, int]:
        """For each key (or user) the most requests in any half-open interval of `window` seconds.

        Refused ones are among them: whoever caused them sent too many. Those whose key was not accepted are not.
        """
        instants: defaultdict[str, list[float]] = defaultdict(list)
        for record in self._records:
            if record.user:
                instants[record.key if per == "key" else record.user].append(record.at)
        return {name: most_within(sorted(series), window) for name, series in instants.items()}


def most_within(instants: Iterable[float], window: float) -> int:
    """The most of these ascending instants in any half-open interval of `window` seconds."""
    most = 0
    inside: deque[float] = deque()
    for instant in instants:
        inside.append(instant)
        while inside[0] + window <= instant:
            inside.popleft()
        most = max(most, len(inside))
    return most


_KINDS: dict[str, Kind] = {"collections": "collection", "environments": "environment"}
_MAX_BODY: dict[Kind, int] = {"collection": 100 * 2**20, "environment": 30 * 2**20}
_LARGE_BODY = 2**18  # bytes of JSON that are better read beside the event loop


@dataclass(slots=True)
class Visit:
    """One request that was let in: what it asks for, who asks, and by which key's secret and name."""

    request: web.BaseRequest
    target: Target
    user: str
    key: str
    key_name: str

    @property
    def method(self) -> str:
        """Its method; HEAD asks for what GET does (RFC 9110, section 9.3.2)."""
        return "GET" if self.request.method == "HEAD" else self.request.method

    @property
    def segments(self) -> tuple[str, ...]:
        """The decoded segments of its path."""
        return self.target.segments

    @property
    def kind(self) -> Kind:
        """Whether it is about collections or environments."""
        return _KINDS[self.segments[0]]


Handler = Callable[[Visit], Awaitable[web.StreamResponse]]


async def body_of(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """The body piece by piece, asked for if the caller waits to be asked (RFC 9110, section 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version > HttpVersion10:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    async for piece in request.content.iter_any():
        yield piece


async def read_content(visit: Visit) -> dict[str, Any]:
    """Read the body's content under the name of its kind, regardless of the content type.

    Raises:
        ApiError: It is too long, or it is no such JSON.
    """
    most = _MAX_BODY[visit.kind]
    too_large = ApiError(413, "requestEntityTooLarge", f"The body is larger than {most} bytes.")
    if (visit.request.content_length or 0) > most:
        raise too_large
    body = bytearray()
    async for piece in body_of(visit.request):
        body += piece
        if len(body) > most:
            raise too_large
    try:
        data = await asyncio.to_thread(json.loads, body) if len(body) > _LARGE_BODY else json.loads(body)
    except (ValueError, RecursionError):
        raise malformed(visit.kind) from None
    content = data.get(visit.kind) if isinstance(data, dict) else None
    if not isinstance(content, dict):
        raise malformed(visit.kind)
    return content


def malformed(kind: Kind) -> ApiError:
    """The refusal of a body that cannot be used."""
    return ApiError(400, "malformedRequestError", f"The body must be a JSON object with a valid {kind}.")


_NANOSECONDS = 1e9
_STATUS_429 = 429
_SERVER = {"Server": "nginx"}


@dataclass(slots=True)
class Case:
    """The result of a request: its log line, its response headers, and the reason if it is refused."""

    record: Record
    headers: dict[str, str]
    refusal: ApiError | None
    visit: Visit


class Gate:
    """The limits as a request meets them."""

    def __init__(self, settings: PracticeSettings, accounts: Accounts, log: ArrivalLog) -> None:
        self._settings = settings
        self._accounts = accounts
        self._log = log

    def arrive(self, request: web.BaseRequest, now: float) -> Case:
        """Decide on a request that arrives now, in seconds of the clock; the header's key wins over the query's."""
        target = parse_target(request.raw_path)
        key = request.headers.get("X-Api-Key") or target.key
        account = self._accounts.find(key)
        if not key and target.segments[: len(RUN_PATH)] == RUN_PATH:
            refusal, headers = None, dict(_SERVER)
        else:
            refusal, headers = self._judge(account, key, _endpoint(request.method, target), now)
        name = self._accounts.name_of(key) if key else ""
        user = account.user if account else ""
        counted = account is not None and refusal is None
        record = Record(now, name, user, request.method, target.shown, counted, refusal.status if refusal else 0)
        self._log.add(record)
        return Case(record, headers, refusal, Visit(request, target, user, key, name))

    def _judge(
        self, account: Account | None, key: str, endpoint: Endpoint, now: float
    ) -> tuple[ApiError | None, dict[str, str]]:
        """Why a request is refused, if it is, and the headers of its answer."""
        if account is None:
            return unauthenticated(missing=not key), self._headers(self._accounts.strangers.admit(now), now)
        if self._accounts.disabled(key):
            return key_disabled(), self._headers(self._accounts.strangers.admit(now), now)
        bucket = account.bucket
        if bucket.plan == 0:
            return failure(_STATUS_429), {**self._headers(bucket.look(now), now), **self._month(bucket)}
        verdict = bucket.admit(endpoint, now)
        headers = {**self._headers(verdict, now), **self._month(bucket)}
        if verdict.allowed:
            return None, headers
        error, wait = refusal_of(verdict, now, _epoch())
        if self._settings.retry_after:
            headers["Retry-After"] = str(wait)
        return error, headers

    def _headers(self, verdict: Verdict, now: float) -> dict[str, str]:
        return {**_SERVER, **rate_headers(self._settings.style, verdict, now, _epoch())}

    def _month(self, bucket: Bucket) -> dict[str, str]:
        plan, left = self._settings.plan, bucket.plan
        return {} if plan is None or left is None else month_headers(plan, left)


def _endpoint(method: str, target: Target) -> Endpoint:
    return ("GET" if method == "HEAD" else method, target.segments[0], len(target.segments))


def _epoch() -> float:
    """Wall time, since the headers speak of it."""
    return time.time_ns() / _NANOSECONDS
