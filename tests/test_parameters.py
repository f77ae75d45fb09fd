"""Settings and parameters, whoever gives them: YAML, JSON, a shell, papermill, a cell, a command line."""

import ast
import json
import re
import time

import pytest
from conftest import papermill, wavescat

from wavescat.runs.experiment import experiment
from wavescat.studies.models import parse_models
from wavescat.studies.parameters import parameters
from wavescat.studies.plans import experiments_of, split_names
from wavescat.studies.presets import read_parameters, resolve
from wavescat.studies.templates import study_names, template_cells
from wavescat.training.grid import grid, read_grid, values


def _forms(parameter, value):
    "A parameter's value as a shell, YAML and JSON may give it."
    if parameter.type == "bool":
        return [value, str(value), str(value).lower(), int(value), "yes" if value else "no"]
    if parameter.type == "int":
        return [value, str(value), float(value), f" {value} ", f"{value}.0"]
    if parameter.type == "float":
        return [value, str(value), f"{value:e}", *([int(value)] if value.is_integer() else [])]
    apart = next((sign for sign in ";/," if sign in value), ",")
    parts = [part.strip() for part in value.split(apart)]
    numbers = [json.loads(part) if re.fullmatch(r"[1-9]\d*|0", part) else part for part in parts]
    alone = (
        [numbers[0], float(numbers[0])] if len(parts) == 1 and isinstance(numbers[0], int) else []
    )
    return [
        value,
        f" {value} ",
        *alone,
        *([None, []] if not value else [parts, numbers, tuple(numbers)]),
    ]


@pytest.mark.parametrize("study", study_names())
def test_every_form_of_a_parameter_is_the_same_study(study):
    declared, usual = parameters(study), resolve(study, "quick")
    forms = {n: _forms(declared[n], v) for n, v in usual.items() if n != "preset"}
    template = {n: p.default for n, p in declared.items()}

    def same(text):
        return re.sub(r"\s*([,/;])\s*", r"\1", text) if isinstance(text, str) else text

    for k in range(max(map(len, forms.values()))):
        given = {n: of[k % len(of)] for n, of in forms.items()}
        for read in (resolve(study, "quick", given), read_parameters(study, template | given)):
            assert {n: (same(v), type(v)) for n, v in read.items()} == {
                n: (same(v), type(v)) for n, v in usual.items()
            }, given
    assert experiments_of(study, read) == experiments_of(study, usual)


@pytest.mark.parametrize("study", study_names())
def test_a_preset_gives_what_nobody_set(study):
    template, smoke = {n: p.default for n, p in parameters(study).items()}, resolve(study, "smoke")
    assert read_parameters(study, template | {"preset": "smoke"}) == smoke
    name = next(
        n
        for n, p in parameters(study).items()
        if p.type == "int" and n != "size" and p.default != smoke[n]
    )
    cell = f'# Parameters\npreset = "smoke"\n{name} = {template[name]}\n'
    assert read_parameters(study, template | {"preset": "smoke", "In": ["", cell]}) == smoke | {
        name: template[name]
    }, "set to the template's value, and said so"


def test_what_papermill_sets_that_no_study_has():
    template = {n: p.default for n, p in parameters("variance").items()}
    with pytest.raises(ValueError, match="unknown parameter 'epoch'; did you mean epochs"):
        read_parameters("variance", template | {"epoch": 3, "In": ["# Parameters\nepoch = 3\n"]})
    with pytest.raises(ValueError, match="unknown preset 'smok'; did you mean smoke"):
        read_parameters("variance", template | {"preset": "smok"})


@pytest.mark.parametrize(
    "how",
    [
        ["-p", "preset", "smoke", "-p", "L", "2", "-p", "per_class", "2", "-p", "compute", "false"],
        ["-y", "{preset: smoke, L: [2], per_class: 2.0, compute: 'False'}"],
        ["-r", "preset", "smoke", "-r", "L", "2", "-r", "per_class", "2", "-r", "compute", "no"],
        ["-f", "given.yaml"],
    ],
    ids=["-p", "-y", "-r", "-f"],
)
def test_papermills_own_options(how, tmp_path):
    "Numbers, texts and lists are read; the preset gives the rest; false computes nothing."
    (tmp_path / "given.yaml").write_text("preset: smoke\nL: 2\nper_class: 2\ncompute: false\n")
    papermill("variance", "out.ipynb", *how, folder=tmp_path)
    assert "wavescat run variance --preset smoke -p L=2\n" in json.loads(
        json.dumps((tmp_path / "out.ipynb").read_text(encoding="utf-8"))
    ).replace("\\n", "\n")
    assert not (tmp_path / "runs").exists()


