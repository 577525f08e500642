import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dsb2018() -> Path:
    """The folder of the real stage-1 zips; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[1] / "../shared/data"
    folder = Path(os.environ.get("NUCLEUS_DSB2018", default)).resolve()
    if not (folder / "stage1_train.zip").is_file():
        pytest.skip("real data: set NUCLEUS_DSB2018 to the folder of stage1_train.zip")
    return folder
