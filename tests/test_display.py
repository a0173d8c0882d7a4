"""edge-display as a process: who may see it, what it tells browsers, and that a slow one delays no other."""

import asyncio
import contextlib
import math
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np
import pytest
from daemon import run_command
from display_server import DEADLINE_S, DisplayServer, browsing, serving
from small_publisher import ROI, SmallPublisher

from edge.display.server import PAGE
from edge.prediction import State

TOKEN = "0123456789abcdef0123456789abcdef"
ELSEWHERE = "http://elsewhere.example"


@pytest.fixture
def publisher() -> Iterator[SmallPublisher]:
    with SmallPublisher() as publisher:
        yield publisher


@pytest.fixture
def server(publisher: SmallPublisher) -> Iterator[DisplayServer]:
    with serving("--connect", publisher.address) as server:
        publisher.wait_for_subscriptions(3)
        yield server


@pytest.fixture(scope="module")
def lone_server() -> Iterator[DisplayServer]:
    """Return a server whose daemon never comes."""
    with serving("--connect", "tcp://127.0.0.1:9") as server:
        yield server


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisplayServer]:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(f"{TOKEN}\n")
    with serving("--connect", "tcp://127.0.0.1:9", "--token-file", str(path)) as server:
        yield server


def _get(url: str, **options: Any) -> tuple[int, dict[str, str], str]:
    async def get() -> tuple[int, dict[str, str], str]:
        timeout = aiohttp.ClientTimeout(DEADLINE_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, allow_redirects=False, **options) as reply,
        ):
            return reply.status, dict(reply.headers), await reply.text()

    return asyncio.run(get())


def _open_socket(server: DisplayServer, **headers: str) -> int:
    """Return the status that the WebSocket is answered with."""

    async def open_it() -> int:
        try:
            async with browsing(server, **headers):
                return 101
        except aiohttp.WSServerHandshakeError as exc:
            return exc.status

    return asyncio.run(open_it())


def _raw(server: DisplayServer, request: bytes) -> bytes:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), DEADLINE_S) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


@pytest.mark.parametrize(
    "path",
    ["", "healthz", "page/main.js", "page/style.css", "page/nothing.js", "keyframes/1", "keyframes/" + "1" * 5000],
)
def test_every_answer_forbids_foreign_content_frames_and_caches(lone_server: DisplayServer, path: str) -> None:
    _, headers, _ = _get(lone_server.url + path)
    policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_page_says_what_it_is_not_for_and_names_no_other_host() -> None:
    assert "Research use only, not for diagnosis" in (PAGE / "index.html").read_text()
    for path in PAGE.iterdir():
        hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.[a-z]{2,})", path.read_text()))
        assert hosts <= {"www.w3.org"}, path  # the name of SVG, which nobody fetches


@pytest.mark.parametrize(
    "path", ["page/../server.py", "page/%2e%2e/server.py", "page//etc/passwd", "page/", "keyframes/x"]
)
def test_path_outside_the_page_is_not_found(lone_server: DisplayServer, path: str) -> None:
    reply = _raw(
        lone_server, f"GET /{path} HTTP/1.1\r\nHost: {lone_server.address}\r\nConnection: close\r\n\r\n".encode()
    )
    assert reply.split()[1] in (b"403", b"404")


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("localhost:8080", 200), ("[::1]:80", 200), ("elsewhere.example", 403), ("10.0.0.1", 403)],
)
def test_host_without_a_token_must_be_this_machine(lone_server: DisplayServer, host: str, status: int) -> None:
    assert _get(lone_server.url, headers={"Host": host})[0] == status


