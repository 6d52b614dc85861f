"""What happens to a request between the waiting room and the upstream: tries, refusals, dead keys, outages."""

from keyturn.gateway.chain import Gateway
from keyturn.gateway.context import RetryPolicy

__all__ = ["Gateway", "RetryPolicy"]