REFUSED = [
    ("variance", "seeds=0-10000000", "at most 10,000 numbers"),
    ("variance", "seeds=0-1e9", "expected whole numbers"),
    ("variance", "seeds=1.5", "expected whole numbers"),
    ("variance", "seeds=5-1,7", "first-last"),
    ("variance", "seeds=٣", "expected whole numbers"),
    ("variance", "seeds=" + "1," * 50_000, "at most 10,000 numbers"),
    ("variance", "seeds=0-" + "9" * 5000, "expected whole numbers"),
    ("variance", "L=1-100000000", "at most 10,000 numbers"),
    ("variance", "lr=nan", "lr must be a finite number, got 'nan'"),
    ("variance", "lr=1e400", "lr must be a finite number"),
    ("variance", "lr=-inf", "lr must be a finite number"),
    ("variance", "epochs=0", "epochs must be at least 1, got 0"),
    ("variance", "epochs=1e400", "epochs must be a finite number"),
    ("variance", "epochs=" + "9" * 5000, "epochs must be a finite number"),
    ("variance", "compute=perhaps", "compute must be bool"),
    ("variance", "dataset=" + "x" * 10_000, "unknown dataset"),
    ("regimes", "per_class=1-9999 & seeds=0-999", "are too many for one sweep"),
    ("linear_and_alexnet", "classes=0-999999999", "two or more of 0-7"),
    ("linear_and_alexnet", "models=linear epochs:0", "epochs must be at least 1"),
    ("transfer", "then_epochs=0", "then_epochs must be at least 1"),
    ("transfer", "milestones=", "expected whole numbers"),
    ("tuned", "epochs_tried=0,1", "epochs_tried must be at least 1"),
    ("tuned", "lrs=.1,0.1", "lrs has a number twice"),
    ("tuned", "lrs=nan", "lr must be a finite number"),
    ("parametric", "per_class=2,2", "per_class has a number twice"),
    ("filters", "kinds=canonical,canonical", "kinds has 'canonical' twice"),
    ("filters", "epochs=0", "epochs must be at least 1"),
    ("biomass", "splits=", "splits is empty"),
    ("biomass", "dataset=textures", "five targets"),
    ("robustness", "images=1", "images must be between 2 and 800"),
    ("robustness", "images=100000", "images must be between 2 and 800"),
    ("robustness", "per_class=2,4", "per_class must be one whole number or all"),
    ("seeing", "shown=0", "shown must be at least 1"),
    ("seeing", "explained=0", "explained must be at least 1"),
    ("throughput", "load_models=scatresnet", "did you mean"),
    ("throughput", "load_repeats=0", "load_repeats must be at least 1"),
    ("throughput", "sweep_runs=0", "whole numbers from 1 on"),
    ("speed", "sizes=0,16", "sizes must be whole numbers from 1 on"),
    ("speed", "repeats=0", "repeats must be at least 1"),
    ("stability", "deformations=twirl", "unknown deformation"),
    ("stability", "representations=pixel", "did you mean pixels"),
    ("stability", "bound_side=7", "bound_side must be"),
    ("stability", "images=0", "images must be between 1 and 800"),
    ("stability", "images=9999", "images must be between 1 and 800"),
]


@pytest.mark.parametrize(
    "study, given, says", REFUSED, ids=[f"{s}-{g[:30]}" for s, g, _ in REFUSED]
)
def test_what_no_study_can_do_is_refused_at_once(study, given, says):
    "By the plan, so that nothing is computed first; in a line that isn't long."
    chosen = dict(part.split("=", 1) for part in given.split(" & "))
    started = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        for e in experiments_of(study, resolve(study, "smoke", chosen)):
            from wavescat.training.checks import check

            check(e)
    assert (
        "\n" not in str(error.value)
        and len(str(error.value)) < 1000
        and time.monotonic() - started < 10
    )