@pytest.mark.parametrize("host", ["", "[", "a b", "::::", "\x00", "x" * 5000, "127.0.0.1@elsewhere.example"])
def test_host_that_is_none_is_refused_and_harms_nothing(lone_server: DisplayServer, host: str) -> None:
    reply = _raw(lone_server, f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert reply.split()[1] in (b"400", b"403")
    assert _get(f"{lone_server.url}healthz")[0] == 200


@pytest.mark.parametrize("origin", [ELSEWHERE, "null", "http://127.0.0.1:1", "https://localhost"])
def test_socket_of_a_page_from_elsewhere_is_refused(lone_server: DisplayServer, origin: str) -> None:
    assert _open_socket(lone_server, Origin=origin) == 403


def test_socket_of_the_own_page_is_opened(lone_server: DisplayServer) -> None:
    assert _open_socket(lone_server, Origin=lone_server.url.rstrip("/")) == 101


def test_allowed_host_is_served_also_where_the_proxy_asks_in_its_own_name() -> None:
    with serving("--connect", "tcp://127.0.0.1:9", "--allow-host", "Bed7.example") as server:
        assert _get(server.url, headers={"Host": "bed7.example"})[0] == 200
        assert _open_socket(server, Origin="https://bed7.example") == 101
        assert _open_socket(server, Origin="https://bed7.example:8443", Host="bed7.example:8443") == 101
        assert _open_socket(server, Origin=ELSEWHERE) == 403


@pytest.mark.parametrize("path", ["", "live", "healthz", "keyframes/1", "page/main.js", "nothing"])
def test_token_missing_or_wrong_is_refused(token_server: DisplayServer, path: str) -> None:
    assert _get(token_server.url + path)[0] == 401
    assert _get(token_server.url + path, cookies={"edge_display_token": TOKEN[:-1] + "0"})[0] == 401
    status, headers, _ = _get(f"{token_server.url}{path}?token=wrong")
    assert (status, "Set-Cookie" in headers) == (401, False)


def test_token_that_is_no_text_is_refused_and_harms_nothing(token_server: DisplayServer) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: edge_display_token=\xff\xfe\r\nConnection: close\r\n\r\n"
    assert _raw(token_server, request).startswith(b"HTTP/1.1 401 ")


def test_token_once_shown_is_kept_in_a_cookie_that_scripts_cannot_read(token_server: DisplayServer) -> None:
    status, headers, _ = _get(f"{token_server.url}?token={TOKEN}")
    assert (status, headers["Location"]) == (303, "/")
    name, _, rest = headers["Set-Cookie"].partition("=")
    cookie = {name: rest.split(";")[0]}
    assert "HttpOnly" in rest
    assert "SameSite=Strict" in rest
    status, _, page = _get(token_server.url, cookies=cookie)
    assert status == 200
    assert TOKEN not in page
    assert _open_socket(token_server, Cookie=f"{name}={TOKEN}") == 101
    assert _open_socket(token_server, Cookie=f"{name}={TOKEN}", Origin=ELSEWHERE) == 403


def test_token_with_a_foreign_path_leads_nowhere_else(token_server: DisplayServer) -> None:
    request = f"GET //elsewhere.example/?token={TOKEN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert b"elsewhere" not in _raw(token_server, request.encode()).replace(b"//elsewhere.example/?token", b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--http", "0.0.0.0:8080"], "can be reached from other machines; add --token-file"),
        (["--http", "8080"], "--http is '8080'; it must be HOST:PORT"),
        (["--http", "127.0.0.1:99999"], "it must be HOST:PORT"),
        (["--token-file", "/nowhere"], "--token-file /nowhere cannot be read (No such file or directory)"),
        (["--stale-ms", "3000"], "a result must turn stale before it vanishes"),
        (["--allow-host", "a b"], "it must be a host's name alone"),
        (["--allow-host", "https://bed7.example"], "it must be a host's name alone"),
        (["--stale-ms", "nan"], "a result must turn stale before it vanishes"),
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (
            ["--tls-cert", "/nowhere", "--tls-key", "/nowhere"],
            "--tls-cert /nowhere and --tls-key /nowhere cannot be used",
        ),
        (["--connect", "localhost"], "'localhost' is not an address"),
        (["--connect", "ipc:///a", "ipc:///a"], "--connect or --control names an address twice"),
        (["--curve", "/nowhere"], "/nowhere: no such folder"),
        (["--conect", "x"], "unrecognized arguments"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    result = run_command(*arguments, module="edge.display.cli")
    assert result.returncode == 2
    assert re.fullmatch(f"error: .*{re.escape(said)}.*\n", result.stderr)


def test_short_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short")
    result = run_command("--token-file", str(tmp_path / "token"), module="edge.display.cli")
    assert result.returncode == 2
    assert "must hold 16 letters and digits or more" in result.stderr


def test_address_in_use_is_exit_code_5(lone_server: DisplayServer) -> None:
    result = run_command("--http", lone_server.address, "--connect", "tcp://127.0.0.1:9", module="edge.display.cli")
    assert result.returncode == 5
    *_, line = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "cannot be bound (it is in use)" in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("host", "reason"),
    [("a..b", "its name is not known here"), ("192.0.2.1", "Cannot assign requested address")],
)
def test_address_of_no_host_here_is_exit_code_5(tmp_path: Path, host: str, reason: str) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    options = ("--http", f"{host}:8080", "--token-file", str(tmp_path / "token"))
    result = run_command(*options, module="edge.display.cli")
    assert result.returncode == 5
    *_, line = result.stderr.splitlines()
    assert line == f"error: --http {host}:8080 cannot be bound ({reason}); choose another address or port"


def test_tls_serves_the_page_encrypted(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=x",
        "-keyout",
        key,
        "-out",
        cert,
    ]
    subprocess.run(command, check=True, capture_output=True)
    with serving("--connect", "tcp://127.0.0.1:9", "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        assert _get(server.url, ssl=False)[0] == 200


def test_browser_gets_the_picture_with_the_map_of_that_very_frame(
    publisher: SmallPublisher, server: DisplayServer
) -> None:
    async def watch() -> list[tuple[dict[str, Any], list[bytes]]]:
        async with browsing(server) as browser:
            await browser.until(lambda facts: facts["kind"] == "tick")
            views = []
            publisher.send_prediction()  # from now on pictures wait for their prediction
            await browser.until(lambda facts: facts["kind"] == "prediction")
            for seq, index in ((1, 9), (2, 12)):  # window seq to seq + 15: maps 8 and 10 of 16
                publisher.send_frame(index)
                publisher.send_prediction()
                assert publisher.seq == seq + 1
                views.append(await browser.until(lambda facts: facts["kind"] == "view"))
            return views

    weak, strong = asyncio.run(watch())
    assert [weak[0]["index"], strong[0]["index"]] == [9, 12]
    for facts, blobs in (weak, strong):
        assert facts["heat"]["roi_px"] == list(ROI)
        assert facts["frame_px"] == [ROI[0] - 20, ROI[1] - 20, ROI[2] + 40, ROI[3] + 40]
        image = cv2.imdecode(np.frombuffer(blobs[0], np.uint8), cv2.IMREAD_GRAYSCALE)
        assert image.shape == (ROI[3] + 40, ROI[2] + 40)
    maps = [np.frombuffer(blobs[1], np.uint8).reshape(facts["heat"]["hw"]) for facts, blobs in (weak, strong)]
    # the publisher's map 8 has 1.0 in a block, map 10 its peak 4.0 in row 2, column 5 of 7
    assert [round(float(np.median(values[8:32, 32:56]))) for values in maps] == pytest.approx([64, 64], abs=12)
    assert [int(values.max()) > 200 for values in maps] == [False, True]
    row, column = np.unravel_index(maps[1].argmax(), maps[1].shape)
    assert (row // 8, column // 8) == (2, 5)


def test_browser_is_told_how_far_its_clock_is_ahead(lone_server: DisplayServer) -> None:
    async def watch() -> list[tuple[float, float]]:
        async with browsing(lone_server) as browser:
            told = []
            for page_ms in ("nonsense", *["1000"] * 10):
                await browser.bundle()
                told.append((browser.sent_ms, browser.ahead_ms))
                await browser.confirm(page_ms)
            return told

    told = asyncio.run(watch())
    assert math.isnan(told[0][1])
    assert told[-1][1] == pytest.approx(1000 - told[-1][0], abs=2000)


def test_slow_browser_gets_the_newest_alone_and_delays_no_other(
    publisher: SmallPublisher, server: DisplayServer
) -> None:
    is_prediction = lambda facts: facts["kind"] == "prediction"  # noqa: E731

    async def watch() -> tuple[list[int], list[int]]:
        async with browsing(server) as slow, browsing(server) as quick:
            seen_slow, seen_quick = [], []
            for _ in range(2):  # it confirms none of these
                await slow.bundle()
                publisher.send_status(State.LIVE, f"{_}")
            for number in range(30):
                publisher.send_prediction()
                facts, _ = await quick.until(
                    lambda facts, number=number: is_prediction(facts) and facts["seq"] == number
                )
                seen_quick.append(facts["seq"])
            await slow.confirm()
            while not seen_slow:
                seen_slow += [facts["seq"] for facts, _ in await slow.bundle() if is_prediction(facts)]
            return seen_slow, seen_quick

    seen_slow, seen_quick = asyncio.run(watch())
    assert seen_slow == [29]
    assert seen_quick == list(range(30))


def test_browser_that_comes_later_is_told_history_result_and_keyframes(
    publisher: SmallPublisher, server: DisplayServer
) -> None:
    sent = []

    async def watch() -> tuple[dict[str, Any], int, bytes]:
        async with browsing(server) as first:
            for index in range(16):
                publisher.send_frame(index)
            for probability in (0.25, 0.5, 0.875):
                sent.append(publisher.send_prediction(probability, age_ms=400))
            await first.until(lambda facts: facts["kind"] == "prediction" and facts["seq"] == 2)
        async with browsing(server) as second:
            told = {facts["kind"]: facts for facts, _ in await second.bundle()} | {"settings": second.settings}
        (keyframe,) = told["keyframes"]["keyframes"]
        async with aiohttp.ClientSession() as session, session.get(f"{server.url}keyframes/{keyframe['id']}") as reply:
            return told, reply.status, await reply.read()

    told, status, picture = asyncio.run(watch())
    assert [probability for _, probability in told["history"]["past"]] == [0.25, 0.5, 0.875]
    # a result's time is that of its capture, live as well as afterwards: else the line would run backwards
    assert [t_ms for t_ms, _ in told["history"]["past"]] == pytest.approx(
        [header["t_capture_ns"] / 1e6 for header in sent], abs=2
    )
    assert told["prediction"]["t_ms"] == pytest.approx(sent[-1]["t_capture_ns"] / 1e6, abs=2)
    assert (told["prediction"]["seq"], told["prediction"]["probability"]) == (2, 0.875)
    assert told["settings"]["stale_ms"] == 500
    assert told["tick"]["streams"][0]["is_connected"]
    assert status == 200
    assert b"\xff\xd8" in picture[:1000]  # JPEG's first bytes
    assert _get(f"{server.url}keyframes/1")[0] == 404


def test_prediction_that_is_old_when_it_comes_is_told_as_old(publisher: SmallPublisher, server: DisplayServer) -> None:
    async def watch() -> float:
        async with browsing(server) as browser:
            publisher.send_prediction(age_ms=5000)
            facts, _ = await browser.until(lambda facts: facts["kind"] == "prediction")
            t_ms: float = facts["t_ms"]
            return t_ms

    assert time.monotonic() * 1e3 - asyncio.run(watch()) == pytest.approx(5000, abs=4000)


def test_damaged_message_of_a_daemon_harms_nothing(publisher: SmallPublisher, server: DisplayServer) -> None:
    async def watch() -> None:
        async with browsing(server) as browser:
            publisher.socket.send_multipart([b"prediction.main", b"\xc1"])
            publisher.send_frame(0, roi_px=[0, 0, -1, 4])
            publisher.send_prediction(0.5)
            await browser.until(lambda facts: facts["kind"] == "prediction")

    asyncio.run(watch())


def test_browser_that_sends_too_much_is_closed_and_the_others_go_on(lone_server: DisplayServer) -> None:
    async def watch() -> int | None:
        async with browsing(lone_server) as hostile, browsing(lone_server) as other:
            await hostile.socket.send_str("x" * 5000)
            while not hostile.socket.closed:
                await hostile.socket.receive(timeout=DEADLINE_S)
            for _ in range(3):
                await other.until(lambda facts: facts["kind"] == "tick")
            return hostile.socket.close_code

    assert asyncio.run(watch()) == 1009


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_server_and_tells_the_browsers(number: signal.Signals) -> None:
    with serving("--connect", "tcp://127.0.0.1:9") as server:

        async def watch() -> int | None:
            async with browsing(server) as browser:
                server.process.send_signal(number)
                while not browser.socket.closed:
                    await browser.socket.receive(timeout=DEADLINE_S)
                return browser.socket.close_code

        assert asyncio.run(watch()) == 1001
        assert server.process.wait(DEADLINE_S) == 0
        with contextlib.closing(server.process.stderr):
            assert "Traceback" not in server.process.stderr.read()
