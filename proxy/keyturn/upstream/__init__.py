"""The connections to the upstream. aiohttp's errors become ours in this package and nowhere else.

aiohttp's connector is used without its `ClientSession`, which costs more than twice as much CPU per request, re-encodes
URLs, and by itself sends a request a second time when a kept-alive connection turns out dead: one lease, two arrivals
(law 10).
"""

from keyturn.upstream.connector import Upstream, UpstreamOptions, trust_of
from keyturn.upstream.transmission import Transmission

__all__ = ["Transmission", "Upstream", "UpstreamOptions", "trust_of"]
