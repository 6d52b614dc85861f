import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.telemetry.stderr import Stderr


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    """Everything that is logged; afterwards logging is as it was."""
    root = logging.getLogger()
    others = [logging.getLogger(name) for name in ("asyncio", "aiohttp.access")]
    before = [(logger, logger.level) for logger in (root, *others)]
    handlers = root.handlers[:]
    yield Stderr(capsys)
    root.handlers[:] = handlers
    for logger, level in before:
        logger.setLevel(level)
    structlog.reset_defaults()
