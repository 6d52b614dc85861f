"""The log of what arrived: the evidence by which tests judge whoever called."""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
