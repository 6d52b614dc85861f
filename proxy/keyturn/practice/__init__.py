"""A practice Postman API: a real server with the real API's limits, bodies and faults, for demos and anybody's tests.

It shares no limiter code with the proxy, so that the one can be judged by the other.
"""

from keyturn.practice.arrivals import Arrival
from keyturn.practice.server import PracticeApi
from keyturn.practice.settings import FaultKind, HeaderStyle, PracticeSettings, WindowKind

__all__ = ["Arrival", "FaultKind", "HeaderStyle", "PracticeApi", "PracticeSettings", "WindowKind"]
