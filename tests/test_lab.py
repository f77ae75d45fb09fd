"""JupyterLab in a real browser: a template opened and run from its menu command, as a person would."""

import json
import re
import time

from conftest import ROOT

SMALL = {
    "L": '"2,4"',
    "seeds": '"0"',
    "epochs": "1",
    "width": "2",
    "validation": "16",
    "per_class": "2",
}


def test_run_all(browser, lab, tmp_path):
    "Variance, made small: every cell runs, figures appear, nothing is asked of another machine."
    nb = json.loads((ROOT / "nbs/studies/variance.ipynb").read_text())
    cell = next(c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", []))
    source = "".join(cell["source"])
    for name, value in SMALL.items():
        source = re.sub(rf"^({name}: \w+ = )[^ ]+", rf"\g<1>{value}", source, flags=re.M)
    cell["source"] = source
    (tmp_path / "variance.ipynb").write_text(json.dumps(nb))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(lab("variance"))
    page.wait_for_function(
        "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
        timeout=60_000,
    )
    page.evaluate(
        """async () => {
            await jupyterapp.shell.currentWidget.sessionContext.ready
            await jupyterapp.commands.execute('notebook:run-all-cells')
            await jupyterapp.commands.execute('docmanager:save')
        }"""
    )
    deadline = time.monotonic() + 90
    outputs = []
    while time.monotonic() < deadline:
        outputs = [
            o
            for c in json.loads((tmp_path / "variance.ipynb").read_text())["cells"]
            for o in c.get("outputs", [])
        ]
        if any("application/vnd.wavescat+json" in o.get("data", {}) for o in outputs):
            break
        time.sleep(0.5)
    assert not [o for o in outputs if o["output_type"] == "error"], outputs
    assert any("application/vnd.wavescat+json" in o.get("data", {}) for o in outputs)
    assert sum("<figure" in "".join(o.get("data", {}).get("text/html", "")) for o in outputs) >= 4
    assert [
        u
        for u in asked
        if not u.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
    ] == []
    assert page.locator("figure img").count() >= 1
    page.close()
