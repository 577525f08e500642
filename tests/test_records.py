import re

import pytest

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import Recipe
from nucleus_unet.records import recipe_of


def test_a_logged_recipe(tiny: Recipe) -> None:
    assert recipe_of("abc", tiny.model_dump(mode="json")) == tiny


def test_a_recipe_of_another_version_names_the_way_to_it(tiny: Recipe) -> None:
    values = tiny.model_dump(mode="json")
    values["training"]["ema"] = 0.99
    message = (
        "run abc is of another version of the code (its recipe: no key training.ema), which reads "
        "it: nucleus reproduce abc --in-env | sh"
    )
    with pytest.raises(NucleusError, match=re.escape(message) + "$"):
        recipe_of("abc", values)
