import os
from pathlib import Path

from hypothesis import settings

from tests.depth import DEEP

settings.register_profile("keyturn", deadline=None, max_examples=25)
settings.register_profile("deep", deadline=None, max_examples=60)
settings.load_profile("deep" if DEEP else "keyturn")

WORKERS_PER_CORE = 2
"""Tests through real processes spend as much time waiting, for starts and for limits, as they compute."""

# Processes that tests start share their bytecode, also on a machine where Python is told to write none: else each of
# them compiles the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parent.parent / "build" / "pycache")


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `-n auto`."""
    return WORKERS_PER_CORE * (os.cpu_count() or 1)
