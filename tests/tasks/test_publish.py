import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from nucleus_unet.data import TrainingImages, read_images
from nucleus_unet.engine.stages import Stage
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei import Outlines, submission
from nucleus_unet.recipe import Inference, Recipe, load_recipe
from nucleus_unet.reports.overlays import UNSURE
from nucleus_unet.runs import tracking
from tasks.encode import ROWS, UNCERTAINTY, encode
from tasks.ingest import ingest_stage
from tasks.predict import FoundNuclei, Shard, damage
from tasks.publish_nuclei import Output, publish_nuclei
from tasks.publish_submission import publish_submission
from tasks.upsample import upsample

QUICK = load_recipe("quick")
RUN = tracking.Run("0" * 32, "http://127.0.0.1:5000")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two images, a of 4×6 and b of 2×2 pixels, black but for one pixel of a."""
    folder = tmp_path / "raw"
    folder.mkdir()
    a = np.zeros((4, 6), np.uint16)
    a[0, 0] = 60_000
    cv2.imwrite(str(folder / "a.png"), a)
    cv2.imwrite(str(folder / "b.png"), np.zeros((2, 2), np.uint8))
    return folder


@pytest.fixture
def images(home: Path, raw: Path) -> Stage:
    """The same, prepared."""
    return ingest_stage(home, [raw], annotated=False)


@pytest.fixture
def maps(images: Stage, tmp_path: Path) -> Stage:
    """Of a network of 2×2 pixels: a nucleus at the left of a, exactly the cutoff on all of b."""
    folder = tmp_path / "maps"
    folder.mkdir()
    np.save(folder / "a.npy", np.array([[1, 0], [1, 0]], np.float32)[..., None])
    np.save(folder / "b.npy", np.full((2, 2, 1), 0.5, np.float32))
    return Stage(folder, "digest of the maps", False, 1.0)


def upsampled(images: Stage, maps: Stage, count: int = 2) -> Stage:
    made = upsample.fn(images, Shard(tuple(range(count))), maps)
    assert isinstance(made, Stage)
    return made


def encoded_at(images: Stage, maps: Stage, cutoff: float, count: int = 2) -> Stage:
    made = encode.fn(images, Shard(tuple(range(count))), maps, Inference(cutoff=cutoff))
    assert isinstance(made, Stage)
    return made


def found_in(images: Stage, encoded: Stage) -> FoundNuclei:
    """All images as one shard, whose maps are of no importance."""
    positions = tuple(range(len(read_images(images.folder).entries)))
    return FoundNuclei(Shard(positions), maps=images, larger=images, encoded=encoded)


def publish(
    raws: list[Path],
    images: Stage,
    encoded: Stage,
    output: Output,
    recipe: Recipe = QUICK,
    trained_on: TrainingImages | None = None,
) -> None:
    found = found_in(images, encoded)
    publish_nuclei.fn(raws, images, [found], recipe, trained_on, output)


@pytest.fixture
def encoded(images: Stage, maps: Stage) -> Stage:
    """The rows of both images."""
    return encoded_at(images, upsampled(images, maps), 0.5)


def test_maps_are_upsampled_to_each_size(images: Stage, maps: Stage) -> None:
    larger = upsampled(images, maps)
    assert np.load(larger.folder / "a.npy").shape == (4, 6, 1)
    np.testing.assert_array_equal(np.load(larger.folder / "b.npy"), np.full((2, 2, 1), 0.5))
    assert (larger.folder / "b.npy").samefile(maps.folder / "b.npy")


def test_a_pixel_at_the_cutoff_is_background_and_its_image_has_a_row(encoded: Stage) -> None:
    assert (encoded.folder / ROWS).read_text() == "ImageId,EncodedPixels\na,1 12\nb,\n"


def test_another_cutoff_is_another_stage(images: Stage, maps: Stage) -> None:
    larger = upsampled(images, maps)
    low, high = (encoded_at(images, larger, cutoff) for cutoff in (0.4, 0.6))
    assert low.digest != high.digest
    assert submission.read_submission(low.folder / ROWS)["b"] == ["1 4"]


def test_nuclei_are_written_as_labels_overlays_outlines_and_a_table(
    raw: Path, images: Stage, encoded: Stage, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    formats: tuple[Outlines, ...] = ("geojson", "imagej", "coco")
    publish([raw], images, encoded, Output(out, formats, pixel_size_um=0.5))
    labels = cv2.imread(str(out / "labels" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, [[1, 1, 1, 0, 0, 0]] * 4)
    assert {path.name for path in (out / "overlays").iterdir()} == {"a.png", "b.png"}
    [row] = csv.DictReader((out / "nuclei.csv").open())
    assert (row["image"], row["nucleus"], row["x_px"], row["area_px"]) == ("a", "1", "1.0", "12.0")
    assert (row["confidence"], row["area_um2"]) == ("0.8888889", "3.0")
    assert row["mean_intensity"] == "5000.0"  # of 12 pixels one of 60,000
    table = pd.read_parquet(out / "nuclei.parquet")
    assert table["area_px"].tolist() == [12]
    a, b = csv.DictReader((out / "images.csv").open())
    assert (a["image"], a["file"], a["state"]) == ("a", str(raw / "a.png"), "done")
    assert (a["width_px"], a["height_px"], a["nuclei"]) == ("6", "4", "1")
    assert (a["median_diameter_px"], a["note"]) == ("3.90882", "")
    assert (b["image"], b["nuclei"], b["median_diameter_px"]) == ("b", "0", "")
    names = {path.name for path in (out / "outlines").iterdir()}
    assert names == {"a.geojson", "a.zip", "b.geojson", "b.zip"}
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.png"]
    assert len(coco["annotations"]) == 1
    [result] = json.loads((out / "coco_results.json").read_text())
    assert result["score"] == 0.8889
    [feature] = json.loads((out / "outlines" / "a.geojson").read_text())["features"]
    assert feature["properties"]["measurements"]["area_um2"] == 3


def test_nuclei_on_which_networks_disagree_are_marked(
    raw: Path, images: Stage, encoded: Stage, tmp_path: Path
) -> None:
    (encoded.folder / f"a{UNCERTAINTY}").write_text("[0.1, 0.3]")
    (encoded.folder / f"b{UNCERTAINTY}").write_text("[0.0]")
    publish([raw], images, encoded, Output(tmp_path))
    [row] = csv.DictReader((tmp_path / "nuclei.csv").open())
    assert row["uncertainty"] == "0.3"
    for name in ("overlays/a.png", "overview.png"):
        drawn = cv2.imread(str(tmp_path / name))
        assert drawn is not None
        assert (drawn[..., ::-1] == UNSURE).all(axis=-1).any(), name


def test_labels_are_ome_tiffs_by_choice(
    raw: Path, images: Stage, encoded: Stage, tmp_path: Path
) -> None:
    publish([raw], images, encoded, Output(tmp_path / "out", label_format="ome-tiff"))
    found = tifffile.imread(tmp_path / "out" / "labels" / "a.ome.tif")
    np.testing.assert_array_equal(found, [[1, 1, 1, 0, 0, 0]] * 4)


def test_images_and_labels_are_ome_zarrs_by_choice(
    raw: Path, images: Stage, encoded: Stage, tmp_path: Path
) -> None:
    zarr = pytest.importorskip("zarr")
    publish([raw], images, encoded, Output(tmp_path / "out", label_format="ome-zarr"))
    found = zarr.open_group(tmp_path / "out" / "labels" / "a.zarr", mode="r")
    np.testing.assert_array_equal(found["labels/nuclei/0"], [[1, 1, 1, 0, 0, 0]] * 4)
    assert found["0"][...].max() == 60_000


def test_images_that_were_skipped_or_differ_are_in_the_table(
    home: Path, raw: Path, encoded: Stage, tmp_path: Path
) -> None:
    (raw / "c.png").write_bytes(b"")
    images = ingest_stage(home, [raw], annotated=False, on_bad="skip")
    wide = load_recipe("quick", ["data.image_size=16"])
    trained_on = TrainingImages(kinds={"bright-field": 1}, diameters_px=(8, 20, 48))
    publish([raw], images, encoded, Output(tmp_path / "out"), wide, trained_on)
    a, _, c = csv.DictReader((tmp_path / "out" / "images.csv").open())
    assert a["note"].startswith("looks fluorescence; the model was trained on bright-field")
    assert a["note"].endswith(
        "; nuclei are 4 px wide, and the model was trained on 8 to 48 px: try --diameter 4"
    )
    assert (c["image"], c["state"], c["nuclei"]) == ("c", "skipped", "")
    assert c["note"] == "the file is empty. Download or save it again."


def test_a_recipe_that_shrinks_an_image_is_noted(home: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    cv2.imwrite(str(tmp_path / "raw" / "a.png"), np.zeros((10, 1300), np.uint8))
    images = ingest_stage(home, [tmp_path / "raw"], annotated=False)
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "a.npy", np.zeros((2, 2, 1), np.float32))
    maps = Stage(tmp_path / "maps", "digest of the maps", False, 1.0)
    encoded = encoded_at(images, upsampled(images, maps, 1), 0.5, 1)
    publish([tmp_path / "raw"], images, encoded, Output(tmp_path / "out"))
    [row] = csv.DictReader((tmp_path / "out" / "images.csv").open())
    assert row["note"] == "was reduced 10.2 times, because the recipe resizes images"


def test_without_a_record_no_map_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.npy").touch()
    record = tmp_path / "stage.json"
    record.write_text(json.dumps({"files": {"s/a.npy": "0", "b.npy": "0"}}))
    assert damage(tmp_path) == ["s/a.npy", "b.npy"]
    record.unlink()
    assert damage(tmp_path) == ["s/a.npy"]


def test_outlines_are_written_by_choice(
    raw: Path, images: Stage, encoded: Stage, tmp_path: Path
) -> None:
    publish([raw], images, encoded, Output(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"labels", "overlays", "nuclei.csv"}
    assert not names & {"outlines", "coco.json"}


def test_an_image_that_changed_meanwhile_is_not_measured(
    raw: Path, images: Stage, encoded: Stage, tmp_path: Path
) -> None:
    cv2.imwrite(str(raw / "b.png"), np.ones((2, 2), np.uint8))
    with pytest.raises(NucleusError, match=r"b\.png: the file has changed since it was read"):
        publish([raw], images, encoded, Output(tmp_path / "out"))


def test_rows_that_share_a_pixel_are_never_logged(
    images: Stage, encoded: Stage, tmp_path: Path
) -> None:
    submission.write_submission(encoded.folder / ROWS, [("a", "1 2"), ("a", "2 2"), ("b", "")])
    with pytest.raises(NucleusError, match=r"row 3, image a .*pixel 2.*\. Please report this"):
        publish_submission.fn(images, [found_in(images, encoded)], RUN, tmp_path / "out")


def test_what_the_disk_refuses_is_one_line(
    raw: Path, images: Stage, encoded: Stage, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").touch()
    message = (
        r"out/labels/a\.png cannot be written \(File exists\)\. Free some disk space, or choose"
    )
    with pytest.raises(NucleusError, match=message):
        publish([raw], images, encoded, Output(tmp_path / "out"))
    (tmp_path / "out" / "submission.csv").mkdir()
    with pytest.raises(
        NucleusError, match=r"submission\.csv cannot be written \(Is a directory\)\. Free"
    ):
        publish_submission.fn(images, [found_in(images, encoded)], RUN, tmp_path / "out")


def test_coco_names_the_files_that_were_read(
    home: Path, raw: Path, encoded: Stage, tmp_path: Path
) -> None:
    for folder, name in (("a", "field.png"), ("b", "other.png")):
        (tmp_path / "set" / folder / "images").mkdir(parents=True)
        (raw / f"{folder}.png").rename(tmp_path / "set" / folder / "images" / name)
    images = ingest_stage(home, [tmp_path / "set"], annotated=False)
    publish([tmp_path / "set"], images, encoded, Output(tmp_path / "out", ("coco",)))
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["field.png", "other.png"]


def test_results_keep_the_folders_of_their_images(home: Path, tmp_path: Path) -> None:
    for name in ("s/a.b", "t/a"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True)
        cv2.imwrite(f"{tmp_path}/raw/{name}.png", np.zeros((2, 2), np.uint8))
        (tmp_path / "maps" / name).parent.mkdir(parents=True)
        np.save(tmp_path / "maps" / f"{name}.npy", np.ones((1, 1, 1), np.float32))
    images = ingest_stage(home, [tmp_path / "raw"], annotated=False)
    maps = Stage(tmp_path / "maps", "digest of the maps", False, 1.0)
    encoded = encoded_at(images, upsampled(images, maps), 0.5)
    assert (encoded.folder / ROWS).read_text().splitlines()[1:] == ["s/a.b,1 4", "t/a,1 4"]
    out = tmp_path / "out"
    publish([tmp_path / "raw"], images, encoded, Output(out, ("geojson", "coco")))
    files = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert files == {
        *(f"labels/{name}.png" for name in ("s/a.b", "t/a")),
        *(f"overlays/{name}.png" for name in ("s/a.b", "t/a")),
        *(f"outlines/{name}.geojson" for name in ("s/a.b", "t/a")),
        *("nuclei.csv", "nuclei.parquet", "images.csv", "overview.png"),
        *("coco.json", "coco_results.json"),
    }
