"""Networks of the Hugging Face Hub: the real huggingface_hub, and a server of this machine that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from nin_jax.training.pretrained import CARD, CONFIG, FOLDER, WEIGHTS

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FIVE = ROOT / "tests/images/nin.digits-5.png"
COMMIT = hashlib.sha1(b"a commit").hexdigest()  # of `main` and of the tag v1
REPOSITORY = "somebody/nin.digits"


class Hub(BaseHTTPRequestHandler):
    """One repository: what is known of it, its files, and the content of each."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(f"{self.command} {unquote(self.path)}")
        status, kind, content, headers = self.answer(unquote(urlsplit(self.path).path))
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def answer(self, path: str) -> tuple[int, str, bytes, dict[str, str]]:
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/"
        if path in (api, *(f"{api}/revision/{revision}" for revision in ("main", "v1", COMMIT))):
            return self.json({"id": REPOSITORY, "sha": COMMIT})
        if path == f"{api}/tree/{COMMIT}":
            files = [file for file in self.folder.iterdir() if file.is_file()]
            return self.json(
                [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": self.etag(f)} for f in files]
            )
        if path.startswith(resolve) and (file := self.folder / path.removeprefix(resolve)).is_file():
            headers = {"ETag": f'"{self.etag(file)}"', "X-Repo-Commit": COMMIT}
            return 200, "application/octet-stream", file.read_bytes(), headers
        wrong = "RevisionNotFound" if path.startswith(api) else "RepoNotFound"
        return 404, "application/json", b"{}", {"X-Error-Code": wrong}

    @staticmethod
    def json(content: object) -> tuple[int, str, bytes, dict[str, str]]:
        return 200, "application/json", json.dumps(content).encode(), {}

    @staticmethod
    def etag(file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def log_message(self, *_: object) -> None:
        """Nothing: stderr is the tests'."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[type[Hub], str]]:
    """The server, whose repository holds nin.digits and a file that nobody wants, and its address."""
    shutil.copytree(FOLDER / "nin.digits", tmp_path / "repository")
    (tmp_path / "repository/pytorch_model.bin").write_bytes(b"a pickle")

    class This(Hub):
        folder, asked = tmp_path / "repository", []

    with ThreadingHTTPServer(("127.0.0.1", 0), This) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield This, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def predict(hub: str, cache: Path, name: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nin_jax", "predict", str(FIVE), f"--model={name}"]
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    patient = {"HF_HUB_ETAG_TIMEOUT": "300", "HF_HUB_DOWNLOAD_TIMEOUT": "300"}
    env = env | quiet | patient | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub, "HF_HOME": str(cache)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_a_network_of_the_hub_is_fetched_once(
    hub: tuple[type[Hub], str], revision: str, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    """Its three files and nothing else; then it is in the cache, and needs the Hub no more."""
    served, address = hub
    for answers in (address, "http://127.0.0.1:9"):  # where nobody answers
        done = predict(answers, tmp_path / "cache", f"hf-hub:{REPOSITORY}{revision}", clean_env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{FIVE}: 5 ")
    fetched = {line.rpartition("/")[2] for line in served.asked if line.startswith(f"GET /{REPOSITORY}/resolve/")}
    assert fetched == {WEIGHTS, CONFIG, CARD}
    assert any(line.startswith(f"GET /api/models/{REPOSITORY}/revision/v1") for line in served.asked) == bool(revision)


def test_what_the_hub_has_not_or_has_damaged_is_one_line(
    hub: tuple[type[Hub], str], tmp_path: Path, clean_env: dict[str, str]
) -> None:
    served, address = hub
    weights = served.folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    for name, said in {
        REPOSITORY: "model.safetensors is damaged: its SHA-256 is",
        f"{REPOSITORY}@v2": "cannot be fetched: RevisionNotFoundError",
        "nobody/nothing": "cannot be fetched: ",
    }.items():
        done = predict(address, tmp_path / "cache", f"hf-hub:{name}", clean_env)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"nin_jax: --model=hf-hub:{name}: "), done.stderr
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
