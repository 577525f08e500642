import json
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nucleus_unet.data import Channels, check_dataset, open_raw
from nucleus_unet.data.images import decode_labels
from nucleus_unet.data.ome_zarr import pack_zarr
from nucleus_unet.errors import NucleusError
from nucleus_unet.nuclei import exports
from nucleus_unet.nuclei.imports import Imported, import_annotations

LABELS = np.array([[0, 1, 1, 0, 2], [0, 1, 1, 0, 2], [3, 0, 0, 0, 0]], np.int32)


def image(path: Path, value: int = 9, shape: tuple[int, int] = LABELS.shape) -> bytes:
    """Write an image; its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*shape, 3), value, np.uint8))
    return path.read_bytes()


def annotation(path: Path, labels: Any = LABELS) -> Path:
    """Write an annotation file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".npy"):
        np.save(path, np.array({"masks": labels}, object))
    else:
        traced = exports.outlines(labels)
        rows: list[exports.Row] = [{} for _ in traced]
        text = exports.geojson(traced, rows).encode()
        path.write_bytes(exports.imagej(traced) if path.suffix == ".zip" else text)
    return path


def labels_of(folder: Path) -> dict[str, list[list[int]]]:
    """The label images of a data set by their names."""
    return {
        path.name: decode_labels(path.read_bytes(), path.name).tolist()
        for path in sorted((folder / "labels").iterdir())
    }


