import os
from collections.abc import Callable
from pathlib import Path

import pytest
from samna_sdk import Samna

from snncc import sdk


@pytest.fixture(scope="session")
def sdk_python() -> Callable[[str], Path]:
    """The interpreter of a vendor environment by its name; without one the test skips, or fails if CI requires it."""

    def python(name: str) -> Path:
        found = sdk.find(name)
        if found is None:
            reason = f"the {name} environment is not built: python -m snncc.sdk build {name}"
            if os.environ.get("SNNCC_REQUIRE_SDK") == "1":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        return found

    return python


@pytest.fixture
def samna(sdk_python: Callable[[str], Path], tmp_path: Path) -> Samna:
    return Samna(sdk_python("samna"), tmp_path)
