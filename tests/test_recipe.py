import doctest
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nucleus_unet import recipe as module
from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import (
    Network,
    Recipe,
    flatten,
    load_recipe,
    parse_recipe,
    recipe_differences,
    recipe_names,
    require_inference,
)

SEED = {
    "name": "seed",
    "data.image_size": 256,
    "data.validation_fraction": 0.1,
    "data.split_seed": 7,
    "augmentation.horizontal_flip": True,
    "augmentation.vertical_flip": True,
    "augmentation.rotation_range_deg": 90,
    "augmentation.width_shift_range": 0.1,
    "augmentation.height_shift_range": 0.1,
    "augmentation.zoom_range": 0.1,
    "network.padding": "valid",
    "network.activation": "tanh",
    "network.base_filters": 16,
    "network.depth": 4,
    "network.dropout": [0.1, 0.1, 0.2, 0.2, 0.3],
    "training.seed": 10,
    "training.steps_per_epoch": 25,
    "training.batch_size": 32,
    "training.optimizer": "sgd",
    "training.learning_rate": 0.01,  # keras.optimizers.SGD's own
    "training.momentum": 0.0,
    "training.schedule": "constant",
    "training.early_stopping_epochs": None,
    "training.start_from": None,
    "inference.cutoff": 0.5,
}


OFF = {
    "data.framing": "resize",
    "data.normalize": False,
    "data.balance": 0.0,
    "data.split": "random",
    "data.fold": None,
    "training.folds": None,
    "training.start_share": 0,
    "network.half_resolution": False,
    "augmentation.scale_range": [1, 1],
    "augmentation.stain_range": 0,
    "augmentation.dim_range": 0,
    "network.outputs": "mask",
    "training.keep": "best",
    "inference.min_area_px": 0,
    "inference.min_confidence": 0,
    "inference.grow_px": 0,
    "inference.tune": False,
    "inference.scale": 1,
    "inference.scales": [1],
    "inference.flips": False,
}
"""Features that neither the notebook nor the paper has, switched off."""


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def test_the_recipe_seed_has_the_values_of_the_notebook() -> None:
    flat = load_recipe("seed").flat()
    expected = SEED | OFF
    assert {key: flat[key] for key in expected} == expected
    # The notebook leaves epochs open, the machine decides some, and the others have no effect.
    assert flat.keys() - expected == {
        *("data.on_bad", "data.ignore_value", "data.channel", "data.z", "data.time", "data.scene"),
        "training.epochs",
        "training.precision",
        "training.threads",
        "training.deterministic",
        "inference.batch_size",
        "inference.seed_cutoff",
        "inference.tile_px",
        "inference.fit_scale",
    }


def test_the_recipe_paper_is_the_network_of_ronneberger() -> None:
    recipe = load_recipe("paper")
    assert recipe.network.model_dump() == {
        "padding": "valid",
        "activation": "relu",
        "base_filters": 64,
        "depth": 4,
        "half_resolution": False,
        "dropout": (0, 0, 0, 0, 0.5),
        "outputs": "mask",
    }
    assert {key: recipe.flat()[key] for key in OFF} == OFF
    assert recipe.data.image_size == 388
    assert (recipe.training.batch_size, recipe.training.momentum) == (1, 0.99)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_recipe_names_are_the_sorted_file_names() -> None:
    assert {"seed", "paper", "quick"} <= set(recipe_names())
    assert recipe_names() == sorted(recipe_names())


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.epochs=5", "training.epochs", 5),
        ("training.learning_rate = 1e-3", "training.learning_rate", 0.001),
        ("network.activation=elu", "network.activation", "elu"),
        ('network.activation="elu"', "network.activation", "elu"),
        ("augmentation.vertical_flip=false", "augmentation.vertical_flip", False),
        ("network.dropout=[0, 0, 0, 0, 0.5]", "network.dropout", [0, 0, 0, 0, 0.5]),
        ("training.early_stopping_epochs=3", "training.early_stopping_epochs", 3),
        ("training.start_from=0123abcd", "training.start_from", "0123abcd"),
        ("training.threads=auto", "training.threads", "auto"),
        ("name=mine", "name", "mine"),
    ],
)
def test_an_override_changes_only_its_key(override: str, key: str, value: Any) -> None:
    seed = load_recipe("seed")
    changed = load_recipe("seed", [override])
    assert changed.flat() == seed.flat() | {key: value}


