"""A request between the scheduler and the upstream: tries, refusals, health checks of keys, outages."""

from keyturn.gateway.chain import Gateway
from keyturn.gateway.context import RetryPolicy

__all__ = ["Gateway", "RetryPolicy"]
