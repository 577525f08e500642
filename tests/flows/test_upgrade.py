"""A home that version 0.2.0 made, used by this version."""

import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

# Made at /tmp/nucleus-0.2.0 by commit d3e9bb6, with four synthetic images of that commit and its recipe
# quick, with data.image_size=64, network.base_filters=4, network.depth=2, training.epochs=2. Without
# pictures and logged code, and with the test image.
ARCHIVE = Path(__file__).parent / "home-0.2.0.tar.xz"
RUN = "76d95dcfe796447d8f08fc9e3e023133"


@pytest.mark.slow
@pytest.mark.fault(
    "Disks and databases",
    "a home that version 0.2.0 made, moved to another place",
    "its runs are listed; its model predicts, and its submission is reproduced",
)
def test_a_home_of_the_version_before_predicts_and_reproduces(place: Any, tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    here, images = place.elsewhere(tmp_path / "home"), tmp_path / "test"
    listed = here.nucleus("runs")
    assert re.search(rf"^{RUN} +retrain +quick +stage1_train .* finished ", listed.stdout, re.M)
    predicted = here.nucleus("predict", images, "--model", RUN, "--out", tmp_path / "masks")
    assert predicted.returncode == 0, predicted.stderr
    reproduced = here.nucleus("reproduce", RUN, "--test", images)
    assert reproduced.returncode == 0, reproduced.stderr
    assert f"Reproduction of run {RUN}: identical" in reproduced.stdout
