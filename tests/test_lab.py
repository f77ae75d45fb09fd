"""JupyterLab in a real browser: a template opened and run from its menu command, as a person would."""
import json
import os
import re
import signal
import subprocess
import sys
import time

from conftest import ROOT

SMALL = {"L": '"2,4"', "seeds": '"0"', "epochs": "1", "width": "2", "validation": "16", "per_class": "2"}


def test_run_all(browser, tmp_path):
    "Variance, with the cell of parameters edited to be small: every cell runs, figures and tables appear, nothing is asked of another machine."
    nb = json.loads((ROOT / "nbs/studies/variance.ipynb").read_text())
    cell = next(c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", []))
    source = "".join(cell["source"])
    for name, value in SMALL.items(): source = re.sub(rf"^({name}: \w+ = )[^ ]+", rf"\g<1>{value}", source, flags=re.M)
    cell["source"] = source
    (tmp_path / "variance.ipynb").write_text(json.dumps(nb))
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "overrides.json").write_text(json.dumps({"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}))
    server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root", f"--notebook-dir={tmp_path}", "--LabApp.expose_app_in_browser=True",
                               f"--LabApp.app_settings_dir={tmp_path / 'settings'}"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
                              env={**os.environ, "WAVESCAT_RUNS": str(tmp_path / "runs"), "JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_DATA_DIR": str(tmp_path / "data"), "IPYTHONDIR": str(tmp_path / "ipython")})
    try:
        for line in server.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+/lab\?token=\w+", line): break
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        asked = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto(found[0].replace("/lab?", "/lab/tree/variance.ipynb?"))
        page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000)
        page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.ready; await jupyterapp.commands.execute('notebook:run-all-cells'); await jupyterapp.commands.execute('docmanager:save'); }")
        deadline = time.monotonic() + 90
        outputs = []
        while time.monotonic() < deadline:
            outputs = [o for c in json.loads((tmp_path / "variance.ipynb").read_text())["cells"] for o in c.get("outputs", [])]
            if any("application/vnd.wavescat+json" in o.get("data", {}) for o in outputs): break
            time.sleep(.5)
        assert not [o for o in outputs if o["output_type"] == "error"], outputs
        assert any("application/vnd.wavescat+json" in o.get("data", {}) for o in outputs)
        assert sum("<figure" in "".join(o.get("data", {}).get("text/html", "")) for o in outputs) >= 4
        assert [u for u in asked if not u.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))] == []
        assert page.locator("figure img").count() >= 1
        page.close()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)
