import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from nucleus_cli import server
from nucleus_unet.errors import NucleusError

SCRIPT = """
from nucleus_cli import server
url, process = server.start_server()
server.wait_for(url, process, server.log_path())
print(url, flush=True)
input()
"""


@pytest.mark.fault(
    "Security", "a page of another site asks our server, also by DNS rebinding", "it is refused"
)
def test_it_serves_on_loopback_and_ends_with_who_started_it(bare: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    url = parent.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{url}/health").json() is True
    for page, status in (("http://127.0.0.1:4200", 200), ("https://elsewhere.example", 403)):
        asks = {"Origin": page, "Access-Control-Request-Method": "POST"}
        assert httpx.options(f"{url}/deployments/", headers=asks).status_code == status
        assert httpx.post(f"{url}/flows/count", headers={"Origin": page}).status_code == status
    # A page whose name was made to stand for this machine asks without naming another origin.
    for host, status in (("localhost:1", 200), ("elsewhere.example:1", 403), ("", 403)):
        assert httpx.post(f"{url}/flows/count", headers={"Host": host}).status_code == status
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while answers(url) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not answers(url)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1).is_success
    except httpx.HTTPError:
        return False


@pytest.mark.fault(
    "Servers and workers",
    "a server ends during its start",
    "one line that names the log of the server",
)
def test_a_server_that_ended_is_told(bare: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    said = r":9/api ended\. See .*/own-prefect-server\.log\.$"
    with pytest.raises(NucleusError, match=said):
        server.wait_for("http://127.0.0.1:9/api", process, server.log_path())


@pytest.mark.fault(
    "Servers and workers",
    "a server needs minutes for its first start",
    "a line every 30 s, as long as the server lives",
)
def test_a_server_that_starts_slowly_is_waited_for_with_a_word(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "SAY_EVERY_S", 0.3)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    with pytest.raises(NucleusError):
        server.wait_for("http://127.0.0.1:9/api", process, server.log_path())
    said = capsys.readouterr().err.splitlines()
    waits = re.compile(r"waiting for a server to start, since \d+ s: .*/own-prefect-server\.log")
    assert said
    assert all(waits.fullmatch(line) for line in said)
