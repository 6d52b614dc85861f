"""The ways that narrower limits leave open: on which quota a request may wait, and from when (`core.narrows`)."""

import asyncio
from dataclasses import replace

from keyturn.core.exchange import DemandClass
from keyturn.core.model import SECOND
from keyturn.gateway.desk import Desk, Means
from keyturn.gateway.passage import Passage
from keyturn.scheduler import Ticket
from keyturn.scheduler.refusals import too_late


class Ways:
    """Leads requests around what showed to be closed."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def choose(self, desk: Desk, passage: Passage) -> Ticket:
        """The ticket to wait with; holds a place of a narrower limit until `free`.

        Raises:
            TooMany: no place comes before the deadline.
        """
        ticket, narrows = passage.ticket, desk.narrows
        while narrows:
            now, insists = self._means.clock(), ticket.demand_class.pinned
            quotas = desk.scheduler.quotas if insists is None else (insists,)
            way = narrows.way(passage.route, quotas, now)
            if way.later is not None:
                if way.later >= ticket.deadline:
                    raise too_late(way.later - now)
                await asyncio.sleep((way.later - now) / SECOND)
                continue
            if way.quota is None:
                break
            if narrows.took(passage.route, way.quota):
                passage.narrow = (narrows, way.quota)
            return replace(ticket, demand_class=DemandClass(ticket.demand_class.limits, way.quota))
        return ticket

    def free(self, passage: Passage, *, counted: bool) -> None:
        """The request has been answered, or does not go out; whether the upstream may have counted it."""
        if passage.narrow is not None:
            narrows, quota = passage.narrow
            passage.narrow = None
            narrows.ended(passage.route, quota, self._means.clock(), counted=counted)
