"""Run the table of scenarios on every core and print the results: `make simulate SEEDS=1000`.

`kept` is how many of those that came back when told were served then, and how `late`. `errors` is how far estimates of
waiting requests were off; `off`, for those that are checked, by how much beyond what neighbours explain. Both are the
mean and the 95th percentile.

A run is named by its row and its seed, `rolling-jittered/17`, and is the same whenever and wherever it is repeated.
"""

import argparse
import gc
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from keyturn.core.model import MILLISECOND, SECOND, Micros

from tests.simulation.judges import mean_and_most
from tests.simulation.results import Result
from tests.simulation.run import LEAST_USED, USUAL, Run
from tests.simulation.scenarios import BY_NAME, ROWS

ENOUGH = 3
"""Runs whose mean says how much is used: the clocks of one alone may take or give half of a thousandth."""

SHOWN = 8
"""Failures that are printed in full."""

HEADINGS = (
    *("scenario", "runs", "virtual h", "requests", "429s", "429s/h", "used", "idle ms", "unfair", "served"),
    *("lost", "twice", "wronged", "returned", "kept", "late ms", "errors s", "off s", "breaches"),
)
FORMAT = (
    "{:<18} {:>5} {:>9} {:>8} {:>6} {:>6} {:>7} {:>8} {:>6} {:>7} {:>5} {:>5} {:>7} {:>8} {:>7} {:>9} {:>11} {:>11}"
    " {:>8}"
)


@dataclass
class Line:
    """The runs of one row."""

    name: str
    results: list[Result] = field(default_factory=list)

    @property
    def used(self) -> float | None:
        """Return the mean share of permitted requests that was used."""
        shares = [result.used for result in self.results if result.used is not None]
        return sum(shares) / len(shares) if shares else None

    @property
    def wasteful(self) -> bool:
        """Return whether tokens were left while requests waited, although answers were quick."""
        known = self.used is not None and BY_NAME[self.name].trip in USUAL and len(self.results) >= ENOUGH
        return known and (self.used or 0) < LEAST_USED

    def __str__(self) -> str:
        results, used = self.results, self.used
        hours = sum(result.seconds for result in results) / 3600
        throttled = sum(result.throttled for result in results)
        ended = sum(result.outcomes.total() for result in results)
        served = sum(result.outcomes["200"] for result in results)
        return FORMAT.format(
            self.name,
            len(results),
            f"{hours:.1f}",
            sum(result.requests for result in results),
            throttled,
            f"{throttled / hours:.1f}",
            f"{100 * used:.2f}%" if used is not None else "",
            f"{max(result.idle for result in results) / 1000:.0f}",
            f"{max(result.unfair for result in results):.2f}",
            f"{100 * served / ended:.1f}%" if ended else "",
            sum(result.lost for result in results),
            sum(result.doubled for result in results),
            sum(result.wronged for result in results),
            returned := sum(result.returned for result in results),
            f"{100 * sum(result.kept for result in results) / returned:.1f}%" if returned else "",
            _both([late for result in results for late in result.late], MILLISECOND),
            _both([error for result in results for error in result.errors], SECOND),
            _both([off for result in results for off in result.off], SECOND),
            sum(1 for result in results if result.breaches),
        )


def _both(errors: list[Micros], unit: Micros) -> str:
    """Return the mean and the 95th percentile."""
    both = mean_and_most(errors)
    return "/".join([f"{error / unit:.{0 if unit < SECOND else 2}f}" for error in both]) if both else ""


def runs(seeds: int, only: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Return so many runs, spread over the rows in turn; at least one of each."""
    names = [row.name for row in ROWS if row.name in only]
    every = ((name, seed) for seed in range(seeds) for name in names)
    return islice(every, max(seeds, len(names)))


def play(run: tuple[str, int]) -> Result:
    """Play one run."""
    name, seed = run
    gc.set_threshold(100_000, 20, 20)  # runs make few cycles and many objects
    return Run(BY_NAME[name], seed).play()


def show(lines: Iterable[Line], failed: list[Result]) -> None:
    """Print the table, and the failures."""
    print(FORMAT.format(*HEADINGS))
    for line in lines:
        if line.results:
            print(line)
    for result in failed[:SHOWN]:
        print(f"\n{result.row}/{result.seed}: {result.world}")
        for breach in result.breaches[:SHOWN]:
            print(f"    {breach}")
        print(f"    again: make simulate RUN={result.row}/{result.seed}")


def main() -> int:
    """Play all runs; return 1 when a law was broken."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="runs in all")
    parser.add_argument("--only", default="", help="rows, separated by commas")
    parser.add_argument("--run", default="", help="one run, such as rolling-jittered/17")
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else list(BY_NAME)
    chosen = list(runs(arguments.seeds, only))
    if arguments.run:
        name, _, seed = arguments.run.partition("/")
        chosen = [(name, int(seed))]
    lines = {row.name: Line(row.name) for row in ROWS}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done, result in enumerate(pool.map(play, chosen), start=1):
            lines[result.row].results.append(result)
            if sys.stderr.isatty():
                print(f"\r{done}/{len(chosen)}", end="", file=sys.stderr)
            for breach in result.breaches:
                print(f"\r{done}/{len(chosen)} {result.row}/{result.seed}: {breach}", file=sys.stderr)
    failed = [result for line in lines.values() for result in line.results if result.breaches]
    show(lines.values(), failed)
    wasteful = [line.name for line in lines.values() if line.wasteful]
    if wasteful:
        print(f"\nlaw 3: less than {100 * LEAST_USED} % of what is permitted was used: {', '.join(wasteful)}")
    return 1 if failed or wasteful else 0


if __name__ == "__main__":
    sys.exit(main())