def test_an_override_with_none_unsets_the_value() -> None:
    recipe = load_recipe("seed", ["training.early_stopping_epochs=3"])
    assert recipe.with_overrides(["training.early_stopping_epochs=none"]) == load_recipe("seed")


def test_overrides_are_checked_together() -> None:
    recipe = load_recipe("seed", ["network.depth=1", "network.dropout=[0.1, 0.2]"])
    assert (recipe.network.depth, recipe.network.dropout) == (1, (0.1, 0.2))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=5", r"^training\.epoch=5: unknown key\. Did you mean training\.epochs\?"),
        ("trainin.epochs=5", r"Did you mean training\.epochs\?"),
        ("name.first=a", r"^name\.first=a: unknown key"),
        ("foo=1", r"^foo=1: unknown key\. 'nucleus recipe show NAME' lists all keys\.$"),
        ("network.depth=5", r"^network\.depth=5: network: dropout has 5 values"),
        ("training.epochs", r"^training\.epochs has no value\. Write KEY=VALUE"),
        ("training.epochs=many", r"^training\.epochs=many: training\.epochs = 'many'"),
        ("training.epochs=0", r"training\.epochs = 0: .*greater than or equal to 1"),
        ("training.seed=4294967296", r"training\.seed = 4294967296: .*less than 4294967296"),
        ("data.split_seed=4294967296", r"split_seed = 4294967296: .*less than 4294967296"),
        ("training.learning_rate=0", r"training\.learning_rate = 0"),
        ("training.learning_rate=inf", r"training\.learning_rate = inf: .*finite"),
        (
            "augmentation.scale_range=[2, 0.5]",
            r"scale_range = \[2\.0, 0\.5\] is in the wrong order\. Give the smaller",
        ),
        ("data.validation_fraction=1", r"data\.validation_fraction = 1"),
        ("inference.cutoff=1.5", r"inference\.cutoff = 1\.5"),
        ("augmentation.zoom_range=1", r"augmentation\.zoom_range = 1"),
        ("augmentation.stain_range=0.3", r"augmentation\.stain_range = 0\.3: .*0\.25"),
        ("network.activation=sigmoid", r"network\.activation = 'sigmoid': .*'tanh'"),
        (
            "network.depth=3",
            r"network: dropout has 5 values, but a network of depth 3 has 4 levels",
        ),
        ("training.threads=0", r"training\.threads = 0: .*greater than or equal to 1"),
        ("network.dropout=[0, 0, 0, 0, 2]", r"network\.dropout = 2: .*less than 1"),
        ("network=flat", r"network = 'flat'"),
    ],
)
def test_a_bad_override_is_an_error_of_one_line(override: str, message: str) -> None:
    with pytest.raises(NucleusError, match=message) as caught:
        load_recipe("seed", [override])
    assert "\n" not in str(caught.value)


def test_a_recipe_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(NucleusError, match=r"mine\.toml: not valid TOML: 'utf-8' codec"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[training]\nepoch = 3\n",
            r"mine\.toml: unknown key training\.epoch\. Did you mean training\.epochs\?",
        ),
        ("[training]\nepochs = 3\n[trainig]\n", r"unknown key trainig\. Did you mean training"),
        ("[data]\nimage_size = 8\n[training]\nepochs = 1\n", r"data\.image_size = 8"),
        ("[training\n", r"mine\.toml: not valid TOML"),
    ],
)
def test_a_bad_recipe_file_is_an_error_of_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(NucleusError, match=message) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_keys_that_are_not_in_a_recipe_file_keep_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[network]\ndepth = 4\n")
    recipe = load_recipe(str(path))
    assert (recipe.network.depth, recipe.training.epochs) == (4, 50)


def test_a_recipe_file_is_named_after_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nepochs = 3\n")
    recipe = load_recipe(str(path), ["training.seed=4"])
    assert (recipe.name, recipe.training.epochs, recipe.training.seed) == ("mine", 3, 4)


def test_an_unknown_recipe_name_is_an_error_with_the_known_names() -> None:
    with pytest.raises(NucleusError, match=r"no recipe named 'sed'\. Choose from .*quick, seed"):
        load_recipe("sed")


@pytest.mark.parametrize("name", ["mine", "m" * 300, "."])
def test_a_missing_recipe_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(NucleusError, match=rf"{name}\.toml: cannot read the recipe file \("):
        load_recipe(str(tmp_path / f"{name}.toml"))


def test_a_recipe_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe("seed").name = "other"  # type: ignore[misc]


