"""A practice Postman API: a real server with the real API's limits, bodies and faults, for demos and tests.

It shares no limiter code with the proxy, so that it can check the proxy independently.
"""

from keyturn.practice.gate import Arrival
from keyturn.practice.server import PracticeApi
from keyturn.practice.settings import FaultKind, HeaderStyle, PracticeSettings, WindowKind

__all__ = ["Arrival", "FaultKind", "HeaderStyle", "PracticeApi", "PracticeSettings", "WindowKind"]
