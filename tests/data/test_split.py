import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus_unet.data.prepared import ImageEntry, Images, Labels, LabelsEntry
from nucleus_unet.data.sample import Sample
from nucleus_unet.data.split import (
    Split,
    SplitImage,
    fold_split,
    folds_of,
    group_split,
    images_of_known_slides,
    make_split,
    random_split,
    read_split,
    split_of_all_folds,
)
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import ONLY_PLANE, Data, Recipe, Training

IDS = [f"{number:02}" for number in range(20)]


def test_a_random_split_is_the_one_of_the_notebook() -> None:
    training, validation = random_split(IDS, 0.1, 7)
    assert validation == ["01", "17"]
    assert training == [id_ for id_ in IDS if id_ not in validation]


def test_the_order_of_the_ids_does_not_matter() -> None:
    shuffled = np.random.default_rng(1).permutation(IDS).tolist()
    assert shuffled != IDS
    assert random_split(shuffled, 0.1, 7) == random_split(IDS, 0.1, 7)


def test_another_seed_is_another_split() -> None:
    assert random_split(IDS, 0.1, 7) != random_split(IDS, 0.1, 8)


@given(st.sets(st.text(max_size=3), min_size=2), st.floats(0.001, 0.999), st.integers(0, 9))
def test_each_id_is_on_one_side_and_no_side_is_empty(
    ids: set[str], fraction: float, seed: int
) -> None:
    training, validation = random_split(sorted(ids), fraction, seed)
    assert sorted(training + validation) == sorted(ids)
    assert training
    assert validation
    assert (training, validation) == (sorted(training), sorted(validation))


@pytest.mark.parametrize("ids", [[], ["a"]])
def test_too_few_ids(ids: list[str]) -> None:
    with pytest.raises(NucleusError) as caught:
        random_split(ids, 0.1, 7)
    assert str(caught.value) == (
        f"The data set has {len(ids)} image(s) with masks. At least 2 are needed: one to train on "
        "and one to validate on."
    )


def test_a_slide_stays_together() -> None:
    slides = {f"{slide}{tile}": slide for slide in "abcdefghij" for tile in range(4)}
    training, validation = group_split(slides, 0.3, 0)
    assert sorted(training + validation) == sorted(slides)
    assert not {slides[id_] for id_ in training} & {slides[id_] for id_ in validation}
    assert group_split(slides, 0.3, 1) != (training, validation)


@given(st.sets(st.text(max_size=3), min_size=1), st.integers(0, 9))
def test_images_of_new_slides_move_no_old_one(new: set[str], seed: int) -> None:
    old = {f"old {number}": f"slide {number // 2}" for number in range(30)}
    training, validation = group_split(old, 0.4, seed)
    more = group_split(old | {f"new {name}": f"new {name}" for name in new}, 0.4, seed)
    assert [set(side) & old.keys() for side in more] == [set(training), set(validation)]


def test_the_share_is_met_on_average() -> None:
    slides = {str(number): str(number) for number in range(5000)}
    assert len(group_split(slides, 0.2, 3)[1]) == pytest.approx(1000, abs=100)


@pytest.mark.parametrize(
    ("seed", "least", "largest"), [(0, "6", "3"), (1, "1", "2"), (2, "2", "1")]
)
def test_the_nearest_slide_moves_if_all_would_be_on_one_side(
    seed: int, least: str, largest: str
) -> None:
    slides = {digit: digit for digit in "0123456789"}  # SHA-256 of "0 6" begins with 19, the least
    assert group_split(slides, 1e-9, seed)[1] == [least]
    assert group_split(slides, 1 - 1e-9, seed)[0] == [largest]


@pytest.mark.parametrize(
    ("slides", "counted"),
    [({}, "0 image(s) of 0 slide(s)"), ({"a": "s", "b": "s"}, "2 image(s) of 1 slide(s)")],
)
def test_too_few_slides(slides: dict[str, str], counted: str) -> None:
    with pytest.raises(NucleusError) as caught:
        group_split(slides, 0.5, 0)
    assert str(caught.value) == (
        f"The data set has {counted}. At least 2 slides are needed: one to train on and one to "
        "validate on. Set data.split=random to use images of one slide for both."
    )


