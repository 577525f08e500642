from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import ObjectNotFound

from tasks import train


@pytest.mark.parametrize(
    ("device", "capability", "warned"),
    [
        ("cpu:0", (9, 0), True),
        ("cpu:0", None, False),
        ("gpu:0", (9, 0), False),
    ],
)
def test_an_unused_gpu_is_reported(
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


def test_training_continues_without_a_refused_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    shown: list[float] = []

    def update(progress: str, share: float) -> None:
        shown.append(share)
        if share > 10:
            raise ObjectNotFound(ValueError("404"))

    monkeypatch.setattr(train, "update_progress_artifact", update)
    logger = SimpleNamespace(warning=lambda text, error: said.append(text % error))
    follower: Any = SimpleNamespace(progress="an id", logger=logger)
    for share in (10.0, 20.0, 30.0):
        train._Follower._show(follower, share)
    assert shown == [10, 20]
    assert len(said) == 1
    assert said[0].startswith("Prefect no longer shows the progress of the training: ")
