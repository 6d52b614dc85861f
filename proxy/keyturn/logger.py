"""structlog, imported without rich.

structlog imports rich wherever it is installed, for a kind of traceback that shows local variables and is never used
here (law 11). That would cost each process 3 MB and a twentieth of its start. Import structlog from here only.
"""

import sys

_UNLOADED = "rich" not in sys.modules
if _UNLOADED:
    sys.modules["rich"] = None  # type: ignore[assignment]  # this makes `import rich` an ImportError, as structlog expects
try:
    import structlog
finally:
    if _UNLOADED:
        del sys.modules["rich"]

__all__ = ["structlog"]
