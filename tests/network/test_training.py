import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from nucleus_unet.data.sample import Sample
from nucleus_unet.engine.events import EVENTS, EventLog, epochs
from nucleus_unet.engine.interruption import StoppedError
from nucleus_unet.engine.isolation import follow
from nucleus_unet.errors import NucleusError
from nucleus_unet.network import batches, checkpoints, journal, training
from nucleus_unet.network.batches import validation_arrays
from nucleus_unet.network.metrics import MaskMeanIoU, ThresholdedMeanIoU
from nucleus_unet.network.training import train_network
from nucleus_unet.recipe import Recipe


class Trained(NamedTuple):
    folder: Path
    events: list[dict[str, Any]]

    def epochs(self) -> list[dict[str, Any]]:
        return [dict(event) for event in epochs(self.events)]


def run(function: str, recipe: Recipe, samples: list[Sample], folder: Path) -> Trained:
    """Train on five samples in a new process, as the flow does."""
    log = EventLog(folder / EVENTS)
    events = follow(function, recipe, samples[:5], samples[5:], folder, poll=log.new)
    return Trained(folder, list(events))


def train_and_be_killed(*args: Any) -> None:
    """Run `train_network`; kill the process after the first checkpoint, before its epoch event."""
    save = checkpoints.save_checkpoint

    def save_and_die(folder: Path, step: int, arrays: Any) -> None:
        save(folder, step, arrays)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_checkpoint = save_and_die
    train_network(*args)


def train_and_be_killed_within_an_epoch(*args: Any) -> None:
    """Run `train_network` with a checkpoint after each step; kill it after step 3 of epoch 2."""
    save = checkpoints.save_checkpoint
    journal.CHECKPOINT_S = 0

    def save_and_die(folder: Path, step: int, arrays: Any) -> None:
        save(folder, step, arrays)
        if step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_checkpoint = save_and_die
    train_network(*args)


def train_and_be_asked_to_stop(*args: Any) -> None:
    """Run `train_network`; send SIGTERM while the second batch is loaded."""
    load, calls = batches.training_view, itertools.count(1)

    def view(*given: Any) -> Any:
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "training_view", view)
        train_network(*args)


