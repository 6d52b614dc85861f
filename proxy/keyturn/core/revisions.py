"""The configuration revisions that replicas of a pool use at this time.

Nothing is translated between them. A limit with the same id is the same limit; another one begins unknown, and opens by
its probe (law 8), whose answer says what was spent (law 9). Only keys need more: one that revisions place under
different quotas would be spent twice. So a grant on one of these quotas closes the others for as long as it may count
(`RevisionView.rivals`), which keeps law 1.
"""

from dataclasses import dataclass, field

from keyturn.core.messages import Revision, RevisionLimit
from keyturn.core.model import Micros
from keyturn.core.sortedset import SortedSet

REVISIONS = 16
"""Revisions that are remembered at the most; the one used longest ago goes first."""


@dataclass(slots=True)
class RevisionView:
    """A revision as it is looked up."""

    revision: Revision
    quotas: frozenset[str]
    owners: dict[str, str]
    """The quotas of keys that are not simply a quota of their own."""
    rivals: dict[str, tuple[tuple[str, Micros], ...]] = field(default_factory=dict)
    """For each quota, those of other revisions that share a key with it, and how long each rests after a grant."""

    @property
    def name(self) -> str:
        """The revision's name."""
        return self.revision.name

    @property
    def limits(self) -> tuple[RevisionLimit, ...]:
        """The revision's limits."""
        return self.revision.limits

    @property
    def longest(self) -> Micros:
        """For how long after a grant its request may count: from use to settlement, and the longest window."""
        return self.revision.bound + max([limit.window for limit in self.limits], default=0)

    def owner(self, key: str) -> str | None:
        """The quota of a key; `None` when it is not in the revision."""
        quota = self.owners.get(key, key)
        return quota if quota in self.quotas else None


class Revisions:
    """Those that were used of late."""

    def __init__(self) -> None:
        self.views: dict[str, RevisionView] = {}
        self.bound: Micros = 0
        """How long after it was last seen the requests of a silent replica may still be counted, by any of them."""
        self._used: SortedSet[str, Micros] = SortedSet()

    def learn(self, revision: Revision) -> RevisionView:
        """Add a revision."""
        owners = {key: quota for quota, keys in revision.keys for key in keys}
        view = self.views[revision.name] = RevisionView(revision, frozenset(revision.quotas), owners)
        self.bound = max(self.bound, revision.bound)
        self._find_rivals()
        return view

    def use(self, name: str, now: Micros) -> list[str]:
        """A replica uses a revision; returns those that are forgotten now.

        One is kept for as long as anything that was granted under it may count, so that its keys' moves are seen.
        """
        self._used.put(name, now)
        gone = []
        while (first := self._used.first()) and (
            first[0] + self.views[first[1]].longest < now or len(self.views) > REVISIONS
        ):
            gone.append(self._used.pop_first()[1])
            del self.views[gone[-1]]
        if gone:
            self._find_rivals()
        return gone

    def _find_rivals(self) -> None:
        views = list(self.views.values())
        keys = sorted({key for view in views for key in view.owners})
        for view in views:
            found: dict[str, dict[str, Micros]] = {}
            for key in keys:
                quota = view.owner(key)
                for other in views:
                    rival = other.owner(key)
                    if quota is not None and rival is not None and rival != quota:
                        rests = found.setdefault(quota, {})
                        rests[rival] = max(view.longest, rests.get(rival, 0))
            view.rivals = {quota: tuple(sorted(rests.items())) for quota, rests in found.items()}
