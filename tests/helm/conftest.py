from pathlib import Path

import pytest

from tests.helm.charts import copy_with_dependencies


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example chart with its dependency."""
    return copy_with_dependencies(tmp_path_factory.mktemp("example"))
