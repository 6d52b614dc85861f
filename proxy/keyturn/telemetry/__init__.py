"""Metrics, logs and traces of the process, from the events that other packages emit.

Labels are bounded: names come from the configuration, methods and codes are folded to known ones. Nothing here sees a
secret, a query or a header; whatever looks like a credential is masked in the log lines of libraries (law 11).
"""

from keyturn.telemetry.access_log import AccessLog
from keyturn.telemetry.log_writer import LogWriter
from keyturn.telemetry.logs import LogLevel, logging_stray_output, set_up_logs
from keyturn.telemetry.metrics import Metrics
from keyturn.telemetry.observer import Telemetry

__all__ = ["AccessLog", "LogLevel", "LogWriter", "Metrics", "Telemetry", "logging_stray_output", "set_up_logs"]
