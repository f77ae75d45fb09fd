"""What the studies compute.

The best of a grid is trained anew, weights go on to other classes, corruptions are tested on the right
images, biomass is read in its authors' layout."""

import hashlib
import json
import re

import numpy as np
import pytest
from conftest import ROOT, wavescat


def _gave(smoke, study):
    return json.loads((smoke[0] / study / "smoke.json").read_text())


def test_the_best_of_a_grid_is_trained_anew(smoke):
    """Chosen by validation accuracy alone, the first of equals; as many tries for either model.

    Tested with seeds that the choice hasn't seen."""
    gave = _gave(smoke, "tuned")
    runs = [(r["experiment"], r) for r in gave["runs"]]
    setting = lambda e: (e["lr"], e["weight_decay"], e["epochs"])
    tried = {}
    for e, r in runs:
        if e["seed"] == 100:
            tried.setdefault(e["model"], {})[setting(e)] = r["val_accuracy"]
    assert list(tried) == ["resnet18", "scatresnet18"] and all(len(t) == 4 for t in tried.values())
    order = [(lr, 5e-4, n) for lr in (0.01, 0.1) for n in (1, 2)]
    for model, by in tried.items():
        best = max(order, key=lambda s: (by[s], -order.index(s)))
        assert {e["seed"] for e, r in runs if e["model"] == model and setting(e) == best} >= {
            0,
            1,
            100,
        }
        row = next(
            t
            for t in gave["table"]
            if t[""] == "tuned" and t["model"].startswith("Scat") == (model != "resnet18")
        )
        tested = [
            r["test_accuracy"]
            for e, r in runs
            if e["model"] == model and setting(e) == best and e["seed"] < 100
        ]
        assert (
            (row["learning rate"], row["epochs"]) == (f"{best[0]:g}", str(best[2]))
            and row["test, %"].startswith(f"{np.mean(tested):.1f}")
            and row["seeds"] == 2
        )


def test_transfer_starts_from_what_was_learned(smoke):
    runs = {r["identity"]: r for r in _gave(smoke, "transfer")["runs"]}
    moved = [r for r in runs.values() if r["experiment"]["weights"]]
    assert len(moved) == 4 and len(runs) == 12
    for r in moved:
        source, e = runs[r["experiment"]["weights"]], r["experiment"]
        assert (
            (source["experiment"]["classes"], e["classes"], e["new_head"]) == ("0-3", "4-7", True)
            and source["experiment"]["seed"] == e["seed"]
            and source["experiment"]["model"] == e["model"]
        )
        assert (
            r["weights_from"]
            == hashlib.sha256(
                (smoke[1] / source["identity"] / "weights.safetensors").read_bytes()
            ).hexdigest()[:16]
        )
        history = json.loads((smoke[1] / r["identity"] / "history.json").read_text())
        assert [h["epoch"] for h in history if "val_accuracy" in h] == [1, 2]


def test_corruptions_are_tested_on_the_images_that_the_run_was(smoke, tmp_path):
    "With all test images, what a model says of clean ones is what its run stored."
    done = wavescat(
        "run robustness --preset smoke -p images=800 -p severities=1",
        "--reports",
        tmp_path,
        store=smoke[1],
    )
    assert done.returncode == 0, done.stderr
    gave = json.loads(next((tmp_path / "robustness").glob("*.json")).read_text())
    clean = gave["table"][0]
    for title, model in (("ResNet-18", "resnet18"), ("ScatResNet-18, L=8", "scatresnet18")):
        of_model = [r for r in gave["runs"] if r["experiment"]["model"] == model]
        assert (
            clean[f"{title}: accuracy, %"].split()[0]
            == f"{np.mean([r['test_accuracy'] for r in of_model]):.1f}"
        )
    assert len(gave["table"]) == 1 + 6 + 15 + 1


def test_checkpoints_chosen_by_fewer_images_come_from_the_same_training(smoke):
    runs = [r for r in _gave(smoke, "baseline")["runs"] if r["experiment"]["per_class"] == 2]
    key = lambda r: (r["experiment"]["model"], r["experiment"]["seed"])
    few, many = ({key(r): r for r in runs if r["experiment"]["validation"] == v} for v in (8, 16))
    assert len(few) == len(many) == 4 and all(
        few[k]["last_test_loss"] == many[k]["last_test_loss"]
        and few[k]["train_loss"] == many[k]["train_loss"]
        for k in few
    )


