import getpass
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from prefect.exceptions import TerminationSignal

from nucleus_cli import prediction, training
from nucleus_cli.main import COMMANDS, main
from nucleus_cli.models import user_name
from nucleus_unet.data.synthetic import write_synthetic

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set of two images."""
    return write_synthetic(tmp_path_factory.mktemp("raw") / "data", train=2, test=1)[0]


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


class Guarded(BaseHTTPRequestHandler):
    """Says to everybody that it is well, and nothing else to those without a log-in."""

    otherwise = 401

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else self.otherwise)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


class Another(Guarded):
    """Is well too, and has none of the pages that it is asked for."""

    otherwise = 404


@contextmanager
def served(answers: type[Guarded]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def guarded() -> Iterator[str]:
    with served(Guarded) as address:
        yield address


@pytest.fixture
def another() -> Iterator[str]:
    with served(Another) as address:
        yield address


def output(*args: Any) -> str:
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    return done.stdout


# What ends with one line, before anything is started


def retrain(path: Path) -> list[Any]:
    return ["retrain", "--train", path, "--recipe", "quick"]


def predict(path: Path) -> list[Any]:
    out = path.parent / "out"
    return ["predict", path, "--model", "0" * 32, "--out", out, "--on-bad", "stop"]


def sweep(path: Path) -> list[Any]:
    return ["sweep", "--train", path, "--over", "training.optimizer=sgd,adam"]


@pytest.mark.parametrize("command", [retrain, predict, sweep, lambda path: ["check", path]])
def test_no_data_at_the_path(refused: Refused, bare: Path, tmp_path: Path, command: Any) -> None:
    assert f"{tmp_path}/nothing: no such file or folder" in refused(*command(tmp_path / "nothing"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [retrain, predict])
def test_what_is_no_zip(refused: Refused, tmp_path: Path, command: Any) -> None:
    path = tmp_path / "stage1_train.zip"
    path.write_bytes(b"PK\3\4 and no more")
    line = refused(*command(path))
    assert f"{path}: not a folder, a complete zip file or an image" in line
    assert line.endswith("Download it again.")
    assert list(tmp_path.iterdir()) == [path]


def test_an_image_with_no_masks_folder(refused: Refused, data: Path, tmp_path: Path) -> None:
    train = shutil.copytree(data, tmp_path / "train")
    sample = min(train.iterdir())
    shutil.rmtree(sample / "masks")
    line = refused(*retrain(train))
    assert f"{train}: image {sample.name} has no masks folder" in line
    assert "<id>/masks/*.png" in line


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), TerminationSignal(15)])
@pytest.mark.fault(
    "Kills and stops",
    "Ctrl-C at any other time",
    "one line that says how to continue; exit code 130",
)
def test_what_is_stopped_says_how_to_continue(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: BaseException
) -> None:
    def stop(*_: Any) -> None:
        raise signal

    monkeypatch.setattr("nucleus_unet.data.check_dataset", stop)
    done = CliRunner().invoke(main, ["check", str(tmp_path)])
    assert done.exit_code == 130
    assert done.stderr == "Stopped. Run the same command again to continue.\n"


def test_a_path_that_is_no_text(bare: Path) -> None:
    done = CliRunner().invoke(main, ["check", "caf\udce9"])
    assert "'caf\\udce9' cannot be printed. Rename it." in done.stderr
    assert done.exit_code == 2


@pytest.mark.parametrize("command", [["check"], ["retrain", "--train"], ["deploy", "--train"]])
def test_an_address_is_no_path(bare: Path, command: list[str]) -> None:
    done = CliRunner().invoke(main, [*command, "s3://bucket/train"])
    assert "s3://bucket/train is an address. Download or mount the data" in done.stderr
    assert done.exit_code == 2


def test_no_test_data_at_the_path(refused: Refused, data: Path, tmp_path: Path) -> None:
    assert "nothing: no such file" in refused(*retrain(data), "--test", tmp_path / "nothing")


def test_a_misspelt_key(refused: Refused, data: Path) -> None:
    line = refused(*retrain(data), "--set", "training.epochz=3")
    assert "training.epochz=3: unknown key. Did you mean training.epochs?" in line


def test_a_misspelt_key_in_a_recipe_file(refused: Refused, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nepochs = 3\nbatchsize = 4\n")
    line = refused("retrain", "--train", data, "--recipe", path)
    assert f"{path}: unknown key training.batchsize. Did you mean training.batch_size?" in line


def test_a_value_that_is_not_allowed(refused: Refused) -> None:
    assert "training.epochs = 0: " in refused("retrain", "--set", "training.epochs=0")


@pytest.mark.parametrize(
    ("over", "answer"),
    [
        ("training.optimizer", "A sweep needs keys with values"),
        ("training.optimizer=sgd,sdg", "training.optimizer = 'sdg': "),
        ("training.optimiser=sgd", "Did you mean training.optimizer?"),
        ("training.epochs=1,2", "A sweep cannot vary training.epochs"),
    ],
)
def test_what_a_sweep_cannot_vary(refused: Refused, data: Path, over: str, answer: str) -> None:
    assert answer in refused("sweep", "--train", data, "--over", over)


def test_a_key_of_a_sweep_given_twice(refused: Refused, data: Path) -> None:
    twice = ("--over", "data.balance=0", "--over", "data.balance=1")
    assert "--over names a key twice" in refused("sweep", "--train", data, *twice)


def test_a_sweep_that_cannot_write_its_winner(refused: Refused, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "winner.toml"
    line = refused("sweep", "--train", data, "--over", "data.balance=0,1", "--out", out)
    assert f"{tmp_path / 'file'} cannot be created" in line
    assert "Choose another file with --out." in line
    line = refused("sweep", "--train", data, "--over", "data.balance=0,1", "--out", tmp_path)
    assert f"{tmp_path} is a folder. Give the name of a file with --out." in line


@pytest.mark.parametrize("option", ["--test", "--recipe", "--set", "--cron"])
def test_a_schedule_without_data(
    refused: Refused, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert "describe a schedule, which needs data. Give --train too." in refused(
        "deploy", option, "x"
    )


@pytest.mark.parametrize("command", [["retrain", "--recipe"], ["recipe", "show"]])
def test_an_unknown_recipe(refused: Refused, command: list[str]) -> None:
    assert "no recipe named 'sead'. Choose from best, finetune, paper, quick, seed" in refused(
        *command, "sead"
    )


def test_training_data_without_training(refused: Refused, data: Path) -> None:
    line = refused("reproduce", "0" * 32, "--train", data)
    assert "--train needs --retrain, because the logged model needs no training data." in line


@pytest.mark.parametrize("option", [["--train", "x"], [], ["--tset", "x"], ["--test", "a\rb"]])
def test_a_refused_script_ends_its_shell_with_2(option: list[str], bare: Path) -> None:
    done = CliRunner().invoke(main, ["reproduce", "0" * 32, "--in-env", *option])
    assert (done.exit_code, done.stdout) == (2, "exit 2\n")


SCRIPT = "# This script repeats run 1. It runs\n# - the source of commit 2\nset -e"


@pytest.mark.parametrize(
    ("answer", "options", "printed"),
    [("y", [], SCRIPT), ("n", [], "exit 2"), (None, [], "exit 2"), (None, ["--yes"], SCRIPT)],
)
@pytest.mark.fault(
    "Security",
    "a run with logged code is repeated with its own source and packages",
    "reproduce --in-env says whose code it is, and asks",
)
def test_logged_code_is_run_only_if_it_is_trusted(
    answer: str | None,
    options: list[str],
    printed: str,
    bare: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "find_mlflow", lambda: None)
    monkeypatch.setattr(training.runs, "reproduction_script", lambda *_: SCRIPT)
    monkeypatch.setattr(training, "_can_be_asked", lambda: answer is not None)
    done = CliRunner().invoke(
        main, ["reproduce", "1", "--in-env", *options], input=f"{answer}\n" if answer else None
    )
    assert done.stdout == f"{printed}\n"
    if not options:
        assert "This script repeats run 1. It runs\n- the source of commit 2\n" in done.stderr
    if answer is None and not options:
        assert "Nobody can be asked whether this code is trusted." in done.stderr


def test_an_answer_to_a_question_that_is_not_asked(refused: Refused) -> None:
    assert "--yes is an answer to --in-env alone" in refused("reproduce", "0" * 32, "--yes")


def test_an_aborted_reproduction_does_not_say_that_it_differs(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "start", interrupted)
    done = CliRunner().invoke(main, ["reproduce", "0" * 32])
    assert (done.exit_code, done.output) == (2, "Aborted!\n")


@pytest.mark.parametrize(
    ("command", "name", "where"),
    [
        (["retrain"], "PREFECT_API_URL", "PREFECT_API_AUTH_STRING=USER:PASSWORD"),
        (["deploy"], "PREFECT_API_URL", "PREFECT_API_AUTH_STRING=USER:PASSWORD"),
        *(
            (
                command,
                "MLFLOW_TRACKING_URI",
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            )
            for command in (["promote", "1", "--why", "x"], ["ui", "0" * 32])
        ),
    ],
)
def test_a_server_that_wants_a_log_in(
    place: Any, guarded: str, command: list[str], name: str, where: str
) -> None:
    done = place.nucleus(*command, **{name: guarded})
    said = done.stderr.removeprefix("Starting Prefect and MLflow ...\n")
    assert said == f"Error: {name}={guarded} rejected the login. Set {where}\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("command", "name"),
    [(["deploy"], "PREFECT_API_URL"), (["promote", "1", "--why", "x"], "MLFLOW_TRACKING_URI")],
)
def test_a_server_of_another_tool(place: Any, another: str, command: list[str], name: str) -> None:
    done = place.nucleus(*command, **{name: another})
    assert (
        f"Error: {name}={another} is the address of another server or page (HTTP 404). "
        "Use an address like "
    ) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 2


def test_workers_of_a_cluster_need_a_server(refused: Refused) -> None:
    os.environ |= {"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:9", "NUCLEUS_TASK_RUNNER": "dask"}
    assert "DASK_SCHEDULER_ADDRESS names workers on other machines" in refused("retrain")


def test_deploy_needs_a_server(refused: Refused) -> None:
    assert "nucleus deploy sets up a Prefect server. Start one and set PREFECT_API_URL" in refused(
        "deploy"
    )


def test_who_has_no_name_is_known_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", no_entry)
    assert user_name() == f"uid {os.getuid()}"


def test_test_data_without_training_data(refused: Refused, data: Path) -> None:
    assert "--test needs --train" in refused("retrain", "--test", data)


@pytest.mark.parametrize("command", [["retrain"], ["ui"]])
def test_a_home_that_cannot_be_written(refused: Refused, bare: Path, command: list[str]) -> None:
    bare.write_text("in the way")
    line = refused(*command)
    assert f"{bare} cannot be created" in line
    assert "Set NUCLEUS_HOME" in line
    assert bare.read_text() == "in the way"


@pytest.mark.parametrize("tool", ["prefect", "mlflow"])
def test_a_port_in_use(
    refused: Refused, bare: Path, taken_port: str, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = str(server.getsockname()[1])
    for name in ("prefect", "mlflow"):
        monkeypatch.setenv(f"NUCLEUS_{name.upper()}_PORT", taken_port if name == tool else free)
    line = refused("ui")
    assert f"Port {taken_port} is in use, so the pages of {tool} cannot be served." in line
    assert f"NUCLEUS_{tool.upper()}_PORT" in line
    assert list(bare.iterdir()) == []


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
def test_a_server_that_does_not_answer(
    refused: Refused, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9/api")
    line = refused("retrain")
    assert f"{variable}=http://127.0.0.1:9/api does not respond" in line
    assert f"Start this server or unset {variable}." in line


def test_an_unknown_run(refused: Refused, data: Path, tmp_path: Path) -> None:
    for command in (predict(data), ["ui", "0" * 32]):
        line = refused(*command)
        assert f"There is no run {'0' * 32} at sqlite:" in line
        assert "Copy a run id from MLflow's pages" in line
    assert not (tmp_path / "out").exists()


def test_an_unknown_data_set(refused: Refused, tmp_path: Path) -> None:
    assert "mnist" in refused("fetch", "mnist", "--to", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [retrain, predict, sweep])
def test_a_truncated_image(refused: Refused, data: Path, tmp_path: Path, command: Any) -> None:
    train = shutil.copytree(data, tmp_path / "train")
    image = next(train.glob("*/images/*.png"))
    image.write_bytes(image.read_bytes()[:-500])
    line = refused(*command(train))
    assert line == f"Error: {image}: the file is truncated. Download or save it again."


def test_a_scale_and_a_diameter(refused: Refused, data: Path) -> None:
    line = refused(*predict(data), "--scale", 2, "--diameter", 20)
    assert line == "Error: Give --scale or --diameter, not both."


def test_results_among_the_images(refused: Refused, data: Path, bare: Path) -> None:
    line = refused("predict", data, "--out", data / "found")
    assert f"The results in {data / 'found'} would mix with the images in {data}." in line
    assert not bare.exists()


# Commands that end with one line after a flow has started


@dataclass(frozen=True)
class Failed:
    """A training on data with a truncated mask."""

    place: Any
    mask: Path
    done: Any

    @property
    def run(self) -> Any:
        """The run in MLflow."""
        client = MlflowClient(tracking_uri=f"sqlite:///{self.place.home}/mlflow.db")
        experiment = client.get_experiment_by_name("nucleus-unet")
        assert experiment
        [run] = client.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")
        return run


@pytest.fixture(scope="module")
def failed(place: Any, tmp_path_factory: pytest.TempPathFactory) -> Failed:
    folder = tmp_path_factory.mktemp("cut")
    here, train = place.elsewhere(folder / "home"), shutil.copytree(place.train, folder / "train")
    mask = next(train.glob("*/masks/*.png"))
    mask.write_bytes(mask.read_bytes()[:-50])
    return Failed(here, mask, here.nucleus("retrain", "--train", train, "--recipe", "quick"))


def error_of(done: Any) -> str:
    """The one line of error among those of Prefect's log."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d\.", line)]
    [line] = [line for line in lines if line.startswith("Error: ")]
    assert lines[-1] == line
    return line


