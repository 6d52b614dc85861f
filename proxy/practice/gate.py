"""Where a request is authenticated, counted and logged, all in one moment."""

import time
from dataclasses import dataclass

from aiohttp import web

from proxy.practice.accounts import Account, Accounts
from proxy.practice.answers import ApiError, rate_headers, refusal_of, unauthenticated
from proxy.practice.arrivals import ArrivalLog, Record
from proxy.practice.settings import PracticeSettings
from proxy.practice.target import Endpoint, Target, parse_target
from proxy.practice.visit import Visit
from proxy.practice.windows import Verdict

_NANOSECONDS = 1e9


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
        verdict = self._verdict(account, request.method, target, now)
        refusal, headers = self._judge(account, verdict, now, missing=not key)
        name = self._accounts.name_of(key) if key else ""
        user = account.user if account else ""
        counted = account is not None and verdict.allowed
        record = Record(now, name, user, request.method, target.shown, counted, refusal.status if refusal else 0)
        self._log.add(record)
        return Case(record, headers, refusal, Visit(request, target, user, key, name))

    def _verdict(self, account: Account | None, method: str, target: Target, now: float) -> Verdict:
        if account is None:
            return self._accounts.strangers.admit(now)
        endpoint: Endpoint = ("GET" if method == "HEAD" else method, target.segments[0], len(target.segments))
        return account.bucket.admit(endpoint, now)

    def _judge(
        self, account: Account | None, verdict: Verdict, now: float, *, missing: bool
    ) -> tuple[ApiError | None, dict[str, str]]:
        epoch = time.time_ns() / _NANOSECONDS  # wall time, since the headers speak of it
        headers = {"Server": "nginx", **rate_headers(self._settings.style, verdict, now, epoch)}
        if account is None:
            return unauthenticated(missing=missing), headers
        if verdict.allowed:
            return None, headers
        error, wait = refusal_of(verdict, now, epoch)
        if self._settings.retry_after:
            headers["Retry-After"] = str(wait)
        return error, headers
