"""`python -m fuzz --seconds 60 [target …]`: the targets in turns until the time is over; exit 1 with what broke one."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from time import monotonic

from fuzz.running import Target
from fuzz.targets import TARGETS

_ROUND = 200
"""Examples of a target before the next target runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets; return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long in all")
    parser.add_argument("target", nargs="*", choices=[[], *TARGETS], help=f"of {', '.join(TARGETS)}; all by default")
    chosen = parser.parse_args(arguments)
    targets = [Target(name, TARGETS[name]) for name in chosen.target or TARGETS]
    end = monotonic() + chosen.seconds
    failed = False
    while monotonic() < end and not failed:
        for target in targets:
            failed = failed or not _round(target)
    for target in targets:
        print(f"{target.name:14} {target.examples:8} examples  {target.examples / max(target.seconds, 1e-9):8.0f}/s")
    return int(failed)


def _round(target: Target) -> bool:
    try:
        target.run(_ROUND)
    except Exception:  # noqa: BLE001  # whatever it is, it is what was looked for
        print(f"{target.name} has broken its promise:\n", file=sys.stderr)
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