GROUPS = {f"image{n:02}": f"slide{n // 3:02}" for n in range(45)}
KINDS = {
    id_: "bright-field" if slide > "slide09" else "fluorescence" for id_, slide in GROUPS.items()
}


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_image_is_validated_in_one_fold(folds: int) -> None:
    made = [fold_split(GROUPS, KINDS, (number, folds), 1) for number in range(1, folds + 1)]
    assert sorted(id_ for _, validation in made for id_ in validation) == sorted(GROUPS)
    for training, validation in made:
        assert sorted((*training, *validation)) == sorted(GROUPS)
        assert not {GROUPS[id_] for id_ in training} & {GROUPS[id_] for id_ in validation}
        # 30 images of one kind and 15 of the other, each slide with three
        assert abs(len(validation) - 45 / folds) <= 3
        assert abs(sum(KINDS[id_] == "bright-field" for id_ in validation) - 15 / folds) <= 3


def test_folds_depend_on_the_seed_and_not_on_the_order() -> None:
    backwards = dict(reversed(GROUPS.items()))
    assert fold_split(backwards, KINDS, (2, 5), 1) == fold_split(GROUPS, KINDS, (2, 5), 1)
    assert fold_split(GROUPS, KINDS, (2, 5), 2) != fold_split(GROUPS, KINDS, (2, 5), 1)


def test_kinds_with_fewer_images_than_folds() -> None:
    kinds = dict(zip("abcdef", ("x", "y", "z", "x", "y", "z"), strict=True))
    slides = {id_: id_ for id_ in kinds}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = [fold_split(slides, kinds, (number, 6), 0)[1] for number in range(1, 7)]
    assert sorted(made) == [[id_] for id_ in "abcdef"]


def test_more_folds_than_slides() -> None:
    with pytest.raises(NucleusError) as caught:
        fold_split(GROUPS, KINDS, (1, 16), 0)
    assert str(caught.value) == (
        "The data set has 45 image(s) in 15 group(s) that stay together, fewer than the 16 folds. Ask "
        "for fewer folds."
    )


def test_the_recipe_chooses_a_fold() -> None:
    rows = [SplitImage(id=id_, kind=KINDS[id_], slide=slide) for id_, slide in GROUPS.items()]
    by_slide = make_split(rows, Data(split="slide", split_seed=3, fold=(2, 5)))
    assert [i.id for i in by_slide.validation] == fold_split(GROUPS, KINDS, (2, 5), 3)[1]
    at_random = make_split(rows, Data(split="random", split_seed=3, fold=(2, 5)))
    alone = {id_: id_ for id_ in GROUPS}
    assert [i.id for i in at_random.validation] == fold_split(alone, KINDS, (2, 5), 3)[1]


def test_the_split_of_all_folds_has_each_image_on_both_sides() -> None:
    rows = [SplitImage(id=id_, kind=KINDS[id_], slide=slide) for id_, slide in GROUPS.items()]
    made = split_of_all_folds(reversed(rows))
    assert [image.id for image in made.training] == sorted(GROUPS)
    assert made.validation == made.training


@pytest.mark.parametrize(("how", "mates"), [("slide", 0), ("random", 45)])
def test_images_whose_slide_their_network_was_trained_on(how: str, mates: int) -> None:
    data = Data.model_validate({"split": how, "split_seed": 3})
    recipe = Recipe(name="", data=data, training=Training(folds=5))
    rows = [SplitImage(id=id_, kind=KINDS[id_], slide=slide) for id_, slide in GROUPS.items()]
    whole = split_of_all_folds(rows)
    folds = folds_of(whole, recipe)
    assert sorted(image.id for fold in folds for image in fold.validation) == sorted(GROUPS)
    assert len(images_of_known_slides(whole, recipe)) == mates


def test_a_model_of_one_network_has_one_split() -> None:
    recipe, split = Recipe(name=""), Split(training=(A, B), validation=(C,))
    assert folds_of(split, recipe) == [split]
    assert images_of_known_slides(split, recipe) == {"c"}  # B is of its slide