@pytest.fixture(scope="module")
def undisturbed(
    tiny: Recipe, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    return run(
        "nucleus_unet.network.training:train_network",
        tiny,
        samples,
        tmp_path_factory.mktemp("train") / "a",
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `train_network` run in this process, where the number of threads is already fixed."""
    keras.utils.clear_session()
    monkeypatch.setattr(
        training.backend, "configure", lambda _, seed, *__, **___: keras.utils.set_random_seed(seed)
    )


def state(folder: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a checkpoint; the history without the values that depend on the clock."""
    found = dict(checkpoints.load_checkpoint(folder).arrays)
    clocks = {"seconds", "images_per_s"}
    history = [
        {key: value for key, value in epoch.items() if key not in clocks}
        for epoch in json.loads(str(found.pop("history")))[0]
    ]
    return found | {"history": np.array(json.dumps(history))}


def assert_same_weights(*paths: Path) -> None:
    models = (keras.models.load_model(path, compile=False) for path in paths)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_equal(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_events_come_in_order(undisturbed: Trained) -> None:
    names = [event["event"] for event in undisturbed.events if event["event"] != "step"]
    # The estimate is reported at step 6, which is in epoch 2.
    assert names == ["start", "epoch", "estimate", "epoch", "epoch", "end"]
    start, *_, end = undisturbed.events
    assert start["parameters"] == 467
    assert {"device", "backend", "cores"} <= start.keys()
    estimate = next(e for e in undisturbed.events if e["event"] == "estimate")
    # 7 of 12 steps are left. An epoch costs 4 steps and its validation: half a batch, at a third of
    # the cost of a step.
    left = (3 - 5 / 4) * (4 + 1 / 6)
    assert estimate["seconds"] == pytest.approx(left * estimate["seconds_per_step"])
    # Two checkpoints (weights, best weights, two moments of Adam, its counter) and the model.
    assert estimate["disk_bytes"] == 4 * (2 * (2 * 467 + 2 * 467 + 1) + 467)
    assert end["peak_memory_bytes"] > 10**8


def test_the_estimate_ignores_the_steps_that_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 100, 200, 300, 400, 402, 500])
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    estimates: list[float] = []
    callback: Any = SimpleNamespace(_step_started=[], _estimate=estimates.append)
    for step in range(7):
        journal.Journal.on_train_batch_begin(callback, step)
    assert estimates == [2.0]


def test_the_fields_of_an_epoch(undisturbed: Trained, tiny: Recipe) -> None:
    epochs = undisturbed.epochs()
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    rates = [epoch["learning_rate"] for epoch in epochs]
    assert rates == pytest.approx([0.0225, 0.0075, 0], abs=1e-8)  # half a cosine from 0.03
    for epoch in epochs:
        assert list(epoch) == [
            *("event", "epoch", "loss", "dice", "mean_iou", "val_loss", "val_dice", "val_mean_iou"),
            *("learning_rate", "seconds", "images_per_s"),
        ]
        assert epoch["images_per_s"] > 0
        assert 0 <= epoch["val_mean_iou"] <= 1
    history, _ = json.loads(str(checkpoints.load_checkpoint(undisturbed.folder).arrays["history"]))
    assert [{"event": "epoch"} | epoch for epoch in history] == epochs


def test_a_finished_training_leaves_two_checkpoints_and_the_model(undisturbed: Trained) -> None:
    names = sorted(re.sub("-[0-9a-f]{16}", "", path.name) for path in undisturbed.folder.iterdir())
    kept = ["checkpoint-000000008.npz", "checkpoint-000000012.npz"]
    assert names == [*kept, "events.jsonl", "model.keras"]


def test_the_model_scores_what_its_best_epoch_scored(
    undisturbed: Trained, tiny: Recipe, samples: list[Sample]
) -> None:
    best = max(undisturbed.epochs(), key=lambda epoch: epoch["val_mean_iou"])
    assert undisturbed.events[-1]["kept_epoch"] == best["epoch"]
    images, masks = validation_arrays(tiny, samples[5:])
    metric = ThresholdedMeanIoU()
    metric.update_state(masks, keras.models.load_model(undisturbed.folder / "model.keras")(images))
    assert float(metric.result()) == pytest.approx(best["val_mean_iou"], abs=1e-5)


@pytest.mark.parametrize(
    ("interrupted", "error", "message", "steps", "epochs"),
    [
        (train_and_be_killed, NucleusError, "was killed", {4}, 0),
        (train_and_be_killed_within_an_epoch, NucleusError, "was killed", {7}, 1),
        (
            train_and_be_asked_to_stop,
            StoppedError,
            r"stopped after \d+ steps\. Run the same command again to continue from there\.$",
            {1, 2, 3},
            0,
        ),
    ],
)
def test_an_interrupted_training_continues_to_the_same_bits(
    undisturbed: Trained,
    tiny: Recipe,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: Callable[..., None],
    error: type[Exception],
    message: str | None,
    steps: set[int],
    epochs: int,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # new processes inherit it
    with pytest.raises(error, match=message):
        run(f"{Path(__file__).stem}:{interrupted.__name__}", tiny, samples, tmp_path)
    recorded = [event["event"] for event in EventLog(tmp_path / EVENTS).new()]
    assert (recorded.count("start"), recorded.count("epoch")) == (1, epochs)
    # The incomplete file of a killed writer is deleted.
    (tmp_path / ".checkpoint-000000009.npz.x").touch()
    stopped = checkpoints.load_checkpoint(tmp_path).step
    assert stopped in steps
    continued = run("nucleus_unet.network.training:train_network", tiny, samples, tmp_path)
    starts = [event["step"] for event in continued.events if event["event"] == "start"]
    assert starts == [0, stopped]
    assert [epoch["epoch"] for epoch in continued.epochs()] == [1, 2, 3]
    after = state(undisturbed.folder)
    assert any("seed_generator" in name for name in after)  # dropout's own state
    assert any(name.startswith("optimizer/") for name in after)
    # The metrics of an interrupted epoch include its first steps.
    assert_equal(state(tmp_path), after)
    assert_same_weights(tmp_path / "model.keras", undisturbed.folder / "model.keras")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.fault(
    "Damaged results",
    "a checkpoint is damaged",
    "a warning; training continues from the one before",
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    undisturbed: Trained, tiny: Recipe, samples: list[Sample], tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    shutil.copytree(undisturbed.folder, folder)
    [last] = folder.glob("checkpoint-000000012-*")
    last.write_bytes(last.read_bytes()[:-1000])
    continued = run("nucleus_unet.network.training:train_network", tiny, samples, folder)
    assert [epoch["epoch"] for epoch in continued.epochs()] == [1, 2, 3]
    [damaged] = [event for event in continued.events if event["event"] == "damaged"]
    assert damaged == {"event": "damaged", "files": [last.name], "step": 8}
    assert_equal(state(folder), state(undisturbed.folder))


@pytest.mark.usefixtures("here")
def test_a_finished_training_does_not_train_again_and_holds_the_gpu(
    undisturbed: Trained,
    tiny: Recipe,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(undisturbed.folder, folder)
    (folder / "model.keras").unlink()
    log = EventLog(folder / EVENTS)
    log.new()
    held: list[bool] = []

    @contextmanager
    def gpu_held(on_wait: Callable[[], None]) -> Iterator[None]:
        on_wait()
        held.append(not (folder / "model.keras").exists())
        yield
        held.append((folder / "model.keras").exists())

    monkeypatch.setattr(training.backend, "gpu_held", gpu_held)
    train_network(tiny, samples[:5], samples[5:], folder)
    assert [event["event"] for event in log.new()] == ["waits", "start", "end"]
    assert held == [True, True]
    assert_equal(state(folder), state(undisturbed.folder))
    assert_same_weights(folder / "model.keras", undisturbed.folder / "model.keras")


@pytest.mark.usefixtures("here")
def test_a_training_starts_from_given_weights_and_stops_early(
    undisturbed: Trained, tiny: Recipe, samples: list[Sample], tmp_path: Path
) -> None:
    # This rate changes no float32 weight: all epochs score the same, so the first is the best.
    still = tiny.with_overrides(
        [
            "training.optimizer=sgd",
            "training.learning_rate=1e-30",
            "training.epochs=9",
            "training.steps_per_epoch=1",
            "training.early_stopping_epochs=2",
        ]
    )
    start = undisturbed.folder / "model.keras"
    train_network(still, samples[:5], samples[5:], tmp_path, start)
    events = EventLog(tmp_path / EVENTS).new()
    epochs = [event for event in events if event["event"] == "epoch"]
    assert len(epochs) == 3
    assert len({epoch["val_mean_iou"] for epoch in epochs}) == 1
    assert events[-1]["kept_epoch"] == 1
    assert_same_weights(tmp_path / "model.keras", start)


@pytest.mark.usefixtures("here")
def test_the_weights_before_the_training_have_their_share(
    undisturbed: Trained, tiny: Recipe, samples: list[Sample], tmp_path: Path
) -> None:
    start = undisturbed.folder / "model.keras"
    for share in (0, 0.25):
        short = tiny.with_overrides(["training.epochs=1", f"training.start_share={share}"])
        train_network(short, samples[:5], samples[5:], tmp_path / str(share), start)
    before, after, mixed = (
        keras.models.load_model(path, compile=False).get_weights()
        for path in (start, tmp_path / "0/model.keras", tmp_path / "0.25/model.keras")
    )
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    for a, b, found in zip(before, after, mixed, strict=True):
        np.testing.assert_allclose(found, 0.25 * a + 0.75 * b, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_epoch_that_is_kept(
    undisturbed: Trained,
    tiny: Recipe,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
) -> None:
    # The first step leaves the weights as they are, the second destroys them.
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1e-30, 1e4])
    monkeypatch.setattr(training, "_optimizer", lambda _: keras.optimizers.SGD(rates))
    two_steps = tiny.with_overrides(
        ["training.epochs=2", "training.steps_per_epoch=1", f"training.keep={keep}"]
    )
    start = undisturbed.folder / "model.keras"
    train_network(two_steps, samples[:5], samples[5:], tmp_path, start)
    events = EventLog(tmp_path / EVENTS).new()
    first, second = (e["val_mean_iou"] for e in events if e["event"] == "epoch")
    assert second < first
    assert events[-1]["kept_epoch"] == (1 if keep == "best" else 2)
    if keep == "best":
        assert_same_weights(tmp_path / "model.keras", start)
    else:
        with pytest.raises(AssertionError):
            assert_same_weights(tmp_path / "model.keras", start)


@pytest.mark.usefixtures("here")
@pytest.mark.fault(
    "Kills and stops",
    "the loss is no number",
    "one line: lower the learning rate",
)
def test_a_training_that_diverges_fails_and_saves_nothing(
    undisturbed: Trained, tiny: Recipe, samples: list[Sample], tmp_path: Path
) -> None:
    wild = tiny.with_overrides(
        ["network.activation=elu", "training.optimizer=sgd", "training.learning_rate=1e38"]
    )
    with pytest.raises(
        NucleusError, match=r"epoch 1: .*Lower training\.learning_rate from 1e\+38\.$"
    ):
        train_network(wild, samples[:5], samples[5:], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {EVENTS}


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("cosine", {0: 2, 4: 1.5, 6: 1, 8: 0.5, 12: 0}), ("constant", {0: 2, 4: 2, 12: 2})],
)
def test_the_schedule(tiny: Recipe, schedule: str, rates: dict[int, float]) -> None:
    overrides = ["learning_rate=2", f"schedule={schedule}", "epochs=3", "steps_per_epoch=4"]
    recipe = tiny.with_overrides(f"training.{override}" for override in overrides)
    optimizer = training._optimizer(recipe.training)
    for step, rate in rates.items():
        optimizer.iterations.assign(step)
        assert float(optimizer.learning_rate) == pytest.approx(rate)


def test_a_killed_training_on_crops_continues_to_the_same_bits(
    crops: Recipe, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run("nucleus_unet.network.training:train_network", crops, samples, tmp_path / "a")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with pytest.raises(NucleusError, match="was killed"):
        run(f"{Path(__file__).stem}:train_and_be_killed", crops, samples, tmp_path / "b")
    run("nucleus_unet.network.training:train_network", crops, samples, tmp_path / "b")
    after = state(undisturbed.folder)
    assert_equal(state(tmp_path / "b"), after)
    assert_same_weights(tmp_path / "b" / "model.keras", undisturbed.folder / "model.keras")


def test_the_validation_scores_the_weights_that_are_kept(
    crops: Recipe, samples: list[Sample], tmp_path: Path
) -> None:
    one = crops.with_overrides(["training.epochs=1"])
    trained = run("nucleus_unet.network.training:train_network", one, samples, tmp_path)
    model = keras.models.load_model(tmp_path / "model.keras", compile=False)
    images, maps = validation_arrays(one, samples[5:])
    metric = MaskMeanIoU()
    metric.update_state(maps, model(images))
    [epoch] = trained.epochs()
    assert float(metric.result()) == pytest.approx(epoch["val_mean_iou"], abs=1e-5)
