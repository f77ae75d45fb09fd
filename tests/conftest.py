"""What several tests share: a store of their own, the command, the smoke reports, a browser."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)     # where the tests run in the background, what they start could ignore Ctrl-C

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from wavescat.cli import main; main()"
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()


def wavescat(*args, store, cwd=ROOT, env=None, **kw):
    "Run the command in a fresh process with a store of its own."
    return subprocess.run([sys.executable, "-c", COMMAND, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "WAVESCAT_RUNS": str(store), **(env or {})}, **kw)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "The smoke studies, run once in a fresh process: the folder of reports, the store, what was printed."
    folder, store = tmp_path_factory.mktemp("reports"), tmp_path_factory.mktemp("runs")
    done = wavescat("run", "all", "--preset", "smoke", "--reports", folder, store=store)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, store, done


@pytest.fixture(scope="session")
def browser():
    "Headless Chromium; without one the tests that need it are skipped, or fail where it is required."
    if CHROMIUM is None:
        problem = "NO BROWSER: install chromium to run the browser tests"
        if os.environ.get("WAVESCAT_REQUIRE_BROWSER"): pytest.fail(problem)
        pytest.skip(problem)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
