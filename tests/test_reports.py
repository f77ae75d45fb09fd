"""What a person sees: the smoke reports in a real browser, on a desktop and on a phone."""

import json

import pytest

STUDIES = [
    "baseline",
    "biomass",
    "challenge",
    "l_sweep",
    "linear_and_alexnet",
    "parametric",
    "regimes",
    "robustness",
    "tiny_imagenet",
    "transfer",
    "tuned",
    "variance",
    "wytiny",
]
PAGES = [*STUDIES, "filters", "seeing", "speed", "stability", "throughput"]


@pytest.fixture(scope="module")
def visit(browser):
    def open_(path, width):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.asked, page.messages = [], []
        page.on("request", lambda r: page.asked.append(r.url))
        page.on("console", lambda m: page.messages.append(m.text))
        page.on("pageerror", lambda e: page.messages.append(str(e)))
        page.goto(path.as_uri())
        return page

    return open_


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", [*(f"{s}/smoke.html" for s in PAGES), "index.html"])
def test_page(smoke, visit, name, width):
    page = visit(smoke[0] / name, width)
    assert [
        u for u in page.asked if not u.startswith(("data:", "file:"))
    ] == [] and page.messages == []
    assert len([u for u in page.asked if u.startswith("file:")]) == 1, (
        "one file, and nothing beside it"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
        "the page itself doesn't scroll sideways"
    )
    sizes = page.evaluate(
        "[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.alt.length, "
        "i.src.startsWith('data:image/gif')])"
    )
    assert (
        sizes
        and all(
            n >= (150 if film else 600) and 0 < c <= width and alt > 10 for n, c, alt, film in sizes
        )
        and sum(film for *_, film in sizes) == (3 if "filters" in name else "parametric" in name)
    )
    text = page.inner_text("main")
    assert "$" not in text and "Traceback" not in text and "nan" not in text.lower().split()
    page.close()


@pytest.mark.parametrize("study", STUDIES)
def test_report_says_what_it_must(smoke, visit, study):
    page = visit(smoke[0] / study / "smoke.html", 1280)
    text = page.inner_text("main")
    assert all(
        t in text
        for t in (
            "Question.",
            "Protocol.",
            "Expected cost.",
            "Provenance",
            "code version",
            "sha256:",
            f"wavescat run {study} --preset smoke",
        )
    )
    assert page.locator("svg[role=img]").count() >= 1, "mathematics is set"
    page.close()


def test_a_link_of_the_index_leads_to_its_report(smoke, visit):
    page = visit(smoke[0] / "index.html", 1280)
    page.click("a[href='l_sweep/smoke.html'] >> nth=0")
    assert "L-sweep" in page.inner_text("h1")
    page.close()


@pytest.mark.parametrize("study", STUDIES)
def test_results_are_the_evidence(smoke, study):
    "Every run of a page is in its JSON, with where it comes from."
    gave = json.loads((smoke[0] / study / "smoke.json").read_text())
    assert (
        gave["missing"] == 0
        and gave["runs"]
        and gave["command"] == f"wavescat run {study} --preset smoke"
    )
    for r in gave["runs"]:
        assert {
            "experiment",
            "identity",
            "code",
            "packages",
            "data",
            "device",
            "threads",
            "seconds",
            "finished",
            *(
                ("test_rmse", "test_r2")
                if study == "biomass"
                else ("test_accuracy", "last_test_accuracy")
            ),
        } <= set(r) and not r["stale"]
