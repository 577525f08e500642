from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from nucleus_unet.engine.stages import Stage
from nucleus_unet.recipe import Data
from tasks.ingest import ingest_stage
from tasks.merge_masks import merge_masks
from tasks.reporting import StageResult


def stage_in(result: StageResult) -> Stage:
    """The stage that a task's function returned, in a state if it was cached."""
    stage = result if isinstance(result, Stage) else result.data
    assert isinstance(stage, Stage)
    return stage


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home, with tasks that log to nowhere, so that their functions run outside a flow."""
    from prefect.logging import disable_run_logger

    monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path / "home"))
    with disable_run_logger():
        yield tmp_path / "home"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four images of 2×3 pixels, the k-th with k nuclei of one pixel each, from none to three."""
    for index in range(4):
        folder = tmp_path / "raw" / f"id{index}"
        (folder / "masks").mkdir(parents=True)
        (folder / "images").mkdir()
        cv2.imwrite(str(folder / "images" / f"id{index}.png"), np.full((2, 3), index, np.uint8))
        for nucleus in range(index):
            mask = np.zeros((2, 3), np.uint8)
            mask[0, nucleus] = 255
            cv2.imwrite(str(folder / "masks" / f"{nucleus}.png"), mask)
    return tmp_path / "raw"


@pytest.fixture
def stages(home: Path, raw: Path) -> tuple[Stage, Stage]:
    images = ingest_stage(home, [raw], annotated=True)
    return images, stage_in(merge_masks.fn([raw], images, Data()))
