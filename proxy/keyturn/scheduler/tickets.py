"""What a request waits with, and what becomes of it when the configuration changes meanwhile."""

from collections.abc import Mapping
from dataclasses import replace

from keyturn.core.errors import BadRequest, Unauthenticated
from keyturn.core.exchange import DemandClass
from keyturn.core.model import Client, Micros, Pool
from keyturn.core.values import value_object


class Moved(Exception):
    """A request waits in the wrong room: its client uses another pool now."""

    def __init__(self, client: Client) -> None:
        super().__init__(client.name)
        self.client = client


class Displaced(Exception):
    """A flow's quota is not used any more; its requests may wait in another flow."""


@value_object
class Ticket:
    """What a request waits with."""

    client: Client
    demand_class: DemandClass
    deadline: Micros
    """The instant beyond which it does not wait."""
    urgency: int = 3
    pinned: str | None = None
    """The key that it insists on."""
    own: bool = False
    """Whether the proxy itself asks after that key, in whatever state it is."""
    method: str = ""
    path: str | None = None
    """In its normal form: what its limits follow from, should they change."""

    def renewed(self, pool: Pool, clients: Mapping[str, Client]) -> "Ticket":
        """The same by another configuration: who its client is now, and which limits it falls under.

        Raises:
            Unauthenticated: nobody of its client's name is known any more.
            Moved: its client uses another pool now.
            BadRequest: the key that it insists on is gone.
            Displaced: the quota that its flow insists on is gone.
        """
        client = self.client if self.own else clients.get(self.client.name)
        if client is None:
            raise Unauthenticated(f"The client {self.client.name} is not known to this proxy any more.")
        if not self.own and client.pool != pool.name:
            raise Moved(client)
        return replace(
            self, client=client, demand_class=DemandClass(pool.limits_on(self.method, self.path), self._quota(pool))
        )

    def _quota(self, pool: Pool) -> str | None:
        if self.pinned is None:
            if self.demand_class.pinned is not None and self.demand_class.pinned not in pool.keys_of:
                raise Displaced
            return self.demand_class.pinned
        return quota_of(self.pinned, pool)


def quota_of(pinned: str, pool: Pool) -> str:
    """The quota of a key that is asked for by its name.

    Raises:
        BadRequest: there is none of that name.
    """
    key = pool.key(pinned)
    if key is None:
        raise BadRequest(f"No key of the pool {pool.name} has the name that `Keyturn-Key` asks for.")
    return key.quota
