import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleus_unet.data.identity import (
    dataset_digest,
    dataset_files,
    fingerprint,
    identities,
    images_code,
    labels_code,
    raw_digests,
    require_unchanged,
    source_digests,
)
from nucleus_unet.data.prepared import (
    ImageEntry,
    Images,
    Labels,
    LabelsEntry,
    prepare_images,
    prepare_labels,
)
from nucleus_unet.data.synthetic import write_synthetic
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import ONLY_PLANE


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    (folder / "a" / "images").mkdir(parents=True)
    (folder / "a" / "images" / "a.png").write_bytes(b"image")
    (folder / "b.png").write_bytes(b"other")
    (folder / "gone").symlink_to("../nowhere")
    (folder / "itself").symlink_to("itself")
    return folder


def touch(raw: Path) -> None:
    os.utime(raw / "b.png", ns=(1, 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file was added": lambda raw: (raw / "a" / "images" / "c.png").write_bytes(b""),
    "a file has gone": lambda raw: (raw / "b.png").unlink(),
    "a file was renamed": lambda raw: (raw / "b.png").rename(raw / "c.png"),
    "a file was moved": lambda raw: (raw / "b.png").rename(raw / "a" / "b.png"),
    "a file has another size": lambda raw: (raw / "b.png").write_bytes(b"longer"),
    "a file was written again": touch,
    "a link to nowhere leads somewhere": lambda raw: (raw / "../nowhere").write_bytes(b""),
    "all is gone": lambda raw: raw.rename(raw.with_name("elsewhere")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(raw: Path, change: str) -> None:
    before = fingerprint([raw])
    assert fingerprint([raw]) == before
    CHANGES[change](raw)
    assert fingerprint([raw]) != before


@pytest.mark.parametrize("link", ["gone", "itself"])
def test_a_link_to_nowhere_or_to_itself_is_absent(raw: Path, link: str) -> None:
    before = fingerprint([raw])
    (raw / link).unlink()
    assert fingerprint([raw]) == before


def test_ignored_files_do_not_count(raw: Path) -> None:
    before = fingerprint([raw])
    (raw / ".nucleus").mkdir()
    (raw / ".nucleus" / "mlflow.db").write_bytes(b"grows")
    (raw / "a" / ".DS_Store").write_bytes(b"")
    assert fingerprint([raw]) == before


def test_a_link_to_its_own_folder_ends(raw: Path) -> None:
    (raw / "again").symlink_to(".")
    assert fingerprint([raw]) == fingerprint([raw])


def test_a_single_file_and_a_missing_one(raw: Path) -> None:
    file, absent = raw / "b.png", raw / "absent"
    prints = {fingerprint(paths) for paths in ([], [file], [absent], [file, absent], [raw])}
    assert len(prints) == 5
    touched = fingerprint([file])
    touch(raw)
    assert fingerprint([file]) != touched


def test_digests_of_the_content_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"image")
    file, all_files = raw_digests([folder / "a.png", folder])
    moved = folder.rename(tmp_path / "moved")
    os.utime(moved / "a.png", ns=(1, 1))
    assert raw_digests([moved]) == [all_files]
    (moved / "a.png").rename(moved / "b.png")  # the id of an image is its name
    assert file not in raw_digests([moved / "b.png"])
    assert all_files not in raw_digests([moved])


def test_the_digest_of_a_folder_changes_if_an_annotation_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "a" / "images" / "a.png").write_bytes(b"image")
    (tmp_path / "a" / "masks").mkdir()  # empty: no nucleus
    before = raw_digests([tmp_path])
    (tmp_path / "a" / "masks").rmdir()
    assert raw_digests([tmp_path]) != before


def test_data_that_changed_are_refused(raw: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for path in (first, second):
        path.write_bytes(b"image")
    digests = raw_digests([first, second])
    touched = first.stat().st_mtime_ns + 1
    os.utime(first, ns=(touched, touched))
    require_unchanged([first, second], digests)  # the content counts
    second.write_bytes(b"other")
    with pytest.raises(NucleusError) as caught:
        require_unchanged([first, second], digests)
    assert str(caught.value) == (
        f"{second} changed while it was being read. Start again when nothing writes to it."
    )


def image(id_: str, **changes: Any) -> ImageEntry:
    fields = {"digest": f"i{id_}", "sha256": "", "source_sha256": f"file {id_}", "source": "x"}
    fields["pixels_sha256"] = f"pixels {id_}"
    more = {"height": 4, "width": 6, "plane": ONLY_PLANE, "pixel_size_um": None}
    return ImageEntry.model_validate({"id": id_, **fields, **more, **changes})


def label(id_: str, **changes: Any) -> LabelsEntry:
    fields = {"digest": f"l{id_}", "sha256": "", "source_sha256": f"masks {id_}", "nuclei": 2}
    size = {"height": 4, "width": 6, "problems": ()}
    return LabelsEntry.model_validate({"id": id_, **fields, **size, **changes})


IMAGES = Images(entries=(image("a"), image("b", height=2)))
LABELS = Labels(entries=(label("a"), label("b")))


def test_an_entry_is_identified_by_its_id_and_digest() -> None:
    assert identities(IMAGES.entries) == [["a", "ia"], ["b", "ib"]]
    assert identities(LABELS.entries) == [["a", "la"], ["b", "lb"]]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES, None),
        (Images(entries=IMAGES.entries[:1]), LABELS),
        (Images(entries=(image("a", source_sha256="other"), IMAGES.entries[1])), LABELS),
        (Images(entries=(image("c", source_sha256="file a"), IMAGES.entries[1])), LABELS),
        (IMAGES, Labels(entries=(label("a", source_sha256="other"), LABELS.entries[1]))),
    ],
)
def test_the_digest_of_a_data_set_depends_on_ids_and_contents(
    images: Images, labels: Labels | None
) -> None:
    assert dataset_digest(images, labels) != dataset_digest(IMAGES, LABELS)


def test_the_digest_of_a_data_set_depends_on_nothing_else() -> None:
    moved = Images(entries=tuple(image(i, source="y", digest="of other code") for i in "ab"))
    assert dataset_digest(moved, LABELS) == dataset_digest(IMAGES, LABELS)


def test_the_files_of_a_data_set() -> None:
    a = {"id": "a", "height": 4, "width": 6, "image_sha256": "file a"}
    b = {"id": "b", "height": 2, "width": 6, "image_sha256": "file b"}
    assert dataset_files(IMAGES, None) == [a, b]
    assert dataset_files(IMAGES, LABELS) == [
        a | {"masks_sha256": "masks a"},
        b | {"masks_sha256": "masks b"},
    ]


def test_images_and_labels_depend_on_other_code() -> None:
    assert len({images_code(), labels_code()}) == 2
    assert (images_code(), labels_code()) == (images_code(), labels_code())


def test_source_digests_are_those_of_prepared_entries(tmp_path: Path) -> None:
    train, test = write_synthetic(tmp_path / "data", train=2, test=1)
    images = prepare_images([train], tmp_path / "store", "code")
    labels = prepare_labels([train], images, tmp_path / "store", "code")
    entries = (*images.entries, *labels.entries)
    assert source_digests(train) == {entry.source_sha256 for entry in entries}
    assert len(entries) == 4
    assert len(source_digests(test)) == 1  # not annotated


def test_source_digests_of_data_that_are_gone(tmp_path: Path) -> None:
    with pytest.raises(NucleusError, match="no such file or folder"):
        source_digests(tmp_path / "gone")