def test_a_truncated_mask_is_reported_once(failed: Failed) -> None:
    line = error_of(failed.done)
    name = failed.mask.name
    assert line.endswith(f"masks/{name}: the file is truncated. Download or save it again.")
    assert failed.done.stderr.count("the file is truncated") == 1
    assert "The training has finished" not in failed.done.stdout


def test_and_leaves_nothing_half_written(failed: Failed) -> None:
    assert failed.place.leftovers() == []


def test_and_a_run_that_says_why(failed: Failed) -> None:
    tags = failed.run.data.tags
    assert f"{failed.mask.name}: the file is truncated" in tags["failure"]
    assert ("merge_masks", "Failed") in failed.place.states(tags["prefect.flow_run_id"])


@pytest.mark.slow
def test_a_run_without_a_model(failed: Failed, tmp_path: Path) -> None:
    run_id, out = failed.run.info.run_id, tmp_path / "out"
    done = failed.place.nucleus("predict", failed.place.test, "--model", run_id, "--out", out)
    assert error_of(done).startswith(f"Error: Run {run_id} has no model")
    assert not out.exists()


# What the small commands print


def test_help_names_every_command() -> None:
    shown = output("--help")
    assert {"retrain", "predict", "reproduce", "diff", "deploy"} < COMMANDS.keys()
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)


