from pathlib import Path

import pytest

from tests.process import house


def limits_of(pid: int) -> dict[str, list[str]]:
    """The soft and the hard limits of a process, by their names."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="this system tells of limits in another way")
async def test_a_process_leaves_no_core_dump_and_opens_what_it_may(tmp_path: Path) -> None:
    """The keys are in its memory; ten thousand callers need as many files."""
    async with house(tmp_path) as home:
        limits = limits_of(home.keyturn.process.pid)
    assert limits["Max core file size"] == ["0", "0"]
    soft, hard = limits["Max open files"]
    assert soft == hard or int(soft) >= 2**20