def test_dropout_has_one_value_for_each_level() -> None:
    assert Network(depth=1, dropout=(0, 0.5)).dropout == (0, 0.5)
    with pytest.raises(ValidationError, match="dropout has 2 values, but a network of depth 2"):
        Network(depth=2, dropout=(0, 0.5))


def test_levels_at_half_the_resolution_need_padding() -> None:
    with pytest.raises(ValidationError, match="half_resolution works only with padding = same"):
        Network(half_resolution=True, padding="valid", depth=1, dropout=(0, 0))


def test_the_digest_ignores_the_name_and_the_order_of_keys() -> None:
    seed = load_recipe("seed")
    values = seed.model_dump(mode="json")
    backwards = {k: values[k] for k in reversed(values)} | {"name": "other"}
    backwards["data"] = dict(reversed(values["data"].items()))
    other = parse_recipe(backwards, "here")
    assert other.name != seed.name
    assert other.digest() == seed.digest()
    assert len(seed.digest()) == 64


def test_the_digest_changes_with_every_value() -> None:
    changes = ["training.epochs=51", "inference.cutoff=0.51", "augmentation.zoom_range=0"]
    digests = {load_recipe("seed", [change]).digest() for change in changes}
    assert len(digests | {load_recipe("seed").digest()}) == 4


def test_flat_gives_the_keys_that_overrides_use(tiny: Recipe) -> None:
    flat = tiny.flat()
    assert flat["network.dropout"] == [0.2, 0.2]
    simple = {k: v for k, v in flat.items() if v is not None}
    assert tiny.with_overrides(f"{k}={_toml(v)}" for k, v in simple.items()) == tiny


def test_flatten() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": [3]}}) == {"a": 1, "b.c.d": 2, "b.e": [3]}


def test_differences_are_in_the_order_of_the_recipe() -> None:
    seed = load_recipe("seed")
    other = load_recipe("seed", ["training.optimizer=adam", "data.image_size=128", "name=x"])
    assert recipe_differences(seed, other) == [
        ("name", "seed", "x"),
        ("data.image_size", 256, 128),
        ("training.optimizer", "sgd", "adam"),
    ]
    assert recipe_differences(seed, seed) == []


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["network.padding=valid", "network.half_resolution=false"],
            "data.framing = crop works only with network.padding = same",
        ),
        (
            ["network.depth=5", "network.dropout=[0, 0, 0, 0, 0, 0]"],
            "network.depth = 5 is too deep for data.framing = crop",
        ),
        (["data.framing=resize"], "augmentation.scale_range works only with data.framing = crop"),
        (
            ["data.framing=resize", "augmentation.scale_range=[1, 1]"],
            "inference.scales works only with data.framing = crop",
        ),
        (
            ["data.framing=resize", "augmentation.scale_range=[1, 1]", "inference.scale=2"],
            "inference.scale works only with data.framing = crop, because the recipe resizes",
        ),
        (["data.image_size=100"], "cannot be halved as often .* Use a multiple of 16"),
    ],
)
def test_values_that_contradict_each_other_are_an_error(overrides: list[str], message: str) -> None:
    with pytest.raises(NucleusError, match=message):
        load_recipe("best", overrides)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_written_as_toml_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["training.seed=7"])
    path = tmp_path / f"{name}.toml"
    path.write_text(recipe.to_toml())
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize("run_id", ["1" * 32, "0" * 30 + "12", "12345678e01234567890123456789012"])
def test_a_run_id_of_digits_is_not_a_number(run_id: str) -> None:
    assert load_recipe("quick", [f"training.start_from={run_id}"]).training.start_from == run_id
    quoted = load_recipe("quick", [f"training.start_from='{run_id}'"])
    assert quoted.training.start_from == run_id


def test_a_prediction_changes_only_keys_of_inference() -> None:
    require_inference(["inference.cutoff=0.4", "inference.flips=false"])
    with pytest.raises(NucleusError, match=r"^data\.balance=1: a prediction can only change keys"):
        require_inference(["inference.cutoff=0.4", "data.balance=1"])


@pytest.mark.parametrize("value", [5000 * "9", 3000 * "[" + 3000 * "]", 4000 * "9"])
def test_values_that_are_too_long(tmp_path: Path, value: str) -> None:
    (tmp_path / "mine.toml").write_text(f"[training]\nseed = {value}\n")
    for load in (
        lambda: load_recipe(tmp_path / "mine.toml"),
        lambda: load_recipe("best", [f"training.seed={value}"]),
    ):
        with pytest.raises(NucleusError) as caught:
            load()
        assert "\n" not in str(caught.value)
