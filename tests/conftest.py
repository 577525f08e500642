import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import prefect.main  # noqa: F401  # before Keras: it closes absl's log stream, pytest's own
import pytest
from hypothesis import settings

from nucleus_unet.data.sample import Sample
from nucleus_unet.data.synthetic import write_synthetic
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


os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

PREFIXES = ("PREFECT_", "MLFLOW_", "NUCLEUS_")
ELSEWHERE = """active = "cloud"
[profiles.cloud]
PREFECT_API_URL = "http://127.0.0.1:9/api"
PREFECT_API_KEY = "none"
"""
TINY = (
    "data.image_size=64",
    "network.base_filters=4",
    "network.depth=2",
    "network.dropout=[0, 0, 0.1]",
    "training.epochs=2",
    "training.steps_per_epoch=6",
    "training.batch_size=8",
    "training.keep=last",
    "inference.tune=true",
)


def heed_sigint() -> None:
    """Where the tests run in the background of a shell it is ignored, and would stay so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Place:
    """A home, and raw data: a training set, two samples that are not in it yet, a test set."""

    home: Path
    train: Path
    later: list[Path]
    test: Path
    environment: dict[str, str]

    def start(self, *args: Any, **environment: str) -> subprocess.Popen[str]:
        """Start the command in a session of its own, with no server named."""
        return subprocess.Popen(
            [sys.executable, "-m", "nucleus_cli.main", *map(str, args)],
            env=self.environment | environment,
            cwd=self.home.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_sigint,
        )

    def nucleus(self, *args: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        process = self.start(*args, **environment)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def retraining(self, *args: Any) -> list[Any]:
        """The command for a tiny retraining."""
        overrides = [part for override in TINY for part in ("--set", override)]
        return ["retrain", "--train", self.train, "--recipe", "quick", *overrides, *args]

    def retrain(self, *args: Any) -> subprocess.CompletedProcess[str]:
        """Run a tiny retraining; what does not end well fails the tests that ask for it."""
        done = self.nucleus(*self.retraining(*args))
        assert done.returncode == 0, done.stderr
        return done

    def elsewhere(self, home: Path) -> "Place":
        """The same data with another home."""
        return replace(self, home=home, environment=self.environment | {"NUCLEUS_HOME": str(home)})

    def prefect(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of Prefect's own database."""
        uri = f"{(self.home / 'prefect' / 'prefect.db').as_uri()}?mode=ro"
        with sqlite3.connect(uri, uri=True) as database:
            return list(database.execute(query, values))

    def states(self, flow_run_id: str) -> list[tuple[str, str]]:
        """Task and state name of each task run of a flow run."""
        found = []
        for key, state in self.prefect(
            "select task_key, state_name from task_run where flow_run_id = ?", flow_run_id
        ):
            found.append((key.rpartition("-")[0], state))
        return found

    def leftovers(self) -> list[Path]:
        """What is left of work that did not end."""
        return [p for p in self.home.rglob("*") if p.suffix == ".partial" or p.name[0] == "."]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place to work in, where a Prefect profile that points elsewhere is active."""
    folder = tmp_path_factory.mktemp("place")
    train, test = write_synthetic(folder / "data", train=12, test=3)
    later = sorted(train.iterdir())[-2:]
    (folder / "later").mkdir()
    later = [sample.rename(folder / "later" / sample.name) for sample in later]
    user = folder / "user"
    (user / ".prefect").mkdir(parents=True)
    (user / ".prefect" / "profiles.toml").write_text(ELSEWHERE)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIXES)}
    del environment["TF_CPP_MIN_LOG_LEVEL"]  # a user has not set it
    environment.setdefault("GIT_CONFIG_GLOBAL", str(Path.home() / ".gitconfig"))
    home = folder / "home with %20"  # MLflow takes paths for addresses
    environment |= {"HOME": str(user), "NUCLEUS_HOME": str(home)}
    return Place(home, train, later, test, environment)


@pytest.fixture
def bare(nothing_set: None, tmp_path: Path) -> Path:
    """The home of commands run in this process: no server named, and the variables put back."""
    os.environ["NUCLEUS_HOME"] = str(tmp_path / "home")
    return tmp_path / "home"


def _refused(*args: Any) -> str:
    from click.testing import CliRunner

    from nucleus_cli.main import main

    done = CliRunner().invoke(main, [str(arg) for arg in args])
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Starting ")]
    assert done.exit_code == 2, done.output
    assert len(lines) == 1, done.output
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture
def refused(bare: Path) -> Callable[..., str]:
    """Runs a command that the user must mend; returns its one line of error."""
    return _refused


@dataclass(frozen=True)
class Retrained:
    """A retraining run that has ended, and all that it said."""

    place: Place
    stdout: str
    stderr: str

    @property
    def said(self) -> dict[str, str]:
        """The table at the end, by the first column."""
        rows = self.stdout.partition("The training has finished.\n")[2].splitlines()
        return dict(re.split(r"  +", row, maxsplit=1) for row in rows)

    @property
    def run_id(self) -> str:
        """Its run in MLflow."""
        return self.said["run"]

    @property
    def submission(self) -> Path:
        """What it submits."""
        return Path(self.said["submission"])

    @property
    def client(self) -> Any:
        """Of the MLflow database that it logged to."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self.place.home}/mlflow.db")

    @property
    def artifacts(self) -> Path:
        """The folder of the run's artifacts."""
        run = self.client.get_run(self.run_id)
        return Path(unquote(run.info.artifact_uri.removeprefix("file://")))

    @property
    def model_folder(self) -> Path:
        """The folder of the model that the run logged."""
        [folder] = (
            path.parent
            for path in self.place.home.glob("mlartifacts/models/*/artifacts/MLmodel")
            if self.run_id in path.read_text()
        )
        return folder


