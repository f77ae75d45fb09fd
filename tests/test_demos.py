"""The notebooks to play with.

The explorer is moved in a real browser, by keyboard and by mouse. The cell that installs the package on
Colab is run without a network. The repository's address is one setting.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from wavescat.apps.notebook_setup import opening_cells, repository_address, write_openings

DEMOS = sorted((ROOT / "nbs" / "demos").glob("*.ipynb"))
# a hash of the pixels of each picture; tried again, since a picture may be replaced while it is read
PICTURES = """async () => {
    const pixels = image => {
        if (!image.complete || !image.naturalWidth) throw 0;
        const canvas = document.createElement('canvas');
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        return context.getImageData(0, 0, canvas.width, canvas.height).data;
    };
    const hash = async data => {
        return new Uint8Array(await crypto.subtle.digest('SHA-256', data)).toString();
    };
    while (true) try {
        const images = [...document.querySelectorAll('.jp-OutputArea-output img')];
        const shown = images.filter(i => i.src.startsWith('blob:')).map(pixels);
        return await Promise.all(shown.map(hash));
    } catch { await new Promise(done => setTimeout(done, 20)); }
}"""
IDLE = """() => {
    const kernel = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.status === 'idle';
}"""
RUN_ALL = """async () => {
    await jupyterapp.shell.currentWidget.sessionContext.ready;
    await jupyterapp.commands.execute('notebook:run-all-cells');
}"""
TWO_PICTURES = """() => {
    const images = [...document.querySelectorAll('.jp-OutputArea-output img')];
    return images.filter(i => i.src.startsWith('blob:') && i.naturalWidth > 100).length === 2;
}"""


@pytest.fixture
def lab(lab, tmp_path):
    "JupyterLab over a folder with the demos and nothing else of the repository."
    for path in DEMOS:
        shutil.copy(path, tmp_path)
    return lab


def test_explorer_in_jupyterlab(browser, lab, tmp_path):
    """Run all cells; every slider changes the pictures, by keyboard and by mouse.

    One's own image is shown, a file that is none is refused. There is no error in the console,
    and nothing is requested from another machine.
    """
    from PIL import Image

    page, asked, complaints = browser.new_page(viewport={"width": 1400, "height": 1300}), [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(lab("filter_explorer"))
    page.wait_for_function(IDLE, timeout=60_000)
    page.evaluate(RUN_ALL)
    handles = page.locator(".noUi-handle")
    handles.nth(5).wait_for(timeout=60_000)
    page.wait_for_function(TWO_PICTURES)

    def settled():
        "The two pictures, (wavelets, photograph), once nothing has changed for a while."
        seen = [page.evaluate(PICTURES)]
        while len(seen) < 4 or any(s != seen[-1] for s in seen[-4:]):
            page.wait_for_timeout(100)
            seen.append(page.evaluate(PICTURES))
        return seen[-1]

    def changes(act, expected):
        "Whether act replaces exactly those pictures that are expected."
        before = settled()
        changed = lambda now: [a != b for a, b in zip(now, before, strict=True)]
        act()
        for _ in range(100):
            if changed(page.evaluate(PICTURES)) == expected:
                break
            page.wait_for_timeout(50)
        return changed(settled()) == expected

    def drag(handle, by):
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + by / 2, y, steps=3)
        page.mouse.move(x + by, y, steps=3)
        page.mouse.up()

    labels = page.locator(
        ".widget-slider .widget-label, .widget-hslider .widget-label"
    ).all_inner_texts()
    assert labels[:6] == [
        "offset of θ, rad",
        "offset of γ",
        "offset of ξ, rad/pixel",
        "offset of σ, pixels",
        "scales J",
        "orientations L",
    ]
    for i in range(6):
        both = [i < 4, True]  # J and L are of the photograph alone
        handle = handles.nth(i)
        value = lambda: float(
            page.locator(".widget-readout").nth(i).inner_text().replace("−", "-")
        )  # what one reads beside it
        start = value()
        assert changes(lambda: handle.press("ArrowRight"), both) and value() > start, labels[i]
        assert changes(lambda: drag(handle, -170), both) and value() < start, labels[i]
    assert changes(lambda: page.get_by_role("button", name="all offsets 0").click(), [True, True])
    assert changes(
        lambda: page.locator(".widget-dropdown select").select_option("retina"), [False, True]
    )

    def choose(file):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name=re.compile("your own")).click()
        chooser.value.set_files(file)

    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((300, 200)).save(out, "png")
    (tmp_path / "mine.png").write_bytes(out.getvalue())
    (tmp_path / "notes.png").write_text("no image")
    assert changes(lambda: choose(tmp_path / "mine.png"), [False, True])
    assert changes(lambda: choose(tmp_path / "notes.png"), [False, False])
    page.get_by_text("notes.png can't be read as an image: choose a PNG or JPEG file").wait_for(
        timeout=5000
    )
    if folder := os.environ.get("WAVESCAT_SCREENSHOTS"):
        page.locator(".widget-readout").first.scroll_into_view_if_needed()
        page.screenshot(path=Path(folder) / "explorer.png")
    assert complaints == []
    assert [
        u
        for u in asked
        if not u.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
    ] == []
    page.close()


def _environment(folder):
    "An environment with what is installed here, but for wavescat: links, and a pip of its own."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"_?wavescat|_*editable", path.name):
            (site / path.name).symlink_to(path)
    return folder / "bin" / "python"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_install_cell_offline(tmp_path):
    """Without wavescat and without a network, the first cell installs the wheel beside the notebook.

    Every cell after it runs in a kernel there.
    """
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            tmp_path / "dist",
            ROOT,
        ],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    python, folder = _environment(tmp_path / "env"), tmp_path / "content"
    folder.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "JUPYTER_PATH": str(tmp_path / "none"),
        "JUPYTER_DATA_DIR": str(tmp_path / "none"),
        "MPLBACKEND": "",
    }
    run = lambda code, **kw: subprocess.run(
        [python, "-c", code],
        cwd=folder,
        env={**env, **kw},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "No module named 'wavescat'" in run("import wavescat").stderr
    install = nbformat.read(ROOT / "nbs/demos/filter_explorer.ipynb", 4).cells[1].source
    failed = run(install)
    assert failed.returncode and "wavescat" in failed.stderr  # no wheel, no index: pip says so
    wheel = Path(shutil.copy(next((tmp_path / "dist").glob("*.whl")), folder))
    shutil.copy(ROOT / "nbs/demos/filter_explorer.ipynb", folder)
    execute = (
        "import nbformat; from nbclient import NotebookClient; "
        "nb = nbformat.read('filter_explorer.ipynb', 4); "
        "NotebookClient(nb, timeout=100).execute(); print(nb.cells[-2].outputs)"
    )
    done = run(execute)
    assert done.returncode == 0 and "application/vnd.jupyter.widget-view+json" in done.stdout, (
        done.stderr[-3000:]
    )
    where = run("import wavescat.apps.explorer as e; print(e.__file__)").stdout
    assert str(tmp_path / "env") in where
    again = run(install.replace("subprocess.run(", "raise SystemExit("))  # installed: nothing to do
    assert again.returncode == 0 and wheel.is_file()


@pytest.mark.parametrize("path", DEMOS, ids=lambda p: p.stem)
def test_demo_form(path):
    """Without outputs, and with the first cells that the repository's address gives.

    Nothing is read from the repository, and nothing is requested from the network.
    """
    nb = nbformat.read(path, 4)
    link, install = opening_cells(path.stem, repository_address(ROOT))
    first = nb.cells[0].source
    advice = "run wavescat.apps.notebook_setup.write_openings"
    assert nb.cells[1].source == install, advice
    assert ("colab" in first.lower()) == bool(link) and first.endswith(link), advice
    assert not any(c.get("outputs") or c.get("execution_count") for c in nb.cells)
    assert set(nb.metadata) == {"kernelspec"}
    rest = "\n".join(c.source for c in nb.cells[2:])
    assert not re.search(r"https?://|open\(|\.\./|nbs/", rest)


def test_address_is_one_setting(tmp_path):
    "Set, every demo gets its link and installs from there; taken away, they are as before, to the byte."
    shutil.copytree(ROOT / "nbs" / "demos", tmp_path / "nbs" / "demos")
    project = (ROOT / "pyproject.toml").read_text()
    without = re.sub(r"^\[project\.urls\]\n(\w.*\n)*", "", project, flags=re.M)
    demos = sorted((tmp_path / "nbs" / "demos").glob("*.ipynb"))
    (tmp_path / "pyproject.toml").write_text(without)
    write_openings(tmp_path)
    before = [p.read_text() for p in demos]
    (tmp_path / "pyproject.toml").write_text(
        without + '\n[project.urls]\nSource = "https://github.com/someone/somewhere.git"\n'
    )
    assert write_openings(tmp_path) == demos and write_openings(tmp_path) == []
    for path in demos:
        cells = nbformat.read(path, 4).cells
        assert (
            f"https://colab.research.google.com/github/someone/somewhere/blob/main/nbs/demos/{path.name})"
            in cells[0].source
            and 'git+https://github.com/someone/somewhere"' in cells[1].source
        )
    (tmp_path / "pyproject.toml").write_text(without)
    write_openings(tmp_path)
    assert [p.read_text() for p in demos] == before
    (tmp_path / "pyproject.toml").write_text(
        without + '\n[project.urls]\nSource = "git@somewhere"\n'
    )
    with pytest.raises(ValueError, match="begins with https://"):
        write_openings(tmp_path)


def test_what_a_demo_needs_is_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {"ipywidgets", "matplotlib"} <= {re.match(r"[\w-]+", d)[0] for d in extras["demos"]}
