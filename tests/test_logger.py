import subprocess
import sys

PROGRAM = """
import sys
from keyturn.logger import structlog
assert "rich" not in sys.modules
import rich.console
assert rich.console.Console
assert structlog.get_logger
"""


def test_structlog_comes_without_rich() -> None:
    """It does not load it, and whoever needs rich afterwards gets it."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
