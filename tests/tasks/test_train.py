from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.exceptions import ObjectNotFound

from nucleus_unet.errors import NucleusError
from nucleus_unet.recipe import load_recipe
from tasks import train


@pytest.mark.parametrize(
    ("device", "capability", "warned"),
    [
        ("cpu:0", (9, 0), True),
        ("cpu:0", None, False),
        ("gpu:0", (9, 0), False),
    ],
)
def test_a_gpu_that_is_not_used_is_told(
    device: str,
    capability: tuple[int, int] | None,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "gpu_compute_capability", lambda: capability)
    warning = train.unused_gpu(device, "tensorflow 2.21.0")
    assert (warning is not None) == warned
    assert not warned or "tensorflow 2.21.0 does not use it: run make install" in str(warning)
    assert not warned or "install JAX" in str(train.unused_gpu(device, "jax 0.11.2"))


def test_no_weights_to_start_from() -> None:
    assert train.start_weights_of(load_recipe("quick")) is None


def test_weights_of_the_same_network_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = load_recipe("quick", ["data.image_size=256", "network.dropout=[0, 0, 0, 0]"])
    monkeypatch.setattr(
        train.records, "fetch_model", lambda run_id: (logged, Path(run_id) / "model.keras")
    )
    weights = train.start_weights_of(load_recipe("quick", ["training.start_from=abc"]))
    assert weights == Path("abc/model.keras")


@pytest.mark.parametrize("change", ["base_filters=4", "outputs=borders", "activation=tanh"])
def test_weights_of_another_network_are_refused(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = load_recipe("quick", [f"network.{change}"])
    monkeypatch.setattr(train.records, "fetch_model", lambda run_id: (logged, Path("model.keras")))
    key, _, value = change.partition("=")
    with pytest.raises(
        NucleusError, match=rf"start_from = abc: its network\.{key} is {value}, the"
    ):
        train.start_weights_of(load_recipe("quick", ["training.start_from=abc"]))


def test_a_progress_bar_that_is_refused_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    shown: list[float] = []

    def update(progress: str, share: float) -> None:
        shown.append(share)
        if share > 10:
            raise ObjectNotFound(ValueError("404"))

    monkeypatch.setattr(train, "update_progress_artifact", update)
    logger = SimpleNamespace(warning=lambda text, error: said.append(text % error))
    follower = SimpleNamespace(progress="an id", logger=logger)
    for share in (10.0, 20.0, 30.0):
        train._Follower._show(follower, share)  # type: ignore[arg-type]
    assert shown == [10, 20]
    assert len(said) == 1
    assert said[0].startswith("the progress is not shown in Prefect any more: ")
