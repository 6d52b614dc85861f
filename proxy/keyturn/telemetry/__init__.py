"""What the process tells about itself: metrics and logs, from the value objects that lower floors emit.

Labels are bounded: names come from the configuration, methods and codes are folded to known ones. Nothing here sees a
secret, a query or a header; what libraries log is freed of what looks like a credential (law 11).
"""

from keyturn.telemetry.logs import LogLevel, set_up_logs
from keyturn.telemetry.metrics import Metrics
from keyturn.telemetry.observer import Telemetry
from keyturn.telemetry.requests import AccessLog
from keyturn.telemetry.strays import strays_logged
from keyturn.telemetry.writer import LogWriter

__all__ = ["AccessLog", "LogLevel", "LogWriter", "Metrics", "Telemetry", "set_up_logs", "strays_logged"]
