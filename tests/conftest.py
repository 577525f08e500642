import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from nucleus_unet.dataset.sample import Sample
from nucleus_unet.recipe import Recipe, parse_recipe

settings.register_profile("no deadline", deadline=None)  # other work may be on the machine
settings.load_profile("no deadline")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session", autouse=True)
def a_home_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests write out of the working directory's home."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("NUCLEUS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def nothing_set() -> Iterator[None]:
    """No variable of ours, Prefect's or MLflow's; what is set meanwhile is gone after the test."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("NUCLEUS_", "PREFECT_", "MLFLOW_", "DO_NOT_TRACK")):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def dsb2018() -> Path:
    """The folder of the real stage-1 zips; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[1] / "../shared/data"
    folder = Path(os.environ.get("NUCLEUS_DSB2018", default)).resolve()
    if not (folder / "stage1_train.zip").is_file():
        pytest.skip("real data: set NUCLEUS_DSB2018 to the folder of stage1_train.zip")
    return folder


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """A resolved recipe that trains in a second; its dropout and Adam have state."""
    return parse_recipe(
        {
            "name": "tiny",
            "data": {"image_size": 32},
            "network": {"base_filters": 2, "depth": 1, "dropout": [0.2, 0.2]},
            "training": {
                "epochs": 3,
                "steps_per_epoch": 4,
                "batch_size": 4,
                "optimizer": "adam",
                "learning_rate": 0.03,
                "schedule": "cosine",
                "precision": "float32",
                "threads": 1,
            },
            "inference": {"batch_size": 2},
        },
        "tiny",
    )


@pytest.fixture(scope="session")
def crops(tiny: Recipe) -> Recipe:
    """As `tiny`, on crops at native resolution with two maps."""
    return tiny.with_overrides(
        [
            "data.framing=crop",
            "data.image_size=16",
            "data.normalize=true",
            "data.balance=1",
            "augmentation.scale_range=[0.7, 1.4]",
            "network.outputs=borders",
        ]
    )


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Seven prepared images of bright discs on a dark ground, in three sizes."""
    folder, rng = tmp_path_factory.mktemp("samples"), np.random.default_rng(0)
    made = []
    for index in range(7):
        height, width = ((32, 32), (40, 32), (24, 48))[index % 3]
        y, x = np.mgrid[:height, :width]
        labels = np.zeros((height, width), np.uint16)
        for nucleus, (cy, cx) in enumerate([(8, 8), (16, 20), (9, 24)], 1):
            labels[(y - cy) ** 2 + (x - cx) ** 2 < rng.integers(9, 30)] = nucleus
        image = np.where(labels[..., None] > 0, 200, 30) + rng.integers(0, 25, (height, width, 3))
        kind = "bright-field" if index == 6 else "fluorescence"
        sample = Sample(f"s{index}", folder / f"{index}.npy", folder / f"{index}_labels.npy", kind)
        np.save(sample.image, image.astype(np.uint8))
        np.save(sample.labels, labels)
        made.append(sample)
    return made
