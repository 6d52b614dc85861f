"""The result of a run."""

from collections import Counter
from dataclasses import dataclass, field

from keyturn.core.model import Micros


@dataclass
class Result:
    """The result of a run."""

    row: str
    seed: int
    world: str = ""
    breaches: list[str] = field(default_factory=list)
    requests: int = 0
    throttled: int = 0
    lost: int = 0
    """Callers that never heard of their request again."""
    doubled: int = 0
    """Requests that must not be repeated, and may have been processed twice."""
    wronged: int = 0
    """Requests that were refused although they could have been served."""
    returned: int = 0
    """Refused callers that came back when told."""
    kept: int = 0
    """How many of them were served then."""
    late: list[Micros] = field(default_factory=list)
    """How much later than told they were served."""
    errors: list[Micros] = field(default_factory=list)
    """How much later than estimated waiting requests were served."""
    off: list[Micros] = field(default_factory=list)
    """Errors of judged estimates, beyond what neighbours in the order of service explain."""
    waits: list[Micros] = field(default_factory=list)
    """How long those requests waited from then."""
    used: float | None = None
    idle: Micros = 0
    unfair: float = 0.0
    seconds: float = 0.0
    """Virtual."""
    cpu: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
