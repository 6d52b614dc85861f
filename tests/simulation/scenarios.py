"""The table of scenarios: a row for each kind of window and shape of service times, and one for each fault."""

from dataclasses import dataclass, field
from typing import Literal

from keyturn.core.exchange import HEARTBEAT
from keyturn.core.model import MILLISECOND, Micros
from keyturn.core.state import COLLECT, RECOVERY_GRACE
from keyturn.practice.settings import WindowKind
from keyturn.stores.shared import OnLoss

Incident = Literal[
    "kill",
    "freeze",
    "lose",
    "fail_over",
    "flush",
    "restart",
    "restart_empty",
    "step_clock",
    "slew_clock",
    "join",
    "leave",
    "reload",
    "move",
    "key_dies",
    "busy",
    "busy_told",
    "out_of_reach",
    "stand_still",
]

QUICK: Micros = 50 * MILLISECOND
"""Law 3: an available token is granted within this time."""

GONE: Micros = HEARTBEAT + COLLECT + HEARTBEAT + 100 * MILLISECOND
"""A token that falls to a replica which does not come for it idles until another calls, which it does with its
heartbeat at the latest; then it is reserved, and another heartbeat later it is reserved no longer."""

AGAIN: Micros = RECOVERY_GRACE + GONE
"""A new epoch waits for the reports of all, then a replica may be missing."""

ODD = 15_000
"""Microseconds that an odd clock loses in a second."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: WindowKind | None = None
    """Kind of the upstream's windows; `None`: drawn by the seed, like all other unset fields."""
    trip: str | None = None
    saturated: bool = False
    """Every client always has requests waiting; else they come in bursts, with deadlines, and hang up."""
    incidents: tuple[Incident, ...] = ()
    every: tuple[float, float] = (5.0, 30.0)
    """Seconds between two incidents."""
    loss: float = 0.0
    """The share of messages that are lost, either way."""
    slow: Micros = 0
    """The longest that a message takes, when it is not a few milliseconds."""
    slew: int = 0
    """Microseconds that the store's clock gains in a second, while it is slewed."""
    odd_clock: bool = False
    """Whether the clock of one of several replicas loses `ODD`."""
    pins: bool = False
    """One client always has two requests waiting for each of many keys, by name."""
    fails: float = 0.0
    """The share of connections to the upstream that fail, and of those that break."""
    foreign: float = 0.0
    """Requests a minute that somebody else sends with each quota's keys."""
    on_loss: OnLoss = "wait"
    memory: bool = False
    """One replica with a store of its own."""
    size: int | None = None
    """Requests of the widest limit."""
    idle: Micros = QUICK
    """Longest time that a token may idle while a request waits."""
    fair: bool = True
    """Whether replicas stay whole, are heard, and go by the same keys and limits: so what is said of clients and of
    those who are refused holds to the token."""
    quiet: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "quiet", not (self.incidents or self.loss or self.fails or self.foreign))


KINDS: tuple[WindowKind, ...] = ("fixed", "first", "rolling")
SHAPES = ("constant", "jittered", "heavy")
FOREIGN = (5, 20, 60)

ROWS: tuple[Row, ...] = (
    *(Row(f"{kind}-{trip}", kind, trip, saturated=True) for kind in KINDS for trip in SHAPES),
    Row("memory", memory=True),
    Row("plenty", memory=True, size=300),
    Row("mixed"),
    Row("slow-messages", slow=10 * MILLISECOND),
    Row("lost-messages", loss=0.02, slow=40 * MILLISECOND, idle=GONE, fair=False),
    Row("crashes", incidents=("kill",), idle=GONE, fair=False),
    Row("pauses", incidents=("freeze",), idle=GONE, fair=False),
    Row("trouble-upstream", fails=0.05),
    Row("store-lost-wait", incidents=("lose",), idle=AGAIN, fair=False),
    Row("store-lost-share", incidents=("lose",), on_loss="share", idle=AGAIN, fair=False),
    Row("failover", incidents=("fail_over",), idle=AGAIN, fair=False),
    Row("flush", incidents=("flush",), idle=AGAIN, fair=False),
    Row("restart", incidents=("restart", "restart_empty"), idle=AGAIN, fair=False),
    Row("scaling", incidents=("join", "leave"), idle=GONE, fair=False),
    Row("flush-joining", incidents=("flush", "restart_empty", "join"), every=(1.0, 12.0), idle=AGAIN, fair=False),
    Row("reloads", incidents=("reload",), idle=GONE, fair=False),
    Row("keys-moved", incidents=("move",), idle=GONE, fair=False),
    *(Row(f"foreign-{rate}-{kind}", kind, foreign=rate) for rate in FOREIGN for kind in KINDS),
    Row("keys-dying", incidents=("key_dies",), fair=False),
    Row("busy", incidents=("busy",), every=(10, 120)),
    Row("busy-told", incidents=("busy_told",), every=(10, 120)),
    Row("out-of-reach", incidents=("out_of_reach",), every=(10, 120)),
    Row("clock-fast-09", incidents=("slew_clock",), every=(20, 60), slew=9_000),
    # The store's time may run faster than a replica waits by, which then calls up to a twelfth of `DRIFT_PULSE` late.
    Row("clock-fast-83", incidents=("slew_clock",), every=(20, 60), slew=83_000, idle=2 * QUICK),
    Row("replica-slow-clock", odd_clock=True),
    Row("pinned", pins=True, size=5),
    Row("standstill", incidents=("stand_still",), every=(20, 60)),
    Row("clock-steps", incidents=("step_clock",), idle=AGAIN, fair=False),
)

BY_NAME = {row.name: row for row in ROWS}