def test_refused_by_the_command(tmp_path):
    for args, says in (
        (["run", "variance", "-p", "seeds=0-10000000"], "at most 10,000 numbers"),
        (["train", "-p", "lr=nan"], "lr must be a finite number"),
        (["sweep", "classes=0,99999999999"], "numbers of classes"),
        (["train", "-p", "dataset=textures", "-p", "classes=0-999999999"], "two or more of 0-7"),
    ):
        done = wavescat(*args, store=tmp_path / "s")
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )


def test_a_comma_within_a_value(tmp_path):
    "Classes aren't split; anything else in double quotes, and what is there under that name."
    assert [e.classes for e in read_grid(["classes=0,1,3"])] == ["0,1,3"]
    assert [e.classes for e in read_grid(['classes="0,1","4-7"', "seed=0-1"])] == [
        "0,1",
        "0,1",
        "4-7",
        "4-7",
    ]
    folder = tmp_path / "leaves, dry"
    assert [e.dataset for e in read_grid([f'dataset="{folder}",textures'])] == [
        str(folder),
        "textures",
    ]
    with pytest.raises(
        ValueError, match="there is no .*leaves; a value with a comma stands in double quotes"
    ):
        read_grid([f"dataset={folder}"])
    folder.mkdir()
    assert [e.dataset for e in read_grid([f"dataset={folder}"])] == [str(folder)]
    with pytest.raises(ValueError, match="a double quote isn't closed"):
        read_grid(['dataset="a,b'])


def test_a_path_with_anything_in_a_list_of_models(tmp_path, monkeypatch):
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "runs"))
    source = (
        "from torch import nn\n"
        "def net(shape, num_classes):\n"
        "    inputs = shape[0] * shape[1] * shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, num_classes))\n"
    )
    for k, folder in enumerate(("a, b", "me@home: x=1", 'say "it"')):
        path = tmp_path / folder / "my net@2.py"
        path.parent.mkdir()
        path.write_text(source + f"# {k}\n")
        quoted = '"' + str(path).replace('"', '""') + ':net"'
        found = parse_models(f"resnet18, {quoted} lr:.1")
        assert (
            list(found) == ["ResNet-18", "my net@2.py:net, lr=0.1"]
            and found["my net@2.py:net, lr=0.1"]["lr"] == 0.1
        ), folder
    assert (
        parse_models('resnet18 weights:"/data/lr=.1/w, x:1.safetensors"')[
            "ResNet-18, weights=/data/lr=.1/w, x:1.safetensors"
        ]["weights"]
        == "/data/lr=.1/w, x:1.safetensors"
    )
    assert resolve("baseline", "smoke", {"dataset": "/a,b"})["dataset"] == "/a,b"
    assert resolve("biomass", "smoke", {"splits": ["state", "/a,b.json"]})[
        "splits"
    ] == 'state,"/a,b.json"' and split_names("splits", 'state,"/a,b.json"') == [
        "state",
        "/a,b.json",
    ]


def test_numbers_are_one_experiment():
    assert experiment(L="8") == experiment(L=8.0) == experiment(L="8.0") == experiment(
        L=" 8 "
    ) and experiment(compile=1) == experiment(compile="on") == experiment(compile=True)
    assert (
        experiment(L="null") == experiment(L=None)
        and grid(lr=1)[0] == experiment(lr="1e0")
        and values(" 1 - 3, 8 ") == [1, 2, 3, 8]
    )


@pytest.mark.parametrize("study", study_names())
def test_a_template_is_a_page(study):
    "Prose with few lines of code: no definitions, no computation, no nested f-string."
    cells = template_cells(study)
    code = [
        "".join(c["source"])
        for c in cells
        if c["cell_type"] == "code" and "parameters" not in c["metadata"].get("tags", [])
    ]
    lines = [[line for line in source.splitlines() if line.strip()] for source in code]
    assert len(cells) <= 12 and sum(map(len, lines)) <= 60 and max(map(len, lines)) <= 10
    nodes = [node for source in code for node in ast.walk(ast.parse(source))]
    computing = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.DictComp, ast.BinOp, ast.While)
    assert not [ast.unparse(node) for node in nodes if isinstance(node, computing)]
    texts = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    nested = [text for text in texts if "f'" in ast.unparse(text)[2:]]
    assert not nested
