import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from nucleus_unet.engine.servers import check_servers, is_refusal, raise_if_refused
from nucleus_unet.errors import NucleusError

pytestmark = pytest.mark.usefixtures("nothing_set")


class Health(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path in ("/health", "/api/health") else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Health.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_no_server_is_asked_if_none_is_set(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
    check_servers()
    assert Health.asked == []


@pytest.mark.parametrize(
    ("variable", "example"),
    [
        ("PREFECT_API_URL", "http://HOST:4200/api"),
        ("MLFLOW_TRACKING_URI", "http://HOST:5000 or sqlite:////FOLDER/mlflow.db"),
    ],
)
@pytest.mark.parametrize(
    "address", ["ann:secret@h:4200", "h:5000", "htp://h:1", "http://h:a", "http://[::1"]
)
def test_an_invalid_address(
    variable: str, example: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(NucleusError) as caught:
        check_servers()
    assert str(caught.value) == f"{variable} is not a valid address. Use an address like {example}"


def test_servers_that_respond(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/")
    check_servers()
    assert Health.asked == ["/api/health", "/health"]


def test_a_self_signed_certificate_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect and MLflow verify certificates themselves, with their own settings."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime(2026, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, today, today.replace(2099))
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + made.sign(key, SHA256()).public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    Health.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{server.server_port}")
        check_servers()
        server.shutdown()
    assert Health.asked == ["/health"]


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
@pytest.mark.fault(
    "Servers and workers",
    "a server that is named does not respond",
    "one line: start it, or unset the variable",
)
def test_a_server_that_does_not_respond(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
    with pytest.raises(NucleusError, match=f"^{variable}=http://127.0.0.1:{port} does not respond"):
        check_servers()


def test_the_address_of_another_page_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/ui")
    answer = (
        r"is the address of another server or page \(HTTP 404\)\. "
        r"Use an address like http://HOST:4200/api$"
    )
    with pytest.raises(NucleusError, match=answer):
        check_servers()


def test_only_the_named_servers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    check_servers("MLFLOW_TRACKING_URI")
    with pytest.raises(NucleusError, match=r"127\.0\.0\.1:9/api does not respond \(ConnectError\)"):
        check_servers()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("variable", "login"),
    [
        ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING=USER:PASSWORD"),
        ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ],
)
@pytest.mark.fault(
    "Servers and workers",
    "a log-in is missing or wrong",
    "one line with the variables to set",
)
def test_a_server_that_rejects_the_login(
    variable: str, login: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://host:1")
    with pytest.raises(NucleusError) as caught:
        raise_if_refused(variable, status, ValueError())
    assert str(caught.value) == f"{variable}=http://host:1 rejected the login. Set {login}"
    raise_if_refused(variable, 500, ValueError())


@pytest.mark.parametrize(
    ("status", "refused"),
    [(200, False), (400, True), (404, True), (408, False), (429, False), (499, True), (500, False)],
)
def test_answers_that_a_retry_would_not_change(status: int, refused: bool) -> None:
    assert is_refusal(status) == refused
