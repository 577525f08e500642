from pathlib import Path

import pytest

from nucleus_unet.network.backend import resolve
from nucleus_unet.network.prediction import prediction_key
from nucleus_unet.recipe import load_recipe


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("inference.cutoff=0.4", False),
        ("inference.large_cutoff=none", False),
        ("inference.seed_cutoff=0.4", False),
        ("inference.min_area_px=3", False),
        ("inference.min_confidence=0.5", False),
        ("inference.tune=false", False),
        ("inference.flips=false", True),
        ("inference.scales=[1]", True),
        ("inference.tile_px=640", True),
        ("inference.batch_size=3", True),
        ("data.normalize=false", True),
        ("training.threads=7", True),
    ],
)
def test_maps_are_predicted_again_if_they_would_change(
    override: str, again: bool, tmp_path: Path
) -> None:
    network = tmp_path / "model.keras"
    network.write_bytes(b"weights")
    first, other = (
        prediction_key(resolve(load_recipe("best", overrides)), network)
        for overrides in ([], [override])
    )
    assert (first != other) == again
