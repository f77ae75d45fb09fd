"""What several tests share: a store of their own, the command, the smoke reports, a browser."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

# many tests start processes that compute side by side: with all cores each, they'd wait
os.environ.setdefault("OMP_NUM_THREADS", "1")
# where the tests run in the background, what they start could ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from wavescat.apps.cli import main; main()"
CHROMIUM = next(
    (p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))),
    None,
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def wavescat(command, *more, store, cwd=ROOT, env=None, **kw):
    """Run a command in a fresh process with a store of its own.

    Words are parted at spaces; what may hold a space, such as a path, follows as an argument."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *str(command).split(), *map(str, more)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "WAVESCAT_RUNS": str(store), **(env or {})},
        **kw,
    )


def papermill(study, output, *options, folder):
    "Execute a study's template by papermill's own command, in a folder with a store of its own."
    template = ROOT / "nbs" / "studies" / f"{study}.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", template, output, *options, "--no-progress-bar"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "WAVESCAT_RUNS": str(folder / "runs")},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def pytest_make_parametrize_id(val, argname):
    "Bytes don't name a test: an archive holds its time, and both processes must collect one name."
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Tests that need the smoke studies stay together; notebooks go one by one, others by file."
    from xdist.scheduler import LoadScopeScheduling

    def needing(path):
        return {
            f"{path.name}::{name}"
            for name in re.findall(
                r"^def (test_\w+)\([^)]*\bsmoke\b", path.read_text(encoding="utf-8"), re.M
            )
        }

    smoke = set().union(*map(needing, Path(__file__).parent.glob("test_*.py")))

    class Sharing(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path, _, test = nodeid.partition("::")
            name = Path(path).name
            if f"{name}::{test.partition('[')[0]}" in smoke:
                return "smoke"
            return nodeid if name == "test_notebooks.py" else name

    return Sharing(config, log)


@pytest.fixture(autouse=True)
def _figures_closed():
    "Each test begins without figures of others."
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def _own_networks_forgotten():
    "Each test begins with the package's models only."
    yield
    if "wavescat.models.registry" in sys.modules:
        models = sys.modules["wavescat.models.registry"].MODELS
        for name in [m for m in models if "@" in m]:
            del models[name]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "The smoke studies, run once in a fresh process: the folder of reports, the store, what was printed."
    folder, store = tmp_path_factory.mktemp("reports"), tmp_path_factory.mktemp("runs")
    done = wavescat("run all --preset smoke --reports", folder, store=store)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, store, done


@pytest.fixture(scope="session")
def browser():
    "Headless Chromium; without one the tests that need it are skipped, or fail where it is required."
    if CHROMIUM is None:
        problem = "NO BROWSER: install chromium to run the browser tests"
        if os.environ.get("WAVESCAT_REQUIRE_BROWSER"):
            pytest.fail(problem)
        pytest.skip(problem)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def lab(tmp_path):
    "JupyterLab on localhost over a folder of the test's: the address of a notebook in it."
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "overrides.json").write_text(
        json.dumps(
            {
                "@jupyterlab/apputils-extension:notification": {
                    "fetchNews": "false",
                    "checkForUpdates": False,
                }
            }
        )
    )
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyter",
            "lab",
            "--no-browser",
            "--ip=127.0.0.1",
            "--port=0",
            "--allow-root",
            f"--notebook-dir={tmp_path}",
            "--LabApp.expose_app_in_browser=True",
            f"--LabApp.app_settings_dir={tmp_path / 'settings'}",
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "WAVESCAT_RUNS": str(tmp_path / "runs"),
            "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
            "JUPYTER_DATA_DIR": str(tmp_path / "data"),
            "IPYTHONDIR": str(tmp_path / "ipython"),
        },
    )
    try:
        for line in server.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/lab\?token=\w+", line):
                break
        last = time.monotonic() + 60
        while True:  # it says where it is before it listens there
            try:
                socket.create_connection(("127.0.0.1", int(found[1])), 5).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < last and server.poll() is None, (
                    "JupyterLab doesn't answer"
                )
            time.sleep(0.05)
        yield lambda name: found[0].replace("/lab?", f"/lab/tree/{name}.ipynb?")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)