def refused(annotations: Path, images: Path, folder: Path) -> str:
    """The error of an import that leaves nothing behind."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(NucleusError) as caught:
        import_annotations(annotations, images, folder)
    assert sorted(folder.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("a.geojson", "a.json", "A/a.geojson", "a.tif.geojson"),
        *("a.zip", "a_RoiSet.zip", "a_seg.npy", "a.GEOJSON"),
    ],
)
def test_an_annotation_has_the_name_of_its_image(tmp_path: Path, name: str) -> None:
    content = image(tmp_path / "images" / "a.png")
    image(tmp_path / "images" / "b.png")
    annotation(tmp_path / "annotations" / name)
    out = tmp_path / "out"
    made = import_annotations(tmp_path / "annotations", tmp_path / "images", out)
    assert made == Imported(images=1, nuclei=3, left_out=("b",), renamed=(), problems=())
    assert labels_of(out) == {"a.png": LABELS.tolist()}
    assert [path.name for path in (out / "images").iterdir()] == ["a.png"]
    assert (out / "images" / "a.png").read_bytes() == content


def test_the_result_is_a_data_set_that_can_be_checked(tmp_path: Path) -> None:
    for name, value in (("a.png", 1), ("b.tif", 2), ("c.jpg", 3)):
        image(tmp_path / "images" / name, value)
        annotation(tmp_path / "annotations" / f"{name[0]}.geojson")
    (tmp_path / "out").mkdir()
    import_annotations(tmp_path / "annotations", tmp_path / "images", tmp_path / "out")
    with open_raw(tmp_path / "out", annotated=True) as raw:
        assert [sample.image for sample in raw.samples] == [
            "images/a.png",
            "images/b.tif",
            "images/c.jpg",
        ]
    report = check_dataset(tmp_path / "out")
    assert (report.images, report.annotated, report.areas_px.tolist()) == (3, 3, 3 * [4, 2, 1])
    assert report.faults == ()


@pytest.mark.parametrize("name", ["RoiSet.zip", "anything.geojson", "x.txt"])
def test_one_file_and_one_image_need_no_names(tmp_path: Path, name: str) -> None:
    image(tmp_path / "a.png")
    path = annotation(tmp_path / name)
    for images, folder in ((tmp_path / "a.png", "out"), (tmp_path / "images", "out-2")):
        image(tmp_path / "images" / "a.png")
        import_annotations(path, images, tmp_path / folder)
        assert labels_of(tmp_path / folder) == {"a.png": LABELS.tolist()}


def test_images_in_a_zip_and_in_folders_for_each(tmp_path: Path) -> None:
    content = image(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for id_ in ("a", "b"):
            archive.writestr(f"top/{id_}/images/{id_}.png", content)
    annotation(tmp_path / "annotations" / "b.geojson")
    import_annotations(tmp_path / "annotations", tmp_path / "images.zip", tmp_path / "out")
    assert labels_of(tmp_path / "out") == {"b.png": LABELS.tolist()}


def test_files_beside_the_images_as_cellpose_writes_them(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    annotation(tmp_path / "images" / "a_seg.npy")
    import_annotations(tmp_path / "images", tmp_path / "images", tmp_path / "out")
    assert labels_of(tmp_path / "out") == {"a.png": LABELS.tolist()}


def test_folders_in_ids(tmp_path: Path) -> None:
    for plate, value in (("p1", 1), ("p2", 2)):
        image(tmp_path / "images" / plate / "a.png", value)
        annotation(
            tmp_path / "annotations" / plate / "a.geojson", np.equal(LABELS, value).astype(int)
        )
    made = import_annotations(tmp_path / "annotations", tmp_path / "images", tmp_path / "out")
    assert made.renamed == ("p1-a", "p2-a")
    assert labels_of(tmp_path / "out") == {
        "p1-a.png": (LABELS == 1).astype(int).tolist(),
        "p2-a.png": (LABELS == 2).astype(int).tolist(),
    }


def test_an_image_without_nuclei_is_annotated(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    path = annotation(tmp_path / "a.geojson", np.zeros_like(LABELS))
    made = import_annotations(path, tmp_path / "a.png", tmp_path / "out")
    assert (made.images, made.nuclei) == (1, 0)
    assert labels_of(tmp_path / "out") == {"a.png": np.zeros_like(LABELS).tolist()}


POINT = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}}
SQUARE = POINT | {
    "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 2], [0, 2]]]}
}


def test_an_image_whose_annotations_are_no_nuclei_is_not_one_without_nuclei(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    file = tmp_path / "a.geojson"
    file.write_text(json.dumps([POINT]))
    assert refused(file, tmp_path / "images", tmp_path / "out") == (
        "a.geojson: none of its annotations is a nucleus, for example a.geojson, feature 1: Point: "
        "skipped. Remove the file, or annotate nuclei."
    )
    file.write_text("[]")
    assert import_annotations(file, tmp_path / "images", tmp_path / "out").nuclei == 0


@pytest.mark.parametrize("ending", [".ome.tif", ".zarr.zip"])
def test_endings_of_two_parts(tmp_path: Path, ending: str) -> None:
    content = image(tmp_path / "a.png")
    if ending == ".zarr.zip":
        pytest.importorskip("zarr")
        files = exports.ome_zarr(LABELS, Channels({"gray": LABELS}, ("gray",)), None)
        content = pack_zarr({path: partial(bytes, data) for path, data in files.items()})
    for folder in "pq":
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "images" / folder / f"a{ending}").write_bytes(content)
    shown = [(f"{folder}/a{ending}", LABELS, np.ones(3, np.float32)) for folder in "pq"]
    (tmp_path / "coco.json").write_text(exports.coco(shown)[0])
    made = import_annotations(tmp_path / "coco.json", tmp_path / "images", tmp_path / "out")
    assert (made.images, made.nuclei) == (2, 6)
    names = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert names == [f"p-a{ending}", f"q-a{ending}"]


def test_problems_are_in_the_order_of_the_images(tmp_path: Path) -> None:
    for name in ("b", "a"):
        image(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.geojson").write_text(json.dumps([POINT, SQUARE]))
    made = import_annotations(tmp_path / "images", tmp_path / "images", tmp_path / "out")
    assert [problem.file for problem in made.problems] == [
        "a.geojson, feature 1",
        "b.geojson, feature 1",
    ]


def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for name in ("a", "b"):
        image(tmp_path / "images" / f"{name}.png")
        annotation(tmp_path / "images" / f"{name}.geojson")
    import_annotations(
        tmp_path / "images",
        tmp_path / "images",
        tmp_path / "out",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]


# COCO


def coco(path: Path, *names: str) -> Path:
    path.write_text(exports.coco((name, LABELS, np.ones(3, np.float32)) for name in names)[0])
    return path


def test_coco_names_its_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path / "images" / name)
    path = coco(tmp_path / "x.json", "val/a.png", "D:\\images\\c.png")
    made = import_annotations(path, tmp_path / "images", tmp_path / "out")
    assert (made.images, made.nuclei, made.left_out) == (2, 6, ("b",))
    assert labels_of(tmp_path / "out") == {"a.png": LABELS.tolist(), "c.png": LABELS.tolist()}


def test_coco_of_images_that_have_one_name_in_two_folders(tmp_path: Path) -> None:
    for plate in ("p1", "p2"):
        image(tmp_path / "images" / plate / "a.png")
    path = coco(tmp_path / "x.json", "p2/a.png", "p1/a.png")
    made = import_annotations(path, tmp_path / "images", tmp_path / "out")
    assert (made.images, made.nuclei) == (2, 6)
    line = refused(coco(tmp_path / "x.json", "a.png"), tmp_path / "images", tmp_path / "new")
    assert line.startswith("x.json, image 1: 2 images are called 'a.png' in ")


def test_coco_of_an_image_that_is_not_there(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    path = coco(tmp_path / "x.json", "a.png", "z.png")
    line = refused(path, tmp_path / "images", tmp_path / "out")
    assert line.startswith("x.json, image 2: no images are called 'z.png' in ")


def test_coco_of_one_image_twice(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    path = coco(tmp_path / "x.json", "a.png", "b/a.png")
    assert refused(path, tmp_path / "images", tmp_path / "out") == (
        "x.json, image 1 and x.json, image 2 both belong to the image a. Remove one."
    )


def test_coco_without_images_and_among_other_files(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    (tmp_path / "annotations").mkdir()
    path = coco(tmp_path / "annotations" / "a.json")
    assert "annotates no image. Give" in refused(path, tmp_path / "images", tmp_path / "out")
    image(tmp_path / "images" / "b.png")
    annotation(tmp_path / "annotations" / "b.geojson")
    line = refused(tmp_path / "annotations", tmp_path / "images", tmp_path / "out")
    assert line == "a.json: COCO JSON, which names its images. Give this file alone."


# What is refused


def test_an_annotation_without_image(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    for name in ("a", "x", "y"):
        annotation(tmp_path / "annotations" / f"{name}.geojson")
    line = refused(tmp_path / "annotations", tmp_path / "images", tmp_path / "out")
    assert line.startswith("x.geojson, y.geojson: no image of this name in ")


def test_an_annotation_with_several_images(tmp_path: Path) -> None:
    for plate in ("p1", "p2"):
        image(tmp_path / "images" / plate / "a.png")
    path = annotation(tmp_path / "a.geojson")
    line = refused(path, tmp_path / "images", tmp_path / "out")
    assert line.startswith("a.geojson: may belong to p1/a, p2/a. Put it into a folder")


def test_an_image_with_several_annotations(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    for name in ("a.geojson", "a.zip"):
        annotation(tmp_path / "annotations" / name)
    assert refused(tmp_path / "annotations", tmp_path / "images", tmp_path / "out") == (
        "a.geojson and a.zip both belong to the image a. Remove one."
    )


def test_two_ids_that_become_one(tmp_path: Path) -> None:
    for name in ("p/a", "p-a"):
        image(tmp_path / "images" / f"{name}.png")
        annotation(tmp_path / "annotations" / f"{name}.geojson")
    line = refused(tmp_path / "annotations", tmp_path / "images", tmp_path / "out")
    assert line == "p-a and p/a would both be written as p-a. Rename one of them."


def test_nothing_to_read(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    line = refused(tmp_path / "images", tmp_path / "images", tmp_path / "out")
    assert line.startswith(f"{tmp_path}/images: no annotations found. They end in .geojson, ")
    line = refused(tmp_path / "nothing", tmp_path / "images", tmp_path / "out")
    assert line == f"{tmp_path}/nothing: no such file or folder. Check the path."


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    path = annotation(tmp_path / "a.geojson")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    assert refused(path, tmp_path / "images", tmp_path / "out") == (
        f"{tmp_path}/out: the folder is not empty. Choose another folder with --to."
    )


def test_a_folder_among_the_images_or_that_cannot_be_written(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    path = annotation(tmp_path / "a.geojson")
    line = refused(path, tmp_path / "images", tmp_path / "images" / "out")
    assert line.startswith(f"{tmp_path}/images/out is in the folder of the images.")
    line = refused(path, tmp_path / "images", path)
    assert line.startswith(f"{path} cannot be written (Not a directory). Choose another")
    line = refused(path, tmp_path / "images", path / "out")
    assert line.startswith(f"{path}/out cannot be written (File exists). Choose another")


def test_a_damaged_annotation_leaves_nothing_behind(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / "images" / f"{name}.png")
        annotation(tmp_path / "annotations" / f"{name}.geojson")
    (tmp_path / "annotations" / "b.geojson").write_text('{"type"')
    line = refused(tmp_path / "annotations", tmp_path / "images", tmp_path / "out")
    assert line.startswith("b.geojson: not JSON (")