def test_score(tmp_path: Path) -> None:
    truth, submission = tmp_path / "solution.csv", tmp_path / "submission.csv"
    truth.write_text("ImageId,EncodedPixels,Height,Width,Usage\na,1 2,1,2,Public\n")
    submission.write_text("ImageId,EncodedPixels\na,1 2\n")
    assert output("score", submission, truth).startswith("score     1.0000  mean average precision")
    table = json.loads(output("score", submission, truth, "--json"))
    assert (table["score"], table["images"], len(table["by_threshold"])) == (1.0, 1, 10)


def test_score_without_a_truth(refused: Refused, tmp_path: Path) -> None:
    submission = tmp_path / "submission.csv"
    submission.write_text("ImageId,EncodedPixels\na,1 2\n")
    assert "nothing: no such file or folder" in refused("score", submission, tmp_path / "nothing")


def test_formats_are_those_that_can_be_written() -> None:
    from nucleus_unet.nuclei import LabelFormat, Outlines

    for name, formats in (("outlines", Outlines), ("label_format", LabelFormat)):
        [option] = [one for one in prediction.predict.params if one.name == name]
        assert isinstance(option.type, click.Choice)
        assert list(option.type.choices) == list(get_args(formats))


def test_version() -> None:
    assert output("--version").endswith("version 0.2.0\n")


