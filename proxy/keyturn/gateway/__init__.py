"""What happens to a request between the waiting room and the upstream: tries, refusals, dead keys, outages."""

from keyturn.gateway.chain import Gateway
from keyturn.gateway.desk import Retries

__all__ = ["Gateway", "Retries"]
