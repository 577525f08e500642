from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home, and tasks that log to nowhere, so that their functions run outside a flow."""
    from prefect.logging import disable_run_logger

    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path / "home"))
    with disable_run_logger():
        yield tmp_path / "home"
