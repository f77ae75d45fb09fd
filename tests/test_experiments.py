"What an experiment is, and which code computes it."

import ast
import sys
from pathlib import Path

import pytest
import torch

import wavescat
from wavescat.data.load import load
from wavescat.runs import code
from wavescat.runs.experiment import experiment
from wavescat.training.distributed import World
from wavescat.training.loop import fit

SMALL = dict(per_class=2, width=2, epochs=2, batch_size=8, lr=0.01, validation=8)


@pytest.mark.parametrize(
    "settings",
    [
        dict(model="resnet18", mix="cutmix"),
        dict(
            model="scatresnet18", L=2, learn="canonical", augment="flip-crop", schedule="one-cycle"
        ),
        dict(model="scattering-linear", L=2, augment="none", loss="hinge", weight_decay=0.0),
        dict(model="gabor-max", L=2, optimizer="adamw"),
        dict(model="scatinput-v3", classes="0-3", split="permuted"),
        dict(
            model="scatresnet18-imagenet",
            dataset="mixtures",
            split="date",
            per_class=None,
            loss="mse",
            target_scale=100.0,
            augment="none",
            batch_size=64,
        ),
    ],
    ids=lambda s: f"{s['model']}",
)
def test_every_function_that_computes_a_run_counts_in_its_code_version(settings):
    e = experiment(**{**SMALL, **({"validation": 20} if "dataset" in settings else {}), **settings})
    load.cache_clear()
    modules = {
        str(p): p.stem
        for package in code.PACKAGES
        for p in (Path(wavescat.__file__).parent / package).glob("*.py")
    }
    called = set()

    def note(frame, event, arg):
        if event == "call" and frame.f_code.co_filename in modules:
            called.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    sys.setprofile(note)
    try:
        fit(e, World(torch.device("cpu")))
    finally:
        sys.setprofile(None)
    counts = code.reached(
        code.computing_definitions(),
        {r: getattr(e, f) for r, f in code.REGISTRIES.items()},
        ["fit"],
    )
    missed, seen = set(), 0
    for file in modules:
        nodes = ast.parse(Path(file).read_text()).body
        for path, line in called:
            if path != file:
                continue
            node = next(
                n
                for n in nodes
                if min([n.lineno, *(d.lineno for d in getattr(n, "decorator_list", []))])
                <= line
                <= n.end_lineno
            )
            names = (
                [node.name]
                if hasattr(node, "name")
                else [
                    t.id for t in (node.targets if isinstance(node, ast.Assign) else [node.target])
                ]
            )
            seen += 1
            if not set(names) & set(counts):
                missed.add((modules[file], *names))
    assert not missed and seen > 40