@pytest.fixture(scope="session")
def retrained(place: Place) -> Retrained:
    """The first retraining run of the place, with test images."""
    done = place.retrain("--test", place.test)
    return Retrained(place, done.stdout, done.stderr)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server as a process, that can be ended and started again."""

    def __init__(self, command: list[str], url: str, environment: dict[str, str]) -> None:
        self.command, self.url, self.environment = command, url, environment
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.5)
        pytest.fail(f"{self.url} does not answer")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)  # MLflow's parent leaves its workers alone
        self.process.wait()


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts a server: a command made of a port, the path of its API, and its environment."""
    with ExitStack() as stack:

        def start(
            command: Callable[[int], list[str]], api: str, environment: dict[str, str]
        ) -> Server:
            port = free_port()
            server = Server(command(port), f"http://127.0.0.1:{port}{api}", environment)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def servers(place: Any, tmp_path: Path, start_server: Any) -> dict[str, Server]:
    """Both, over SQLite."""
    environment = place.environment | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }

    def mlflow(port: int) -> list[str]:
        store = f"sqlite:///{tmp_path}/mlflow.db"
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(port), "--workers", "1", "--backend-store-uri", store),
            *("--artifacts-destination", str(tmp_path / "artifacts")),
        ]

    def prefect(port: int) -> list[str]:
        # Its pages ask the usual port otherwise.
        url = f"http://127.0.0.1:{port}"
        pages = ("env", f"PREFECT_UI_URL={url}", f"PREFECT_UI_API_URL={url}/api")
        command = (sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1")
        return [*pages, *command, "--port", str(port)]

    return {
        "MLflow": start_server(mlflow, "", environment),
        "Prefect": start_server(prefect, "/api", environment),
    }


class Team:
    """A home that machines share, workers, and what the environment says of the servers."""

    def __init__(self, place: Place, folder: Path, urls: dict[str, str]) -> None:
        self.place, self.folder, self.urls = place.elsewhere(folder / "home"), folder, urls
        self.workers: list[subprocess.Popen[bytes]] = []
        user, _, password = urls.get("PREFECT_API_AUTH_STRING", "").partition(":")
        auth = (user, password) if user else None
        self.client = httpx.Client(base_url=urls["PREFECT_API_URL"], auth=auth)

    def get(self, path: str) -> Any:
        """Ask Prefect's API."""
        return self.client.get(path).raise_for_status().json()

    def post(self, path: str, value: Any) -> Any:
        """Tell Prefect's API."""
        return self.client.post(path, json=value).raise_for_status().json()

    def put(self, path: str, value: Any) -> None:
        """Replace something in Prefect's API."""
        self.client.put(path, json=value).raise_for_status()

    def schedule(self, flow: str, **parameters: Any) -> str:
        """Ask for a run of a deployment at once; returns its id."""
        deployment = self.get(f"deployments/name/{flow}/{flow}")["id"]
        asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.post(f"deployments/{deployment}/create_flow_run", asked)["id"])

    def schedule_training(self, *overrides: str, **parameters: Any) -> str:
        """Ask for a retraining of the place's data with the recipe quick; returns its id."""
        data = [str(self.place.train)]
        return self.schedule(
            "retrain", training_data=data, recipe="quick", overrides=[*overrides], **parameters
        )

    def start(self, module: str, *args: str) -> subprocess.Popen[bytes]:
        """Start a command, named by its module."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *args],
            env=self.place.environment | self.urls,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=heed_sigint,  # a worker ends by it
        )

    def work(self) -> subprocess.Popen[bytes]:
        """Start a worker."""
        self.workers.append(self.start("nucleus_cli.main", "worker"))
        return self.workers[-1]

    def runs(self) -> list[dict[str, Any]]:
        """All flow runs."""
        return self.post("flow_runs/filter", {})

    def wait(self, until: Callable[[], Any]) -> None:
        """Return when something is so."""
        deadline = time.monotonic() + 390
        while not until():
            if time.monotonic() > deadline:
                pytest.fail(f"in vain: {[(r['name'], r['state_name']) for r in self.runs()]}")
            time.sleep(1)


@pytest.fixture
def make_team(place: Any, tmp_path: Path) -> Iterator[Callable[..., Team]]:
    """Makes a team of what the environment says of the servers; its workers end with the test.

    To be asked for after the servers: a worker that ends tells its own.
    """
    with ExitStack() as stack:

        def make(**urls: str) -> Team:
            team = Team(place, tmp_path, urls)
            stack.callback(end, team.workers)
            return team

        def end(workers: list[subprocess.Popen[bytes]]) -> None:
            for worker in workers:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGTERM)
                    worker.wait(60)

        yield make


@pytest.fixture
def team(servers: dict[str, Any], make_team: Any) -> Team:
    """Whose servers are those two."""
    urls = {
        "PREFECT_API_URL": servers["Prefect"].url,
        "MLFLOW_TRACKING_URI": servers["MLflow"].url,
    }
    return make_team(**urls)
