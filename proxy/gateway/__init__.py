"""What happens to a request between the waiting room and the upstream: tries, refusals, dead keys, outages."""

from proxy.gateway.chain import Gateway
from proxy.gateway.desk import Retries

__all__ = ["Gateway", "Retries"]
