from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nucleus_unet.data.synthetic import SYNTHETIC_KINDS, draw_synthetic, write_synthetic
from nucleus_unet.errors import NucleusError


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "sample", train=6, test=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def masks_of(image: Path) -> list[NDArray[np.uint8]]:
    return [_read(path) for path in sorted((image / "masks").iterdir())]


def _read(path: Path) -> NDArray[np.uint8]:
    pixels = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    assert pixels.dtype == np.uint8
    return pixels.astype(np.uint8)


def images_of(split: Path) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    for image in split.iterdir():
        yield image, _read(image / "images" / f"{image.name}.png")


def test_the_sample_has_the_layout_of_kaggle(sample: tuple[Path, Path]) -> None:
    train, test = sample
    assert (train.name, test.name) == ("stage1_train", "stage1_test")
    assert (len(list(train.iterdir())), len(list(test.iterdir()))) == (6, 3)
    assert all(
        {p.name for p in image.iterdir()} == {"images", "masks"} for image in train.glob("*")
    )
    assert all([p.name for p in image.iterdir()] == ["images"] for image in test.glob("*"))
    for split in sample:
        for folder, image in images_of(split):
            assert len(folder.name) == 64
            assert image.shape[2] == 4
            assert (image[..., 3] == 255).all()


def test_a_mask_is_gray_and_has_the_size_of_its_image(sample: tuple[Path, Path]) -> None:
    for folder, image in images_of(sample[0]):
        masks = masks_of(folder)
        assert masks
        for mask in masks:
            assert mask.shape == image.shape[:2]
            assert np.unique(mask).tolist() == [0, 255]


def test_masks_do_not_overlap_and_one_image_has_few_nuclei(sample: tuple[Path, Path]) -> None:
    masks = [masks_of(folder) for folder in sample[0].iterdir()]
    most = [int(np.sum([mask > 0 for mask in of_image], axis=0).max()) for of_image in masks]
    assert most == [1] * 6
    assert 1 <= min(map(len, masks)) <= 3


def test_equal_seeds_give_equal_bytes_and_a_larger_sample_contains_the_smaller(
    sample: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = contents(sample[0].parent)
    write_synthetic(tmp_path / "smaller", train=2, test=1)
    smaller = contents(tmp_path / "smaller")
    assert smaller.items() < whole.items()
    write_synthetic(tmp_path / "other", seed=1, train=2, test=1)
    assert not contents(tmp_path / "other").keys() & whole.keys()


def test_a_folder_that_is_not_empty_is_an_error_and_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(NucleusError, match=r"the folder is not empty\. Choose another"):
        write_synthetic(tmp_path, train=1, test=0)
    with pytest.raises(
        NucleusError, match=r"/mine/set: the sample cannot be written \(File exists\)\. Choose"
    ):
        write_synthetic(tmp_path / "mine" / "set", train=1, test=0)
    assert contents(tmp_path) == {"mine": b"kept"}


def test_the_folders_may_have_other_names_and_hold_the_same_images(tmp_path: Path) -> None:
    usual = write_synthetic(tmp_path / "usual", train=1, test=1)
    named = write_synthetic(tmp_path / "named", train=1, test=1, names=("sample", "sample, test"))
    assert named == (tmp_path / "named" / "sample", tmp_path / "named" / "sample, test")
    assert [contents(folder) for folder in named] == [contents(folder) for folder in usual]


def test_an_interrupted_sample_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cv2, "imencode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "set", train=1, test=0)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(SYNTHETIC_KINDS), seed=st.integers(0, 2**32), density=st.floats(0.02, 1)
)
def test_labels_have_no_gaps_and_match_the_image(kind: str, seed: int, density: float) -> None:
    image, labels = draw_synthetic(kind, np.random.default_rng(seed), density)
    assert image.dtype == np.uint8
    assert labels.dtype == np.int32
    assert image.shape == (*labels.shape, 3)
    assume(labels.any())  # a single nucleus may be outside the image
    areas = np.bincount(labels.ravel())[1:]
    assert areas.min() >= 12
    gray = image.mean(axis=2)
    brighter = gray[labels > 0].mean() > gray[labels == 0].mean()
    assert brighter == (kind in ("fluorescence", "tissue"))


@pytest.mark.parametrize("kind", SYNTHETIC_KINDS)
def test_a_density_of_0_gives_no_nuclei(kind: str) -> None:
    image, labels = draw_synthetic(kind, np.random.default_rng(0), density=0)
    assert labels.max() == 0
    assert image.std() > 0


# For each kind: number of nuclei, median area in pixels, mean gray of nuclei and of background. The
# ranges are the 10th to 90th percentiles of 330 images of the real training set (tissue: fluorescence
# with more than 80 nuclei). Real bright-field images are eight times as large, so their count of nuclei
# cannot be compared.
@pytest.mark.parametrize(
    ("kind", "ranges"),
    [
        ("fluorescence", [(9, 92), (82, 1749), (25, 103), (3, 16)]),
        ("tissue", [(99, 252), (123, 661), (28, 74), (3, 22)]),
        ("stained", [(10, 88), (159, 1303), (111, 143), (168, 206)]),
        ("brightfield", [(1, 118), (107, 333), (88, 110), (208, 217)]),
    ],
)
def test_a_typical_image_is_within_the_range_of_real_images(
    kind: str, ranges: list[tuple[int, int]]
) -> None:
    seen = []
    for seed in range(15):
        image, labels = draw_synthetic(kind, np.random.default_rng(seed))
        gray, areas = image.mean(axis=2), np.bincount(labels.ravel())[1:]
        inside, outside = gray[labels > 0].mean(), gray[labels == 0].mean()
        seen.append((len(areas), np.median(areas), inside, outside))
    typical = np.median(seen, axis=0)
    low, high = np.transpose(ranges)
    assert ((low <= typical) & (typical <= high)).all(), typical