def test_recipe_list() -> None:
    names = [line.split()[0] for line in output("recipe", "list").splitlines()]
    assert names == ["best", "finetune", "paper", "quick", "seed"]


def test_recipe_show_spells_keys_as_set_does() -> None:
    shown = output("recipe", "show", "quick", "--set", "training.epochs=3")
    rows = {line.split()[0]: re.split(r"  +", line)[1:] for line in shown.splitlines()}
    assert rows["training.epochs"] == [
        "3",
        "Epochs to train; early stopping may end training sooner",
    ]
    assert rows["training.precision"][0] == "auto"
    assert all(len(row) == 2 for key, row in rows.items() if key != "name")


def test_recipe_diff_shows_what_differs() -> None:
    rows = dict(
        line.split(maxsplit=1) for line in output("recipe", "diff", "seed", "quick").splitlines()
    )
    assert rows["data.image_size"] == "256 → 128"
    assert "data.framing" not in rows
    assert output("recipe", "diff", "quick", "quick") == "The recipes are the same.\n"


def test_check_of_a_whole_data_set(data: Path) -> None:
    rows = re.findall(r"^(images|annotated) +(\d+)$", output("check", data), re.MULTILINE)
    assert rows == [("images", "2"), ("annotated", "2")]


def test_check_ends_with_1_where_something_is_wrong(data: Path, tmp_path: Path) -> None:
    train = shutil.copytree(data, tmp_path / "train")
    image = next(train.glob("*/images/*.png"))
    image.write_bytes(image.read_bytes()[:-500])
    done = CliRunner().invoke(main, ["check", str(train)])
    assert done.exit_code == 1
    assert image.name in done.stdout
    assert "truncated" in done.stdout
