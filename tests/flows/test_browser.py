"""What people see of a run in both UIs, in a real browser, and what they are told of it."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tasks.rank import NEW_CHAMPION

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PATIENCE_MS = 60_000
BLOCK = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
data = {"subject": "{{subject}}", "body": "{{body}}"}
Webhook(name="team", url="URL", json_data=data).save("team")
"""


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a webhook, and what it was sent."""
    sent: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", sent
        server.shutdown()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of headless Chromium."""
    if not CHROMIUM:
        pytest.skip("Chromium: put it on the PATH")
    quiet = ("no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{switch}" for switch in quiet]
        )
        made = browser.new_page(viewport={"width": 1300, "height": 900})
        made.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield made
        browser.close()


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where pictures of the pages go; NUCLEUS_SCREENSHOTS names another place."""
    folder = Path(os.environ.get("NUCLEUS_SCREENSHOTS", tmp_path / "shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fill_list(page: Page, name: str, items: list[str]) -> None:
    """Add lines to a list in Prefect's form."""
    below = f"//span[.='{name} (Optional)']/following::"
    for number, item in enumerate(items, 1):
        page.locator(f"{below}button[contains(., 'Add item')]").first.click()
        page.locator(f"({below}textarea)[{number}]").fill(item)


def drawn(picture: Locator) -> None:
    """See that a picture has come, and is no broken link."""
    expect(picture).to_be_visible()
    width = "e => e.decode().then(() => e.naturalWidth)"
    assert picture.evaluate(width) > 100


@pytest.mark.slow
def test_a_run_from_the_form_to_both_uis(team: Any, told: Any, page: Page, shots: Path) -> None:
    from mlflow import MlflowClient

    url, sent = told
    code = BLOCK.replace("URL", url)
    environment = team.place.environment | team.urls
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    done = team.place.nucleus("deploy", "--notify", "custom-webhook/absent", **team.urls)
    assert "custom-webhook/absent: the Prefect server has no such block" in done.stderr
    done = team.place.nucleus("deploy", "--notify", "custom-webhook/team", **team.urls)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("automation nucleus: notify of ") == 3
    prefect = team.urls["PREFECT_API_URL"].removesuffix("/api")
    deployment = team.get("deployments/name/retrain/retrain")["id"]
    team.work()

    # The form: each field says what it is for, and the recipes are a menu.
    page.goto(f"{prefect}/deployments/deployment/{deployment}/run")
    expect(page.get_by_text("Changes of the recipe, for example")).to_be_visible()
    fill_list(page, "overrides", ["training.epochs=4", "training.steps_per_epoch=25"])
    page.screenshot(path=shots / "prefect-form.png")
    page.get_by_role("button", name="Submit").click()
    team.wait(lambda: [run["state_name"] for run in team.runs()] == ["Completed"])
    [run] = team.runs()

    # A model of the built-in sample never becomes the champion, so another one is announced.
    payload = json.dumps({"said": "Version 1: It is better.", "url": "http://mlflow/run"})
    event = (
        "event",
        "emit",
        NEW_CHAMPION,
        "--resource-id",
        "nucleus.model.1",
        "--payload",
        payload,
    )
    assert team.start("prefect", *event).wait(60) == 0
    team.wait(lambda: sent)
    assert sent[0]["subject"] == "nucleus: a new champion"
    assert sent[0]["body"] == "Version 1: It is better.\nhttp://mlflow/run"

    # The chain of tasks, and the artifacts with a picture that is drawn.
    page.goto(f"{prefect}/runs/flow-run/{run['id']}")
    page.set_viewport_size({"width": 1300, "height": 1500})
    page.get_by_text("Task Runs", exact=True).click()
    for task in ("ingest training images", "train best", "compare best with the champion"):
        expect(page.get_by_text(task).first).to_be_visible()
    page.screenshot(path=shots / "prefect-run.png")
    page.get_by_text("Artifacts", exact=True).click()
    expect(page.get_by_text("mlflow-run", exact=True)).to_be_visible()
    page.set_viewport_size({"width": 1300, "height": 900})
    wanted = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
    made = {one["key"]: one["id"] for one in team.post("artifacts/filter", wanted)}
    page.goto(f"{prefect}/artifacts/artifact/{made['worst-images']}")
    drawn(page.locator("img[src^='data:image/jpeg']").first)
    page.screenshot(path=shots / "prefect-picture.png")
    page.goto(f"{prefect}/artifacts/artifact/{made['mlflow-run']}")
    link = page.get_by_role("link", name="This run in MLflow").get_attribute("href")

    # MLflow: who made it, from what, the curves, the submission, and the way back.
    page.goto(str(link))
    expect(page.get_by_role("heading", name="retrain best built-in sample 20")).to_be_visible()
    page.get_by_role("button", name="Close").click()  # MLflow's assistant
    page.get_by_text("Show more", exact=True).click()
    drawn(page.locator("img[src*='validation_worst']"))
    page.screenshot(path=shots / "mlflow-run.png")
    back = page.get_by_role("link", name="retrain best, this run in Prefect")
    assert back.get_attribute("href") == f"{prefect}/runs/flow-run/{run['id']}"
    page.get_by_text("Model metrics", exact=True).click()
    page.set_viewport_size({"width": 1300, "height": 1100})
    for curve in ("mean_iou", "val_mean_iou"):
        expect(page.get_by_text(curve, exact=True).last).to_be_visible()
    expect(page.locator(".scatterlayer path.js-line").first).to_be_visible()
    page.screenshot(path=shots / "mlflow-curves.png")
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("submission.csv", exact=True).click()
    expect(page.get_by_text("EncodedPixels").first).to_be_visible()
    page.screenshot(path=shots / "mlflow-submission.png")

    # A run that fails says in both, and to the team, what failed and what to do.
    failed = team.schedule("retrain", training_data=["/nowhere"])
    team.wait(lambda: team.get(f"flow_runs/{failed}")["state_name"] == "Failed")
    team.wait(lambda: len(sent) >= 2)  # with SQLite Prefect may send it twice
    assert sent[1]["subject"].endswith(" failed")
    assert "/nowhere: no such file or folder" in sent[1]["body"]
    assert sent[1]["body"].endswith(f"\n{prefect}/runs/flow-run/{failed}")
    page.goto(f"{prefect}/runs/flow-run/{failed}")
    expect(page.get_by_text("/nowhere: no such file or folder").first).to_be_visible()
    [logged] = MlflowClient(team.urls["MLFLOW_TRACKING_URI"]).search_runs(
        ["1"], f"tags.`prefect.flow_run_id` = '{failed}'"
    )
    page.goto(f"{team.urls['MLFLOW_TRACKING_URI']}/#/experiments/1/runs/{logged.info.run_id}")
    expect(page.get_by_text("/nowhere: no such file or folder").first).to_be_visible()
    assert logged.info.status == "FAILED"
