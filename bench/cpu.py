"""Read how much CPU time another process has used, without a library: /proc on Linux, `ps` elsewhere."""

import os
import subprocess
import sys
import time
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads, in seconds (resolution: 10 ms)."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        return _from_stat(stat.read_text(encoding="ascii", errors="replace"), os.sysconf("SC_CLK_TCK"))
    return _from_ps(subprocess.check_output(["ps", "-o", "time=", "-p", str(pid)], text=True))


def cpu_exactly(pid: int) -> float:
    """Like `cpu_seconds`, but exact to the microsecond on Linux, so that a single call can be measured."""
    if sys.platform != "linux":
        return cpu_seconds(pid)
    return time.clock_gettime(~pid << 3 | _CPU_OF_PROCESS)


_CPU_OF_PROCESS = 2
"""CPUCLOCK_SCHED, with which Linux makes the clock of a process of its id; see clock_getcpuclockid(3)."""


def _from_stat(text: str, ticks_per_second: int) -> float:
    """Fields 14 and 15 of proc_pid_stat(5); the command's name, field 2, may hold spaces and ends with the last `)`."""
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_second


def _from_ps(text: str) -> float:
    """`[[days-]hours:]minutes:seconds`, such as `1:02.45`."""
    days, _, clock = text.strip().rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds + 86400 * int(days or 0)
