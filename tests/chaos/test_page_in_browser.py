"""The report in a real browser: it is drawn, and requests nothing."""

import json
import os
import shutil
import struct
import subprocess
import zlib

import pytest

from tests.jobs_seen import REPORT
from tfdist.diagnosis.page import page_of

# As root it needs --no-sandbox; the others keep it from looking for its maker's hosts.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    "--hide-scrollbars",
)


@pytest.fixture
def chromium(tmp_path):
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        assert "CI" not in os.environ, "no chromium: apt-get install chromium"
        pytest.skip("needs chromium: apt-get install chromium")

    def run(*arguments):
        command = [path, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
        return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout

    return run


def test_the_page_is_drawn_and_requests_nothing(chromium, tmp_path):
    page, picture, log = (tmp_path / name for name in ("page.html", "page.png", "log.json"))
    html = page_of(REPORT)
    address = "http://127.0.0.1:9/picture"  # so that a request would be seen
    for given, asked in (
        (html.replace("<body>", f"<body><img src={address}>"), [address]),
        (html, []),
    ):
        page.write_text(given, "utf-8")
        shown = chromium("--dump-dom", f"--log-net-log={log}", page.as_uri()).decode()
        assert "STRANDED_AT_BARRIER" in shown
        assert requests(log) == asked
    chromium(f"--screenshot={picture}", "--window-size=1000,1200", page.as_uri())
    width, height, colors = look_at(picture)
    assert (width, height) == (1000, 1200)
    assert colors > 10  # not an empty page


def requests(log):
    """The addresses that the page has asked for; the browser's own requests have no origin."""
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return sorted(
        {
            event["url"]
            for event in events
            if event.get("initiator", "not an origin") != "not an origin"
        }
    )


def look_at(picture):
    """Width, height, and how many colors a PNG has; of 8 bits a channel, as browsers write it."""
    data, place, packed = picture.read_bytes(), 8, b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, height, depth, color = struct.unpack(">IIBB", body[:10])
        elif kind == b"IDAT":
            packed += body
        place += 12 + length
    assert depth == 8
    channels = {2: 3, 6: 4}[color]
    raw, stride = zlib.decompress(packed), 1 + width * channels
    # Filtered bytes, which differ where the picture does.
    rows = (raw[row * stride + 1 : (row + 1) * stride] for row in range(height))
    pixels = {row[x : x + channels] for row in rows for x in range(0, len(row), channels)}
    return width, height, len(pixels)
