"""The documentation: made without the network, whole, and as a reader finds it in a browser."""

import ast
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT

MODULES = sorted(p for p in (ROOT / "wavescat").glob("*/*.py") if p.name != "__init__.py")
LIBRARY = [f"{p.parent.name}/{p.stem}" for p in MODULES]


def public_definitions(path):
    tree = ast.parse(path.read_text())
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [n.name for n in defined if not n.name.startswith("_")]


NOTEBOOKS = sorted((ROOT / "nbs" / "lib").glob("*/*.ipynb"))
LIBRARY_IN_ORDER = [
    f"{p.parent.name.partition('_')[2]}/{p.stem.partition('_')[2]}" for p in NOTEBOOKS
]


def page_of(name):
    "The page of the module that defines a name."
    (found,) = [p for p in MODULES if name in public_definitions(p)]
    return f"lib/{found.parent.name}/{found.stem}.html"


BUILD = """
import socket, sys
def refuse(*args): raise OSError("the documentation asked for the network")
socket.socket.connect = socket.getaddrinfo = refuse
from wavescat.apps.cli import app
from wavescat.apps.docs import build_docs
print(build_docs(sys.argv[1], app))
"""
# what a page shows wrongly: pictures that aren't there, TeX that wasn't set, formulas without a size
# or in the colour of the paper, a page wider than the screen
WRONG = """() => {
  const wrong = [], all = document.querySelectorAll.bind(document)
  for (const img of all("img"))
    if (!(img.complete && img.naturalWidth)) wrong.push("no picture " + img.src.slice(-60))
  const text = document.querySelector("article").cloneNode(true)
  for (const code of text.querySelectorAll("code, pre")) code.remove()
  const raw = text.textContent.replace(/`[^`]*`/g, "").match(/\\$[^$\\n]+\\$|data-held/)
  if (raw) wrong.push("raw " + raw[0])
  for (const svg of all(".math svg")) {
    const box = svg.getBoundingClientRect(), use = svg.querySelector("use, path")
    if (!(box.width > 3 && box.height > 3)) wrong.push("a formula without a size")
    if (getComputedStyle(use).fill !== getComputedStyle(svg).color)
      wrong.push("a formula in a colour of its own")
  }
  const width = document.documentElement.scrollWidth
  if (width > innerWidth) wrong.push("wider than the screen: " + width)
  return wrong
}"""


def _build(folder, root=ROOT):
    return subprocess.run(
        [sys.executable, "-c", BUILD, folder],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site of this checkout, made once in a fresh process that has no network."
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = _build(folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(folder.resolve() / "index.html")
    return folder


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def tab(browser, address):
    "Opens pages; afterwards nothing was asked of another machine, and the console is empty."
    problems, contexts = [], []

    def opened(width=1280, height=900, **kw):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **kw))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on(
            "request",
            lambda r: (
                r.url.startswith((address, "data:", "file:", "about:"))
                or problems.append(f"asked for {r.url}")
            ),
        )
        page.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status} {r.url}"))
        page.on(
            "requestfailed",
            lambda r: r.failure != "net::ERR_ABORTED" and problems.append(f"failed {r.url}"),
        )  # aborted: the reader went on
        page.on(
            "console",
            lambda m: m.type in ("error", "warning") and problems.append(f"console: {m.text}"),
        )
        page.on("pageerror", lambda e: problems.append(f"error: {e}"))
        return page

    yield opened
    for c in contexts:
        c.close()
    assert not problems, problems


def _found(page, query):
    "Search, and the first hit."
    page.locator("label[for=__search]").first.click() if page.viewport_size[
        "width"
    ] < 900 else page.locator("input[name=query]").click()
    page.locator("input[name=query]").press_sequentially(query)
    return page.locator(".md-search-result__link").first


