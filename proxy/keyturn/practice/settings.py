"""Settings of the practice API, and checks of their values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from keyturn.core.errors import ConfigError, Problem

WindowKind = Literal["fixed", "first", "rolling"]
HeaderStyle = Literal["x-ratelimit", "ratelimit", "draft7", "draft8", "none"]
FaultKind = Literal["reset", "503", "504"]


@dataclass(frozen=True)
class PracticeSettings:
    """How a practice API listens, counts and answers.

    Attributes:
        host: The address to listen on.
        port: The port; 0 takes a free one.
        limit: Requests that one key (or one user) has in each window.
        window: The window's length in seconds.
        kind: Where a window starts: `fixed` at multiples of its length, `first` at the first request,
            `rolling` everywhere.
        tls: Whether it speaks HTTPS, with a certificate of its own making.
        keys: The accepted keys; `None` accepts any that is not empty.
        users: Key to user; the keys of one user share one bucket.
        narrow: Whether the endpoints that the real API limits more tightly are limited here too, each by itself.
        style: Which headers tell of the limit. `x-ratelimit`: X-RateLimit-*, Reset in epoch seconds; `ratelimit`: the
            same without `X-`, Reset in seconds from now (draft 6); `draft7`, `draft8`: the fields of those drafts.
        retry_after: Whether a 429 has a Retry-After.
        seed: What the data and the pseudo-random bytes are made from.
        monitor_delay: How long a monitor runs, in seconds.
        narrow_limit: Requests in each window of a narrow limit.
        narrow_window: The length of that window in seconds.
        plan: Requests that a user has in a month, however long that lasts; `None` without a plan.
        keep_alive: Seconds after which an idle connection is closed.
        base_url: The value of `baseUrl` in the environments; empty for the API's own address.
        echo_secrets: Whether `/echo` shows the key as it came, or its name in its place.

    Raises:
        ConfigError: A value makes no sense.
    """

    host: str = "127.0.0.1"
    port: int = 0
    limit: int = 60
    window: float = 60.0
    kind: WindowKind = "first"
    tls: bool = False
    keys: tuple[str, ...] | None = field(default=None, repr=False)
    users: Mapping[str, str] | None = field(default=None, repr=False)
    narrow: bool = False
    style: HeaderStyle = "x-ratelimit"
    retry_after: bool = True
    seed: int = 1
    monitor_delay: float = 1.0
    narrow_limit: int = 10
    narrow_window: float = 10.0
    plan: int | None = None
    keep_alive: float = 75.0
    base_url: str = ""
    echo_secrets: bool = True

    def __post_init__(self) -> None:
        problems = (*self._bad_numbers(), *self._bad_words())
        if problems:
            raise ConfigError(problems)

    def _bad_numbers(self) -> tuple[Problem, ...]:
        whole = {"limit": self.limit, "narrow_limit": self.narrow_limit, "plan": self.plan or 1}
        seconds = {"window": self.window, "narrow_window": self.narrow_window, "keep_alive": self.keep_alive}
        problems = [Problem(name, "must be 1 or more") for name, value in whole.items() if value < 1]
        problems += [
            Problem(name, "must be a number of seconds above 0")
            for name, value in seconds.items()
            if not (math.isfinite(value) and value > 0)
        ]
        if not (math.isfinite(self.monitor_delay) and self.monitor_delay >= 0):
            problems.append(Problem("monitor_delay", "must be a number of seconds, 0 or more"))
        return tuple(problems)

    def _bad_words(self) -> tuple[Problem, ...]:
        choices = {"kind": (self.kind, get_args(WindowKind)), "style": (self.style, get_args(HeaderStyle))}
        problems = [
            Problem(name, f"must be one of {', '.join(allowed)}")
            for name, (value, allowed) in choices.items()
            if value not in allowed
        ]
        if self.keys is not None and not all(self.keys):
            problems.append(Problem("keys", "must not hold an empty key"))
        return tuple(problems)
