import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from nucleus_unet.data.prepared import ImageEntry, Images
from nucleus_unet.recipe import ONLY_PLANE, Recipe
from nucleus_unet.runs import tracking
from nucleus_unet.runs.source import Source

COMMIT = 40 * "c"
OpenRun = Callable[..., AbstractContextManager[tracking.Run]]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow. Copying it is faster than making another one."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Path]:
    """A home with an MLflow database of its own. The checkout seems to have uncommitted changes."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(database, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUCLEUS_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        patch.setattr(tracking, "checkout_source", lambda: Source(COMMIT, "+changed\n"))
        yield home


@pytest.fixture(scope="module")
def client(folder: Path) -> MlflowClient:
    return MlflowClient()


@pytest.fixture(scope="module")
def opened(folder: Path, tiny: Recipe) -> OpenRun:
    """Opens a run, of work of its own if none is named."""

    def opened(
        recipe: Recipe = tiny, note: str = "", work: str = "", **tags: str
    ) -> AbstractContextManager[tracking.Run]:
        return tracking.open_run("retrain", recipe, "cells", tags, note, work or uuid.uuid4().hex)

    return opened


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Images]:
    """Makes a list of prepared images from ids and the digests of their files."""

    def make_images(**digests: str) -> Images:
        return Images(
            entries=tuple(
                ImageEntry(
                    id=id_,
                    digest=f"prepared {id_}",
                    sha256="",
                    source_sha256=digest,
                    height=4,
                    width=6,
                    plane=ONLY_PLANE,
                    source=f"/raw/{id_}.png",
                    pixels_sha256=f"pixels of {digest}",
                    pixel_size_um=None,
                )
                for id_, digest in digests.items()
            )
        )

    return make_images


@pytest.fixture(scope="module")
def read_artifact(client: MlflowClient) -> Callable[[str, str], str]:
    """Reads the text of an artifact where MLflow keeps it."""

    def read_artifact(run_id: str, name: str) -> str:
        uri = client.get_run(run_id).info.artifact_uri.removeprefix("file://")
        return Path(uri, name).read_text()

    return read_artifact