def test_every_notebook_has_its_page(site):
    for name in LIBRARY:
        assert (site / "lib" / f"{name}.html").is_file(), name
    for path in [*ROOT.glob("nbs/studies/*.ipynb"), *ROOT.glob("nbs/demos/*.ipynb")]:
        assert (site / path.relative_to(ROOT / "nbs").with_suffix(".html")).is_file(), path
    for path in ROOT.glob("reports/*/quick.html"):
        assert (site / path.relative_to(ROOT)).is_file() and (
            site / path.relative_to(ROOT)
        ).with_suffix(".json").is_file(), path


def test_what_is_exported_is_described(site):
    "Every public function and class stands on its module's page and in the list of names."
    index = (site / "api.html").read_text()
    for path, name in zip(MODULES, LIBRARY, strict=True):
        page = (site / "lib" / f"{name}.html").read_text()
        for defined in public_definitions(path):
            assert f'id="{defined}"' in page, f"{name}.{defined}"
            assert f'lib/{name}.html#{defined}"' in index, f"{name}.{defined}"
    page = (site / page_of("Scattering2D")).read_text()
    row = "<td><code>L</code></td><td><code>int</code></td><td><code>8</code></td>"
    assert row + "<td>number of orientations</td>" in page


def test_every_command_is_described(site):
    from typer.main import get_command

    from wavescat.apps.cli import app

    page = (site / "command.html").read_text()

    def names(command, words):
        yield " ".join(words)
        for name, sub in getattr(command, "commands", {}).items():
            yield from names(sub, [*words, name])

    commands = [*names(get_command(app), ["wavescat"])]
    assert len(commands) > 15
    for c in commands:
        assert f'id="{c.replace(" ", "-")}"' in page, c


def test_a_reader_finds_a_way(tab, address):
    "From the start to a module, on to the next page, to a name by the search, to its source."
    page = tab()
    page.goto(address)
    assert page.locator("h1").inner_text().startswith("wavescat")
    first, second, third = [n for n in LIBRARY_IN_ORDER if n.startswith("scattering/")][:3]
    menu = page.locator("nav.md-nav--primary")
    menu.locator(f"a[href$='lib/{first}.html']").first.click()
    page.wait_for_url(f"**/lib/{first}.html")
    for following in (second, third):
        page.locator("a.md-footer__link--next").click()
        page.wait_for_url(f"**/lib/{following}.html")
    page.locator("a.md-footer__link--prev").click()
    page.wait_for_url(f"**/lib/{second}.html")
    _found(page, "Scattering2D").wait_for()
    page.locator(".md-search-result__link[href$='#Scattering2D']").first.click()
    page.wait_for_url(f"**/{page_of('Scattering2D')}*#Scattering2D")
    heading = page.locator("#Scattering2D")
    heading.scroll_into_view_if_needed()
    assert heading.inner_text().startswith("Scattering2D")
    page.locator("#Scattering2D ~ p.to-source a").first.click()
    page.locator("details.source[open] code", has_text="class Scattering2D").wait_for(
        state="visible"
    )


def test_search_finds_prose_and_reports(tab, address):
    page = tab()
    for query, goal in {
        "Littlewood": page_of("filter_bank"),
        "seeds_needed": f"{page_of('seeds_needed')}#seeds_needed",
        "wavescat runs compare": "command.html#wavescat-runs-compare",
    }.items():
        page.goto(address + "api.html")
        _found(page, query).wait_for(state="visible")
        page.wait_for_function(
            """goal => [...document.querySelectorAll('.md-search-result__link')]
                .slice(0, 5)
                .some(a => a.href.replace(/[?]h=[^#]*/, '').endsWith(goal))""",
            arg=goal,
        )


def test_search_in_a_page_opened_from_the_disk(tab, site):
    page = tab()
    page.goto((site / page_of("filter_bank")).as_uri())
    _found(page, "Scattering2D").click()
    page.wait_for_url(f"**/{page_of('Scattering2D')}*")
    assert page.evaluate(WRONG) == []