@pytest.fixture(scope="module")
def csiro(tmp_path_factory):
    "A folder in the layout of the CSIRO set: 24 images of 60×40 pixels, 3 states, 6 days."
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "csiro-biomass" / "train").mkdir(parents=True)
    rows = [
        "sample_id,image_path,Sampling_Date,State,Species,Pre_GSHH_NDVI,Height_Ave_cm,target_name,target"
    ]
    for i in range(24):
        green, dead, clover = rng.uniform(0, 60, 3).round(2)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(
            folder / "csiro-biomass" / "train" / f"ID{i}.jpg"
        )
        values = {
            "Dry_Green_g": green,
            "Dry_Dead_g": dead,
            "Dry_Clover_g": clover,
            "GDM_g": green + clover,
            "Dry_Total_g": green + clover + dead,
        }
        rows += [
            f"ID{i}__{t},train/ID{i}.jpg,2015/9/{i % 6 + 1},{('Tas', 'NSW', 'Vic')[i % 3]},Ryegrass,.6,4,"
            f"{t},{v:.2f}"
            for t, v in values.items()
        ]
    (folder / "csiro-biomass" / "train.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_biomass_on_its_authors_layout(csiro, tmp_path):
    env = {"WAVESCAT_DATA": str(csiro), "WAVESCAT_CACHE": str(tmp_path / "cache")}
    done = wavescat(
        (
            "run biomass --preset smoke -p dataset=csiro-biomass -p size=32 "
            "-p splits=stratified,date,state -p target_scale=2000"
        ),
        "--reports",
        tmp_path / "r",
        store=tmp_path / "s",
        env=env,
    )
    assert done.returncode == 0, done.stderr
    page = next((tmp_path / "r" / "biomass").glob("*.html"))
    gave, text = json.loads(page.with_suffix(".json").read_text()), page.read_text()
    table = {(row["split"], row["predictor"]): row for row in gave["table"]}
    assert (
        {split for split, _ in table} == {"stratified", "date", "state"}
        and len(table) == 18
        and len(gave["runs"]) == 12
    )
    assert all(
        f"RMSE {t}, g" in table["state", "the mean"]
        for t in ("Dry Green", "Dry Dead", "Dry Clover", "GDM", "Dry Total")
    )
    for split in ("image by image", "by date", "by state"):
        assert f", split {split} (" in gave["headline"] and re.match(
            "(Not shown to beat the mean|Better than saying the mean|Worse than saying the mean|"
            "Unknown from so few runs), by weighted R²: ",
            gave["headline"],
        ), gave["headline"]
    assert "0.01956" in text and "not whole: 24 of 357" in text and "worse than zero" in text
    for split in (
        "stratified",
        "date",
        "state",
    ):  # errors of the mean in grams are what spreads of 0–60 g allow; saying zero is far worse
        mean, zero = (
            {
                k: float(v.split()[0])
                for k, v in table[split, who].items()
                if k.startswith(("RMSE", "weighted"))
            }
            for who in ("the mean", "zero")
        )
        assert (
            zero["weighted R²"] < 0 < mean["weighted R²"]
            and 10 < mean["RMSE Dry Green, g"] < 30
            and zero["RMSE Dry Total, g"] > 1.5 * mean["RMSE Dry Total, g"]
        )


def test_the_index_answers_first():
    text = (ROOT / "reports" / "index.html").read_text()
    assert (
        0 < text.index("Where does scattering help?") < text.index('<section class="entry">')
        and "The cost" in text
    )


def test_rows_are_compared_seed_by_seed(smoke):
    """The same images and seeds in every row; the differences of the table, by hand.

    The wrong gradient trains other filters, in a network that starts the same."""
    gave = _gave(smoke, "parametric")
    runs = {}
    for r in gave["runs"]:
        e = r["experiment"]
        assert e["seed"] == e["split_seed"]
        runs.setdefault((e["model"], e["learn"], e["engine"]), {})[e["seed"]] = r
    assert len(runs) == 7 and all(set(by) == {0, 1} for by in runs.values())
    for seed in (0, 1):
        assert (
            len({by[seed]["split"] for by in runs.values()}) == 1
            and runs["wrn", None, "wavescat"][0]["split"]
            != runs["wrn", None, "wavescat"][1]["split"]
        )
    right, wrong = (
        runs["scattering-linear", "canonical", engine] for engine in ("wavescat", "svd-gradient")
    )
    assert (
        right[0]["parameters"] == wrong[0]["parameters"]
        and right[0]["train_loss"] != wrong[0]["train_loss"]
    )
    for plain, fixed in zip(
        *(
            runs[model, None, "wavescat"].values()
            for model in ("scattering-linear-no-affine", "scattering-linear")
        )
    ):  # 1 + J·L channels of a grey image at J = 1, L = 4, a scale and a shift each
        assert (
            fixed["parameters"] - plain["parameters"] == 2 * 5
            and fixed["train_loss"] != plain["train_loss"]
        )
    text = (smoke[0] / "parametric" / "smoke.html").read_text()
    for key, other, row in (
        (
            ("scattering-linear", "canonical", "wavescat"),
            ("scattering-linear", None, "wavescat"),
            "TF LS+LL − TF S+LL",
        ),
        (
            ("scattering-linear", "canonical", "svd-gradient"),
            ("scattering-linear", "canonical", "wavescat"),
            "TF LS+LL, wrong gradient − TF LS+LL",
        ),
        (
            ("scattering-linear", "canonical", "no-bound"),
            ("scattering-linear", "canonical", "wavescat"),
            "TF LS+LL, no bound − TF LS+LL",
        ),
        (
            ("scattering-linear-no-affine", None, "wavescat"),
            ("scattering-linear", None, "wavescat"),
            "TF S+LL, no affine − TF S+LL",
        ),
        (("scattering-wrn", None, "wavescat"), ("wrn", None, "wavescat"), "TF S+WRN − WRN only"),
    ):
        expected = np.mean(
            [runs[key][s]["test_accuracy"] - runs[other][s]["test_accuracy"] for s in (0, 1)]
        )
        assert re.search(
            rf"<td>{re.escape(row)}</td>(\s*<td>[^<]*</td>)\s*<td>{re.escape(f'{expected:+.2f}')}</td>",
            text,
        ), (row, expected)
    assert [e["model"] for e in gave["effects"]] == ["TF S+WRN (against WRN only)"]


def test_the_challenge_takes_a_function_of_ones_own(smoke, tmp_path):
    """A file beside the command, with settings of its own; the leaderboard ranks it.

    A file that can't enter is refused in a line and leaves nothing."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def flat(shape, num_classes, width=64):\n"
        "    inputs = shape[0] * shape[1] * shape[2] // 64\n"
        "    head = nn.Linear(inputs, width), nn.Linear(width, num_classes)\n"
        "    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), *head)\n"
    )
    done = wavescat(
        "run challenge --preset smoke",
        "-p",
        "entries=scattering-linear, mine.py:flat width:5 epochs:3",
        "--reports",
        tmp_path / "reports",
        store=smoke[1],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    gave = json.loads(next((tmp_path / "reports" / "challenge").glob("*.json")).read_text())
    mine = [r for r in gave["runs"] if r["experiment"]["model"].startswith("mine.py:flat@")]
    assert len(mine) == 2 and {
        (r["experiment"]["width"], r["experiment"]["epochs"], r["parameters"]) for r in mine
    } == {(5, 3, 16 * 5 + 5 + 6 * 8)}
    scores = [float(row["test, %"].split()[0]) for row in gave["table"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert wavescat("runs show", mine[0]["identity"], store=smoke[1]).returncode == 0
    (tmp_path / "no.py").write_text(
        "from torch import nn\n"
        "def number(shape, num_classes): return 7\n"
        "def broken(shape, num_classes): raise RuntimeError('not\\nthis way')\n"
        "def three(shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 3))\n"
    )
    for entries, message in (
        ("no.py:number", "no.py:number returned int, expected a torch module"),
        (
            "scattering-linear, no.py:broken",
            "no.py:broken doesn't work on images of shape (1, 32, 32): RuntimeError: not this way",
        ),
        (
            "no.py:three",
            "no.py:three makes (2, 3) of two images of shape (1, 32, 32), expected (2, 8): "
            "a score for each of 8 classes",
        ),
        ("scattering-linear, theirs.py:flat", "theirs.py is missing"),
        ("scattering-linear, mine.py:round", "mine.py has no function round"),
        ("scattering-linear, scattering-linear", "is there twice"),
        ("scattering-linear, scattering-linear seed:3", "seed is the study's"),
    ):
        done = wavescat(
            "run challenge --preset smoke",
            "-p",
            f"entries={entries}",
            "--reports",
            tmp_path / "no",
            store=tmp_path / "empty",
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
        )
        assert (
            done.returncode == 2
            and message in done.stderr
            and len(done.stderr.strip().splitlines()) == 1
            and not (tmp_path / "no").exists()
        ), done.stderr
    from wavescat.studies.plans import experiments_of
    from wavescat.studies.presets import resolve

    ours, tables = (set(experiments_of(s, resolve(s, "cpu"))) for s in ("challenge", "parametric"))
    assert len(ours & tables) == 20  # the linear heads are computed once for both


def test_a_challenge_that_every_entry_loses_still_gives_a_page(tmp_path):
    done = wavescat(
        "run challenge --preset smoke -p entries=scattering-linear -p lr=1e38",
        "--reports",
        tmp_path / "reports",
        store=tmp_path / "s",
    )
    gave = json.loads(next((tmp_path / "reports" / "challenge").glob("*.json")).read_text())
    assert (
        done.returncode == 0
        and {r["status"] for r in gave["runs"]} == {"diverged"}
        and gave["headline"] == "Nothing is computed yet."
    ), done.stderr


def test_the_page_says_which_rows_diverged(tmp_path):
    done = wavescat(
        (
            "run parametric --preset smoke -p rows=scattering-linear -p per_class=2 "
            "-p seeds=0,1 -p lr=1e38 -p timed_epochs=0"
        ),
        "--reports",
        tmp_path / "reports",
        store=tmp_path / "s",
    )
    page = next((tmp_path / "reports" / "parametric").glob("*.json"))
    gave = json.loads(page.read_text())
    assert done.returncode == 0 and re.search(
        r"TF S\+LL with [\d,]+ images: 2 of 2 runs diverged, in epoch", gave["headline"]
    ), (done.stderr, gave["headline"])
    assert "<td>0, 2 diverged</td>" in page.with_suffix(".html").read_text()


def test_the_time_of_a_head_whose_first_layer_is_frozen(tmp_path, monkeypatch):
    from wavescat.runs.experiment import experiment
    from wavescat.training.plan import plan

    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path))
    reported = plan(
        [experiment(model="scattering-linear-no-affine", per_class=2, epochs=1)], estimate=True
    )
    assert reported["runs"] == 1 and reported["seconds"] > 0


def test_published_protocols_of_the_other_sets():
    "parametric on KTH-TIPS2-b and COVIDx: splits, seeds, schedules and augmentation, without their images."
    from wavescat.studies.plans import experiments_of
    from wavescat.studies.presets import resolve
    from wavescat.studies.published import published

    rows = "scattering-linear learn:canonical, scattering-wrn"
    seeds = published("parametric")["seeds"]
    kth = experiments_of(
        "parametric",
        resolve(
            "parametric",
            "paper",
            {
                "dataset": "kth-tips2-b",
                "per_class": "all",
                "split_seeds": "0-3",
                "J": 3,
                "rows": rows,
            },
        ),
    )
    assert len(kth) == 2 * 4 * 4 and {(e.seed, e.split_seed) for e in kth} == {
        (s, i) for s in seeds["kth-tips2-b"] for i in range(4)
    }
    assert {
        (e.model, e.split, e.per_class, e.J, e.epochs, e.batch_size, e.lr, e.filter_lr, e.augment)
        for e in kth
    } == {
        ("scattering-linear", "sample", None, 3, 100, 128, 0.001, 0.1, "parametric-kth"),
        ("scattering-wrn", "sample", None, 3, 50, 128, 0.001, None, "parametric-kth"),
    }
    covidx = experiments_of(
        "parametric",
        resolve(
            "parametric",
            "paper",
            {"dataset": "covidx-cxr", "per_class": "50,250,500", "J": 4, "rows": rows},
        ),
    )
    assert len(covidx) == 2 * 3 * 10 and all(
        e.seed == e.split_seed
        and e.split == "stratified"
        and e.J == 4
        and e.augment == "parametric-covidx"
        for e in covidx
    )
    assert {(e.model, e.per_class, e.epochs, e.lr, e.filter_lr) for e in covidx} == {
        ("scattering-linear", n, 400, 0.01, 0.01) for n in (50, 250, 500)
    } | {
        ("scattering-wrn", 50, 400, 0.001, None),
        ("scattering-wrn", 250, 200, 0.01, None),
        ("scattering-wrn", 500, 200, 0.01, None),
    }
    assert {
        e.per_class
        for e in experiments_of(
            "parametric", resolve("parametric", "quick", {"per_class": "2-4,all"})
        )
    } == {2, 3, 4, None}
    with pytest.raises(ValueError, match="no seeds were published for textures"):
        experiments_of("parametric", resolve("parametric", "cpu", {"dataset": "textures"}))
    with pytest.raises(
        ValueError, match=r"no protocol was published for TF S\+LL with per_class=20 on cifar10"
    ):
        experiments_of("parametric", resolve("parametric", "cpu", {"per_class": "20"}))
    with pytest.raises(ValueError, match="epochs must be int, got 'ten'"):
        experiments_of(
            "challenge", resolve("challenge", "cpu", {"entries": "scattering-linear epochs:ten"})
        )
