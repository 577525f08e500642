from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.network import prediction
from nucleus_unet.network.backend import resolve
from nucleus_unet.network.prediction import prediction_key, write_maps
from nucleus_unet.recipe import load_recipe


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("inference.cutoff=0.4", False),
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


def test_a_second_start_predicts_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[str] = []

    def predict(
        threads: int,
        job: str,
        network: Path,
        recipe: Any,
        images: Sequence[Path],
        to: Any,
        **_: Any,
    ) -> None:
        for image, path in zip(images, to, strict=True):
            predicted.append(image.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"maps")

    monkeypatch.setattr(prediction, "run_in_worker", predict)
    images = {id_: tmp_path / f"{Path(id_).name}-image" for id_ in ("a", "s/b", "s/c")}
    folder = tmp_path / "maps"
    (folder / "s").mkdir(parents=True)
    (folder / "s" / "b.npy").write_bytes(b"of the first start")
    (folder / "s" / ".c.npy.0123").write_bytes(b"half")
    recipe = resolve(load_recipe("quick"))
    saved = write_maps(recipe, tmp_path / "model.keras", images, folder, lambda *_: None)
    assert predicted == ["a-image", "c-image"]
    assert saved == [folder / name for name in ("a.npy", "s/b.npy", "s/c.npy")]
    assert {path for path in folder.rglob("*") if path.is_file()} == set(saved)
    assert (folder / "s" / "b.npy").read_bytes() == b"of the first start"
