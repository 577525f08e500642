from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nucleus_unet.data.sample import Sample
from nucleus_unet.network import batches as module
from nucleus_unet.network.augment import resize_image
from nucleus_unet.network.batches import training_batches, validation_arrays
from nucleus_unet.network.normalization import apply_table, normalizing_table
from nucleus_unet.recipe import Recipe

PLAIN = [
    "augmentation.horizontal_flip=false",
    "augmentation.vertical_flip=false",
    "augmentation.rotation_range_deg=0",
    "augmentation.width_shift_range=0",
    "augmentation.height_shift_range=0",
    "augmentation.zoom_range=0",
]


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_a_batch_does_not_depend_on_the_first_step_or_on_the_threads(
    tiny: Recipe, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    undisturbed = list(training_batches(tiny, samples))
    assert len(undisturbed) == 12
    for images, masks in undisturbed:
        assert (images.shape, images.dtype) == ((4, 32, 32, 3), np.uint8)
        assert (masks.shape, masks.dtype) == ((4, 32, 32, 1), np.float32)
        assert set(np.unique(masks)) == {0, 1}
    monkeypatch.setattr(module, "LOADING_THREADS", threads)
    late = list(training_batches(tiny, samples, first_step=4))
    assert len(late) == 8
    for (a, b), (c, d) in zip(undisturbed[4:], late, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_draws_differ_by_seed_epoch_and_position(tiny: Recipe, samples: list[Sample]) -> None:
    def drawn(seed: int) -> list[bytes]:
        recipe = tiny.with_overrides([f"training.seed={seed}"])
        return [
            image.tobytes()
            for images, _ in training_batches(recipe, samples[:1])
            for image in images
        ]

    assert len(set(drawn(1)) | set(drawn(2))) == 2 * 12 * 4


def test_a_stain_does_not_change_the_maps(tiny: Recipe, samples: list[Sample]) -> None:
    changed = tiny.with_overrides(["augmentation.stain_range=0.2"])
    for (a, b), (c, d) in zip(
        training_batches(tiny, samples), training_batches(changed, samples), strict=True
    ):
        assert (a != c).any()
        np.testing.assert_array_equal(b, d)


def test_every_image_is_used_once_before_any_is_used_again(
    tiny: Recipe, samples: list[Sample]
) -> None:
    plain = tiny.with_overrides(PLAIN)
    known = {resize_image(np.asarray(s.load()[0]), 32).tobytes(): s.id for s in samples}
    seen: list[str] = []
    for images, masks in training_batches(plain, samples):
        for image, mask in zip(images, masks, strict=True):
            # Warping by the identity differs from resizing by one grey level at most.
            error = {
                id_: np.abs(np.frombuffer(k, np.uint8).astype(int) - image.ravel()).max()
                for k, id_ in known.items()
            }
            id_ = min(error, key=lambda i: error[i])
            assert error[id_] <= 1
            assert mask.any()
            seen.append(id_)
    turns = [seen[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(turn) == sorted(known.values()) for turn in turns)
    assert all(a != b for a, b in pairwise(turns))


def test_images_and_masks_of_a_batch_belong_together(tiny: Recipe, samples: list[Sample]) -> None:
    for images, masks in training_batches(tiny, samples):
        nucleus = masks[..., 0] > 0
        assert images[nucleus].mean() > 160
        assert images[~nucleus].mean() < 80


def test_validation_arrays_are_resized_and_in_order(tiny: Recipe, samples: list[Sample]) -> None:
    images, masks = validation_arrays(tiny, samples)
    assert (images.dtype, masks.dtype) == (np.uint8, np.float32)
    assert (images.shape, masks.shape) == ((7, 32, 32, 3), (7, 32, 32, 1))
    for sample, image, mask in zip(samples, images, masks, strict=True):
        original, labels = sample.load()
        np.testing.assert_array_equal(image, resize_image(original, 32))
        assert set(np.unique(mask)) == {0, 1}
        if labels.shape == (32, 32):
            np.testing.assert_array_equal(mask[..., 0], labels > 0)
        assert mask.mean() == pytest.approx((labels > 0).mean(), abs=0.02)


def test_crops_come_with_two_maps(crops: Recipe, samples: list[Sample]) -> None:
    for images, maps in training_batches(crops, samples):
        assert (images.shape, images.dtype) == ((4, 16, 16, 3), np.uint8)
        assert (maps.shape, maps.dtype) == ((4, 16, 16, 2), np.float32)
        nucleus = maps[..., 0] > 0
        assert images[nucleus].mean() > images[~nucleus].mean() + 100


def test_kinds_are_balanced(
    crops: Recipe, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = np.asarray(module._odds(samples, 1.0))
    np.testing.assert_allclose(rare, [1 / 12] * 6 + [1 / 2])
    assert module._odds(samples, 0.0) is None
    number = {sample.id: index for index, sample in enumerate(samples)}
    monkeypatch.setattr(
        module, "training_view", lambda _, sample, *__: 2 * (np.array(number[sample.id]),)
    )
    long = crops.with_overrides(["training.steps_per_epoch=500"])
    for balance, share in (("1", 1 / 2), ("0", 1 / 7)):
        chosen = long.with_overrides([f"data.balance={balance}"])
        drawn = np.concatenate([images for images, _ in training_batches(chosen, samples)])
        assert len(drawn) == 3 * 500 * 4
        assert np.mean(drawn == 6) == pytest.approx(share, abs=0.02)  # three standard deviations


def test_crops_are_normalised_by_the_table_of_the_complete_image(
    crops: Recipe, tmp_path: Path
) -> None:
    # A ramp from 100 to 163 over 64 px: a crop of 16 px spans a quarter of the range.
    ramp = np.broadcast_to(np.arange(100, 164, dtype=np.uint8)[:, None], (64, 64, 3))
    np.save(tmp_path / "image.npy", ramp)
    np.save(tmp_path / "labels.npy", np.zeros((64, 64), np.uint16))
    sample = Sample("a", tmp_path / "image.npy", tmp_path / "labels.npy", "fluorescence")
    plain = crops.with_overrides([*PLAIN, "augmentation.scale_range=[1, 1]"])
    for images, _ in training_batches(plain, [sample]):
        for image in images:
            assert np.ptp(image) == pytest.approx(255 / 4, abs=6)


def test_validation_crops_come_from_the_middle(crops: Recipe, samples: list[Sample]) -> None:
    images, maps = validation_arrays(crops, samples)
    assert (images.shape, maps.shape) == ((7, 16, 16, 3), (7, 16, 16, 2))
    for sample, image, map_ in zip(samples, images, maps, strict=True):
        original, labels = sample.load()
        top, left = (labels.shape[0] - 16) // 2, (labels.shape[1] - 16) // 2
        middle = np.s_[top : top + 16, left : left + 16]
        seen = apply_table(original, normalizing_table(np.asarray(original)))
        np.testing.assert_array_equal(image, seen[middle])
        np.testing.assert_array_equal(map_[..., 0], labels[middle] > 0)


def test_nuclei_are_dimmed_in_half_of_the_fluorescence_images(
    tiny: Recipe, samples: list[Sample]
) -> None:
    plain = tiny.with_overrides([*PLAIN, "training.steps_per_epoch=20"])
    changed = plain.with_overrides(["augmentation.dim_range=0.9"])

    def share(of: list[Sample]) -> float:
        different = []
        for (a, b), (c, d) in zip(
            training_batches(plain, of), training_batches(changed, of), strict=True
        ):
            np.testing.assert_array_equal(b, d)
            different += [(one != other).any() for one, other in zip(a, c, strict=True)]
        return float(np.mean(different))

    assert 0.4 < share(samples[:6]) < 0.6
    assert share(samples[6:]) == 0  # bright-field
