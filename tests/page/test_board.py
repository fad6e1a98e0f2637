"""The page of runs, asked by real requests of a real server."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nin_jax
from nin_jax.data.datasets import synthetic
from nin_jax.page import run_files
from tests.page.conftest import served

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


def ask(address: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """Status and content of an answer."""
    request = urllib.request.Request(address, data, {k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def test_the_runs_and_their_rows_are_those_of_the_files(server: str, runs: Path) -> None:
    status, found = ask(f"{server}/runs")
    assert status == 200
    assert sorted(run["name"] for run in found) == ["seed0", "seed1"]
    for run in found:
        path = runs / run["name"]
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert ask(f"{server}/runs/{run['key']}/rows")[1]["rows"] == rows
        summary = json.loads((path / "summary.json").read_text())
        assert run["state"] == "done"
        assert run["last"]["test"]["error_pct"] == summary["test_error_pct"]
        assert ask(f"{server}/runs/{run['key']}/config")[1]["seed"] == run["name"][-1]


def test_rows_after_a_mark_and_all_of_them_when_a_run_dropped_some(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    rows, mark, everything = run_files.rows(tmp_path)
    assert (rows, everything) == ([{"step": 1}, {"step": 2}], True)
    with open(file, "a") as f:
        f.write('ep": 3}\n')
    assert run_files.rows(tmp_path, mark)[::2] == ([{"step": 3}], False)
    file.with_name("new").write_text('{"step": 1}\n')
    file.with_name("new").replace(file)  # as a resumed run does
    assert run_files.rows(tmp_path, mark)[::2] == ([{"step": 1}], True)
    assert run_files.rows(tmp_path, "../../etc-9")[::2] == ([{"step": 1}], True)


def test_the_time_that_is_left(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"epochs": 10, "batch_size": 100, "dataset": "digits"}')
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 40, "epoch": 4, "split": "train", "loss": 1.0, "error_pct": 5.0, "images_per_s": 50.0}\n'
    )
    line = run_files.overview("k", "n", tmp_path)
    assert line["state"] == "training"
    assert line["seconds_left"] == 6 * 10 * 100 / 50  # six epochs of ten updates of 100 images


def test_the_report_counts_every_image(server: str, runs: Path) -> None:
    key = ask(f"{server}/runs")[1][0]["key"]
    name = next(run["name"] for run in ask(f"{server}/runs")[1] if run["key"] == key)
    status, report = ask(f"{server}/runs/{key}/report")
    assert status == 200, report
    images, labels = synthetic.load("test[:72]")
    named = nin_jax.load(runs / name).logits(images).argmax(1)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, named), 1)
    assert report["confusion"] == expected.tolist()
    summary = json.loads((runs / name / "summary.json").read_text())
    assert report["error_pct"] == pytest.approx(summary["test_error_pct"])
    assert all(m["named"] != m["label"] for m in report["mistakes"])
    assert len(report["mistakes"]) == min(24, (labels != named).sum())
    first = report["mistakes"][0]
    shown = Image.open(io.BytesIO(base64.b64decode(first["image"].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(shown), images[first["index"]])


def test_a_picture_gets_the_answer_of_the_network(server: str, runs: Path) -> None:
    run = ask(f"{server}/runs")[1][0]
    images, _ = synthetic.load("test[:1]")
    status, answer = ask(
        f"{server}/runs/{run['key']}/answer", png(Image.fromarray(images[0])), Content_Type="image/png"
    )
    assert status == 200, answer
    [expected] = nin_jax.load(runs / run["name"]).classify(images)
    assert [guess["name"] for guess in answer["top"]] == [guess.name for guess in expected.top]
    assert answer["top"][0]["probability"] == pytest.approx(expected.probability, abs=1e-6)
    assert answer["top"][0]["evidence"].startswith("data:image/png;base64,")


def bomb() -> bytes:
    """A small file that says it has 50,000 x 50,000 pixels."""
    head = (50_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    chunk = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")  # noqa: E731
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_what_is_no_request_for_this_page_is_refused(server: str) -> None:
    key = ask(f"{server}/runs")[1][0]["key"]
    address = f"{server}/runs/{key}/answer"
    assert ask(address, b"print('no picture')", Content_Type="image/png")[0] == 415
    assert ask(address, png(Image.new("RGB", (8, 8))), Content_Type="text/plain")[0] == 415
    status, answer = ask(address, bomb(), Content_Type="image/png")
    assert status == 415
    assert "pixels" in answer["error"]
    large = http.client.HTTPConnection(server.removeprefix("http://"))
    large.request(
        "POST", f"/runs/{key}/answer", headers={"Content-Type": "image/png", "Content-Length": str(21 * 2**20)}
    )
    assert large.getresponse().status == 413
    large.close()

    def without_a_length() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(2**20)

    endless = http.client.HTTPConnection(server.removeprefix("http://"))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the rest is not even read
        endless.request("POST", f"/runs/{key}/answer", without_a_length(), {"Content-Type": "image/png"})
    assert endless.getresponse().status == 413
    endless.close()
    assert ask(f"{server}/runs", Host="elsewhere.example")[0] == 400
    for path in ("/runs/..%2f..%2fetc%2fpasswd/config", "/../../etc/passwd", "/board/board.py", "/runs/0/config"):
        assert ask(server + path)[0] == 404, path
    assert ask(f"{server}/runs")[0] == 200


def test_one_odd_run_hides_no_other(tmp_path: Path) -> None:
    """Numbers that JSON lacks, text that is none, a name in no encoding, a mark of any length."""
    many = "1" + "0" * 400
    odd = {
        "a": ('{"epochs": NaN, "seed": NaN}', '{"step": 1, "split": "train", "loss": NaN, "epoch": Infinity}\n'),
        "b": (f'{{"epochs": {many}}}', f'{{"step": {many}, "epoch": 1, "split": "train"}}\n'),
        "c": ('{"dataset": "\\ud800"}', '{"step": 1, "split": "\\ud800", "loss": 1e999}\n'),
        "\udcff": ("{}", '{"step": 1, "split": "train", "loss": 0.5}\n'),
    }
    for name, (config, rows) in odd.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        (tmp_path / name / "metrics.jsonl").write_text(rows)
    with served(tmp_path) as server:
        found = ask(f"{server}/runs")[1]
        losses = {run["name"]: run["last"].get("train", {}).get("loss") for run in found}
        assert losses == {"a": None, "b": None, "c": None, "\udcff": 0.5}
        for run in found:
            rows = ask(f"{server}/runs/{run['key']}/rows")[1]
            assert len(rows["rows"]) == 1
            assert ask(f"{server}/runs/{run['key']}/rows?since={rows['mark'].split('-')[0]}-{'9' * 5000}")[1] == rows
            assert ask(f"{server}/runs/{run['key']}/config")[0] == 200


def test_nothing_on_the_page_comes_from_elsewhere(server: str) -> None:
    with urllib.request.urlopen(f"{server}/") as reply:
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
        page = reply.read().decode()
    for name in ("board.css", "board.js"):
        with urllib.request.urlopen(f"{server}/{name}") as reply:
            page += reply.read().decode()
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}


def test_twenty_clients_are_answered_while_a_network_computes(server: str) -> None:
    keys = [run["key"] for run in ask(f"{server}/runs")[1]]
    picture, statuses, waits = png(Image.new("RGB", (32, 32))), [], []

    def client(number: int) -> None:
        for _ in range(3):
            key = keys[number % 2]
            statuses.append(ask(f"{server}/runs/{key}/answer", picture, Content_Type="image/png")[0])
            statuses.append(ask(f"{server}/runs/{key}/rows")[0])

    threads = [threading.Thread(target=client, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        began = time.perf_counter()
        assert ask(f"{server}/runs")[0] == 200
        waits.append(time.perf_counter() - began)
    assert set(statuses) == {200}
    print(
        f"{len(statuses)} answers; the table of runs after {statistics.median(waits):.3f} s, {max(waits):.3f} s at most"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "nowhere is not a directory"),
        (["gs://bucket/runs"], "gs:// is not supported"),
        ([".", "--host=256.0.0.1"], "--host=256.0.0.1 --port=8470"),
        ([".", "--port=65536"], "--port=65536: bind(): port must be 0-65535"),
    ],
)
def test_mistakes_get_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nin_jax.page.board", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