def test_a_source_is_on_one_side() -> None:
    rows = [
        SplitImage(id=id_, kind=KINDS[id_], slide=slide, source=f"source {int(slide[-2:]) % 4}")
        for id_, slide in GROUPS.items()
    ]
    sources = {row.id: row.source for row in rows}
    alone = make_split(rows, Data(split="source", validation_fraction=0.3, split_seed=1))
    assert [image.id for image in alone.validation] == group_split(sources, 0.3, 1)[1]
    folds = [make_split(rows, Data(split="source", fold=(number, 4))) for number in range(1, 5)]
    assert [len({image.source for image in fold.validation}) for fold in folds] == [1] * 4
    assert len({fold.validation[0].source for fold in folds}) == 4
    with pytest.raises(
        NucleusError, match=r"12 image\(s\) of 1 source\(s\)\. At least 2 sources are"
    ):
        make_split([row for row in rows if row.source == "source 1"], Data(split="source"))


def test_the_recipe_chooses_how_to_split() -> None:
    slides = {id_: f"slide {k // 3}" for k, id_ in enumerate(IDS)}
    rows = [SplitImage(id=i, kind="fluorescence", slide=slide) for i, slide in slides.items()]

    def ids(data: Data) -> tuple[list[str], list[str]]:
        made = make_split(rows, data)
        return [image.id for image in made.training], [image.id for image in made.validation]

    by_slide = Data(split="slide", validation_fraction=0.3, split_seed=4)
    assert ids(by_slide) == group_split(slides, 0.3, 4)
    at_random = Data(split="random", validation_fraction=0.3, split_seed=4)
    assert ids(at_random) == random_split(IDS, 0.3, 4)
    assert ids(by_slide) != ids(at_random)


A = SplitImage(id="a", kind="fluorescence", slide="s")
B = SplitImage(id="b", kind="bright-field", slide="t")
C = SplitImage(id="c", kind="fluorescence", slide="t")


def test_images_keep_their_kind_and_slide() -> None:
    made = make_split([C, B, A], Data(split="slide", validation_fraction=1e-9, split_seed=0))
    assert sorted([made.training, made.validation], key=len) == [(A,), (B, C)]


def test_what_a_split_says_of_its_images() -> None:
    split = Split(training=(A, B), validation=(C,))
    assert (split.side("training"), split.side("validation")) == ((A, B), (C,))
    assert split.slides == {"a": "s", "b": "t", "c": "t"}
    assert split.kinds("training") == {"fluorescence", "bright-field"}
    assert split.kinds("validation") == {"fluorescence"}


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    split = Split(training=(A, B), validation=(C,))
    split.write(tmp_path)
    assert read_split(tmp_path) == split
    written = json.loads((tmp_path / "split.json").read_text())
    assert written["validation"] == [
        {"id": "c", "kind": "fluorescence", "slide": "t", "source": ""}
    ]


def test_a_side_as_prepared_samples() -> None:
    common: dict[str, Any] = {"sha256": "", "source_sha256": "", "height": 2, "width": 3}
    of_images = common | {"pixels_sha256": "", "pixel_size_um": None}
    images = Images(
        entries=tuple(
            ImageEntry(id=i, digest=f"i{i}", source=i, plane=ONLY_PLANE, **of_images) for i in "abc"
        )
    )
    labels = Labels(
        entries=tuple(
            LabelsEntry(id=i, digest=f"l{i}", nuclei=1, problems=(), **common) for i in "abc"
        )
    )
    split = Split(training=(A, C), validation=(B,))
    assert split.samples("training", images, labels, Path("/s")) == [
        Sample("a", Path("/s/images/ia.npy"), Path("/s/labels/la.npy"), "fluorescence"),
        Sample("c", Path("/s/images/ic.npy"), Path("/s/labels/lc.npy"), "fluorescence"),
    ]
    assert split.samples("validation", images, labels, Path("/s")) == [
        Sample("b", Path("/s/images/ib.npy"), Path("/s/labels/lb.npy"), "bright-field")
    ]
