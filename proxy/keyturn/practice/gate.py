"""Where a request is authenticated, counted and logged, all in one moment."""

import time
from dataclasses import dataclass

from aiohttp import web

from keyturn.practice.accounts import Account, Accounts, Bucket
from keyturn.practice.answers import (
    ApiError,
    failure,
    key_disabled,
    month_headers,
    rate_headers,
    refusal_of,
    unauthenticated,
)
from keyturn.practice.arrivals import ArrivalLog, Record
from keyturn.practice.generate import RUN_PATH
from keyturn.practice.settings import PracticeSettings
from keyturn.practice.target import Endpoint, Target, parse_target
from keyturn.practice.visit import Visit
from keyturn.practice.windows import Verdict

_NANOSECONDS = 1e9
_THROTTLED = 429
_SERVER = {"Server": "nginx"}


@dataclass(slots=True)
class Case:
    """What became of a request: its line in the log, the headers of its answer, and why it is refused, if it is."""

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
            return failure(_THROTTLED), {**self._headers(bucket.look(now), now), **self._month(bucket)}
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