def test_every_page_on_a_phone(tab, address, site):
    "390 pixels wide: pictures and formulas are there, nothing scrolls sideways, links lead somewhere."
    page = tab(390, 800, color_scheme="dark")
    wrong, formulas, pictures, links, anchors = {}, 0, 0, {}, {}
    names = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))
    modules = [n for n in names if n.startswith("lib/")]  # all alike: every eighth is opened
    for name in [n for n in names if n not in modules] + modules[::8]:
        page.goto(address + name)
        if found := page.evaluate(WRONG):
            wrong[name] = found
        formulas += page.locator(".math svg").count()
        pictures += page.locator("article img").count()
        links[name], anchors[name] = page.evaluate(
            """[
                [...new Set([...document.links].map(a => a.href))],
                [...document.querySelectorAll('[id]')].map(e => e.id),
            ]"""
        )
    for name, targets in links.items():
        for place, _, anchor in (
            unquote(t.removeprefix(address)).partition("#")
            for t in targets
            if t.startswith(address)
        ):
            place = place or "index.html"
            if (
                not (site / place).is_file()
                or anchor
                and place in anchors
                and anchor not in anchors[place]
            ):
                wrong.setdefault(name, []).append(f"links to {place}#{anchor}")
    assert not wrong, wrong
    assert sum(t.startswith(address) for targets in links.values() for t in targets) > 1000
    assert formulas > 10 and pictures > 20
    page.goto(address)
    page.locator("label.md-header__button[for=__drawer]").click()
    page.locator("nav.md-nav--primary").get_by_text("Scattering").first.wait_for(state="visible")
    page.goto(address)
    _found(page, "Morlet").click()
    page.wait_for_url("**/lib/**/*.html*")


def test_light_and_dark(tab, address):
    "As the system has it, or as the reader chooses; text stands out from the paper either way."
    page = tab(color_scheme="light")
    page.goto(address + page_of("filter_bank"))
    luminance = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
  const grey = colour => {
    canvas.fillStyle = colour
    canvas.fillRect(0, 0, 1, 1)
    const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data
    return (.3 * r + .59 * g + .11 * b) / 255
  }
  const paragraph = document.querySelector("article p")
  return [
    grey(getComputedStyle(document.body).backgroundColor),
    grey(getComputedStyle(paragraph).color),
  ]
}"""
    paper, _ = page.evaluate(luminance)
    assert paper > 0.9
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
    paper, ink = page.evaluate(luminance)
    assert paper < 0.2 and ink > 0.6
    page.locator("form[data-md-component=palette] label:visible").click()
    page.wait_for_function("document.body.dataset.mdColorScheme === 'default'")


@pytest.mark.parametrize(
    "text, problem",
    {
        "[x](nbs/lib/99_gone.ipynb)": "leads nowhere",
        "[x](#nowhere)": "nowhere",
        "$\\frac{1$": "can't be set",
    }.items(),
    ids=["file", "anchor", "formula"],
)
def test_what_is_broken_is_refused(text, problem, tmp_path):
    "A link or formula that fails ends the building, with a line that names it."
    from wavescat.apps.docs import build_docs

    for path in ROOT.glob("nbs/lib/*/00_*.ipynb"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True)
        copy.write_text(
            json.dumps(
                {"cells": [{"cell_type": "markdown", "metadata": {}, "source": f"# {path.stem}"}]}
            )
        )
    shutil.copytree(ROOT / "nbs" / "site", tmp_path / "nbs" / "site")
    (tmp_path / "reports").mkdir()
    for name in ("CHANGELOG.md", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "README.md").write_text(f"# wavescat\n\n{text}\n")
    with pytest.raises(ValueError, match=problem):
        build_docs(tmp_path / "site", root=tmp_path)


def test_another_folder_is_left_alone(tmp_path):
    from wavescat.apps.docs import build_docs

    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="choose another folder"):
        build_docs(tmp_path)
    assert Path(tmp_path, "thesis.txt").read_text() == "years of work"
