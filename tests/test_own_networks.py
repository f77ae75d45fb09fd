"""Networks of one's own: what can't be trained, stored or computed again is refused in a line
before anything is computed; the rest comes back as it was."""

import json
import os
import random
import re
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, wavescat

from wavescat.runs.experiment import experiment
from wavescat.runs.lock import Stopped
from wavescat.runs.paths import run_dir
from wavescat.training.checks import check
from wavescat.training.inference import load_model
from wavescat.training.own_networks import own_model
from wavescat.training.run import run
from wavescat.training.tensors import read_weights

CPU = torch.device("cpu")
SMALL = dict(per_class=2, epochs=2, batch_size=8, lr=0.01, augment="none")
HEAD = (
    "import os, random, sys\n"
    "import numpy as np\n"
    "import torch\n"
    "from torch import nn\n"
    "from wavescat.scattering.layer import Scattering2D\n"
)
LINEAR = "self.head = nn.Linear(C * H * W, num_classes)"
SCORES = "self.head(x.flatten(1))"


def _lines(text):
    return "".join(f"        {line}\n" for line in text.split("\n"))


def _network(init=LINEAR, forward=f"return {SCORES}", before="", more=""):
    "A file with a function `net`."
    return (
        f"{HEAD}{before}\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, shape, num_classes):\n"
        "        super().__init__()\n"
        "        C, H, W = shape\n"
        f"{_lines(init)}"
        "    def forward(self, x):\n"
        f"{_lines(forward)}{more}\n"
        "def net(shape, num_classes): return Net(shape, num_classes)\n"
    )


@pytest.fixture
def own(tmp_path, monkeypatch):
    "Makes an experiment with the network of a file; a store of the test's own."
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "runs"))

    def made(source, **settings):
        (tmp_path / "mine.py").write_text(source)
        return experiment(model=own_model(f"{tmp_path / 'mine.py'}:net"), **{**SMALL, **settings})

    return made


EXTRA = (
    "    def get_extra_state(self): return {'n': 1}\n    def set_extra_state(self, state): pass\n"
)
REFUSED = {
    "exits": (
        HEAD + "sys.exit(3)\n",
        {},
        "mine.py can't be read: it ends the program, sys.exit(3)",
    ),
    "exits when built": (
        HEAD + "def net(shape, num_classes): sys.exit(3)\n",
        {},
        "mine.py:net doesn't work on images of shape (1, 32, 32): it ends the program, sys.exit(3)",
    ),
    "exits on images": (
        _network(forward="sys.exit(3)"),
        {},
        "mine.py:net doesn't work on two images of shape (1, 32, 32): it ends the program, sys.exit(3)",
    ),
    "exits with words": (
        HEAD + "sys.exit('no CUDA')\n",
        {},
        "mine.py can't be read: it ends the program, sys.exit('no CUDA')",
    ),
    "reads the command line": (
        HEAD
        + (
            "import argparse\n"
            "a = argparse.ArgumentParser()\n"
            "a.add_argument('--depth', required=True)\n"
            "a.parse_args()\n"
        ),
        {},
        "it ends the program, sys.exit(2) after it printed",
    ),
    "interrupts": (
        HEAD + "raise KeyboardInterrupt\n",
        {},
        "mine.py can't be read: it raises KeyboardInterrupt, which ends the program",
    ),
    "syntax": (
        "def net(shape, num_classes: return 3\n",
        {},
        "mine.py can't be read: SyntaxError: invalid syntax (mine.py, line 1)",
    ),
    "misses a package": (
        "import nothing_of_this_name\n",
        {},
        "mine.py can't be read: ModuleNotFoundError: No module named 'nothing_of_this_name'",
    ),
    "no module": (
        HEAD + "def net(shape, num_classes): return 'resnet18'\n",
        {},
        "mine.py:net returned str, expected a torch module",
    ),
    "misses its weights": (
        HEAD + "def net(shape, num_classes): return torch.load('none.pt')\n",
        {},
        "mine.py:net doesn't work on images of shape (1, 32, 32): FileNotFoundError",
    ),
    "a view of channels-last": (
        _network(
            "self.c = nn.Conv2d(C, 2, 3, 2, 1)\nself.head = nn.Linear(2 * H * W // 4, num_classes)",
            "x = self.c(x)\nreturn self.head(x.view(x.size(0), -1))",
        ),
        {},
        (
            "mine.py:net doesn't work on two images of shape (1, 32, 32): RuntimeError: a view of "
            "channels-last memory: use flatten or reshape in place of view, or "
            "channels_last=false"
        ),
    ),
    "two outputs": (
        _network(forward=f"y = {SCORES}\nreturn y, y"),
        {},
        (
            "mine.py:net makes tuple of two images of shape (1, 32, 32), expected a tensor of "
            "shape (2, 8): return the scores alone"
        ),
    ),
    "two outputs while it is trained": (
        _network(forward=f"y = {SCORES}\nreturn (y, y) if self.training else y"),
        {},
        (
            "mine.py:net makes tuple of 8 images of shape (1, 32, 32) while it is trained, "
            "expected a tensor of shape (8, 8): return the scores alone"
        ),
    ),
    "named outputs while it is trained": (
        _network(forward=f"y = {SCORES}\nreturn {{'out': y}} if self.training else y"),
        {},
        "mine.py:net makes dict of 8 images",
    ),
    "a wrong number": (
        _network("self.head = nn.Linear(C * H * W, num_classes + 1)"),
        {},
        (
            "mine.py:net makes (2, 9) of two images of shape (1, 32, 32), expected (2, 8): a "
            "score for each of 8 classes"
        ),
    ),
    "whole numbers": (
        _network(forward=f"return {SCORES}.long()"),
        {},
        "mine.py:net makes int64 of two images of shape (1, 32, 32), expected floating-point numbers",
    ),
    "complex scores": (
        _network(forward=f"return {SCORES} * 1j"),
        {},
        "mine.py:net makes complex64 of two images",
    ),
    "one image alone": (
        _network(
            "self.c = nn.Conv2d(C, num_classes, 3, 2, 1)",
            "return self.c(x).mean((2, 3), keepdim=True).squeeze()",
        ),
        {},
        "mine.py:net makes (8,) of one image of shape (1, 32, 32), expected (1, 8)",
    ),
    "a batch of 16": (
        _network(forward="return self.head(x.reshape(16, -1))"),
        dict(batch_size=16),
        "mine.py:net doesn't work on two images",
    ),
    "the last batch": (
        _network(
            forward=f"assert not self.training or len(x) == 6, 'batches of 6'\nreturn {SCORES}"
        ),
        dict(batch_size=6),
        (
            "mine.py:net can't be trained on 4 images of shape (1, 32, 32) while it is trained: "
            "AssertionError: batches of 6"
        ),
    ),
    "the last images tested": (
        _network(forward=f"assert len(x) != 5, 'five'\nreturn {SCORES}"),
        dict(test_batch_size=15),
        "mine.py:net doesn't work on 5 images of shape (1, 32, 32): AssertionError: five",
    ),
    "a part of a batch": (
        _network(forward=f"assert len(x) != 3, 'three'\nreturn {SCORES}"),
        dict(batch_size=6, accumulate=2),
        "mine.py:net can't be trained on 3 images",
    ),
    "float64": (
        _network(LINEAR + "\nself.double()"),
        {},
        (
            "mine.py:net doesn't work on two images of shape (1, 32, 32): RuntimeError: mat1 and "
            "mat2 must have the same dtype"
        ),
    ),
    "no gradient": (
        _network(forward=f"with torch.no_grad(): return {SCORES}"),
        {},
        (
            "the scores that mine.py:net makes of 8 images of shape (1, 32, 32) while it is "
            "trained have no gradient"
        ),
    ),
    "fails while it is trained": (
        _network(forward=f"return {SCORES} if not self.training else self.nothing(x)"),
        {},
        "mine.py:net can't be trained on 8 images of shape (1, 32, 32) while it is trained: AttributeError",
    ),
    "fails on the way back": (
        _network(forward=f"y = {SCORES}.exp()\nz = y * 2\ny.add_(1)\nreturn z + y"),
        {},
        "while it is trained: RuntimeError: one of the variables needed for gradient computation",
    ),
    "nothing to learn": (
        _network("pass", "return x.flatten(1)[:, :8]"),
        {},
        "mine.py:net has no parameters to learn",
    ),
    "all of it frozen": (
        _network(LINEAR + "\nself.requires_grad_(False)"),
        {},
        "mine.py:net has no parameters to learn",
    ),
    "batch norm of one image": (
        _network(
            "self.bn = nn.BatchNorm1d(4)\nself.head = nn.Linear(4, num_classes)",
            "return self.head(self.bn(x.flatten(1)[:, :4]))",
        ),
        dict(batch_size=5),
        "leave one image alone, and mine.py:net shrinks it",
    ),
    "a state of its own": (
        _network(more=EXTRA),
        {},
        (
            "mine.py:net can't be stored: _extra_state is dict, and a file of weights holds plain "
            "tensors: return a tensor from get_extra_state"
        ),
    ),
    "complex128": (
        _network(LINEAR + "\nself.register_buffer('c', torch.ones(3, dtype=torch.complex128))"),
        {},
        "mine.py:net can't be stored: c is complex128, and a file of weights holds plain tensors",
    ),
    "sparse": (
        _network(LINEAR + "\nself.register_buffer('s', torch.eye(3).to_sparse())"),
        {},
        "mine.py:net can't be stored: s is sparse_coo",
    ),
    "no numbers": (
        _network(LINEAR + "\nself.p = nn.Parameter(torch.zeros(3, device='meta'))"),
        {},
        "mine.py:net can't be stored: p is on the meta device, without numbers",
    ),
    "expanded": (
        _network(
            LINEAR + "\nself.p = nn.Parameter(torch.zeros(1).expand(num_classes))",
            f"return {SCORES} + self.p",
        ),
        {},
        "mine.py:net can't be trained: p is expanded",
    ),
    "kept beside its state": (
        _network(
            LINEAR + "\nself.scale = [1.]",
            f"if self.training: self.scale[0] *= 1.5\nreturn {SCORES} * self.scale[0]",
        ),
        {},
        "after it was stored and loaded: keep all that changes in parameters and buffers",
    ),
    "a generator of its own": (
        _network(
            LINEAR + "\nself.chance = np.random.default_rng(0)",
            f"return {SCORES} * (self.chance.random() if self.training else 1)",
        ),
        {},
        "mine.py:net says something else while it is trained, after it was stored and loaded",
    ),
    "a generator without a seed": (
        _network(
            LINEAR
            + "\nself.p = nn.Parameter(torch.tensor(np.random.default_rng().random(8), dtype=torch.float32))",
            f"return {SCORES} * self.p",
        ),
        {},
        "mine.py:net starts with other weights when it is built again from the same seed (p)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_be_used(name, own, tmp_path):
    "One line, before anything is computed; this process is as it was."
    source, settings, message = REFUSED[name]
    before = (
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        os.getcwd(),
        sys.argv,
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        run(own(source, **settings), device=CPU)
    assert "\n" not in str(error.value) and not list((tmp_path / "runs").glob("*.work"))
    after = (
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        os.getcwd(),
        sys.argv,
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


TRAIN = [
    "train",
    *(text for k, v in SMALL.items() for text in ("-p", f"{k}={v}")),
    "-p",
    "model=mine.py:net",
]
SWEEP = ["sweep", *(f"{k}={v}" for k, v in SMALL.items()), "model=mine.py:net", "--dry-run"]


@pytest.mark.parametrize(
    "name, command",
    [
        ("exits", TRAIN),
        ("reads the command line", SWEEP),
        ("interrupts", TRAIN),
        ("two outputs while it is trained", SWEEP),
    ],
)
def test_the_command_refuses_it_in_a_line(name, command, tmp_path):
    source, settings, message = REFUSED[name]
    (tmp_path / "mine.py").write_text(source)
    done = wavescat(*command, store=tmp_path / "runs", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (
        done.returncode == 2
        and message in done.stderr
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("wavescat: ")
    ), done.stderr


def test_an_interrupt_is_no_fault_of_the_file(own):
    "Ctrl-C while somebody's file is read ends the command; it isn't said to be an error of the file."
    source = (
        HEAD
        + "import signal\nfor i in range(10**9):\n    if i == 5: signal.raise_signal(signal.SIGINT)\n"
    )
    with pytest.raises(KeyboardInterrupt):
        own(source)


TIED = (
    "self.a = nn.Linear(C * H * W, 8, bias=False)\n"
    "self.b = nn.Linear(C * H * W, 8, bias=False)\n"
    "self.b.weight = self.a.weight\n"
    "self.head = nn.Linear(8, num_classes)"
)
WORKS = {
    "tied weights": _network(
        TIED, "return self.head(self.a(x.flatten(1)) + self.b(x.flip(-1).flatten(1)))"
    ),
    "a block used twice": _network(
        (
            "self.block = nn.Linear(8, 8)\n"
            "self.layers = nn.Sequential(nn.Linear(C * H * W, 8), self.block, nn.Tanh(), "
            "self.block)\n"
            "self.head = nn.Linear(8, num_classes)"
        ),
        "return self.head(self.layers(x.flatten(1)))",
    ),
    "views of a buffer": _network(
        LINEAR
        + (
            "\n"
            "self.register_buffer('m', torch.arange(8.))\n"
            "self.register_buffer('v', self.m[2:5])\n"
            "self.register_buffer('w', self.m)"
        ),
        f"return {SCORES} + self.m + self.v.sum()",
    ),
    "a view of a parameter": _network(
        LINEAR + "\nself.register_buffer('v', self.head.weight.detach()[:3])"
    ),
    "its state, a tensor": _network(
        LINEAR + "\nself.n = 3.",
        f"return {SCORES} * self.n",
        more=(
            "    def get_extra_state(self): return torch.tensor(self.n)\n"
            "    def set_extra_state(self, state): self.n = float(state)\n"
        ),
    ),
    "not contiguous": _network(
        "self.w = nn.Parameter(torch.randn(C * H * W, num_classes).mul(.01).t())",
        "return x.flatten(1) @ self.w.t()",
    ),
    "buffers that are None": _network(
        LINEAR + "\nself.register_buffer('m', None)\nself.register_parameter('p', None)"
    ),
    "many kinds": _network(
        LINEAR + "\n"
        "self.register_buffer('c', torch.full((3,), 1 + 2j, dtype=torch.complex64).conj())\n"
        "self.register_buffer('b', torch.ones(3, dtype=torch.bool))\n"
        "self.register_buffer('i', torch.tensor(7, dtype=torch.int16))\n"
        "self.register_buffer('e', torch.ones(0))\n"
        "self.register_buffer('f', torch.ones(0))",
        f"return {SCORES} + self.c.imag.sum()",
    ),
    "complex parameters": _network(
        LINEAR + "\nself.c = nn.Parameter(torch.ones(num_classes, dtype=torch.complex64))",
        f"return ({SCORES} * self.c).real",
    ),
    "asks for numbers": _network(
        LINEAR + "\n"
        "self.n = float(self.head.weight.detach().norm())\n"
        "self.s = torch.ones(3).sum().item()\n"
        "assert self.head.weight.abs().max() > 0\n"
        "self.q = torch.linalg.qr(torch.randn(4, 4))[0]\nself.m = self.head.weight.detach().numpy().sum()",
        f"return {SCORES} / self.n",
    ),
    "paths": _network(
        (
            "self.S = Scattering2D(2, (H, W), L=2, flat=True)\n"
            "self.head = nn.Linear(len(self.S.paths) * C * (H // 4) * (W // 4), num_classes)"
        ),
        "return self.head(self.S(x).flatten(1))",
    ),
    "lazy": HEAD
    + (
        "def net(shape, num_classes): return nn.Sequential(nn.LazyConv2d(2, 3, 4), "
        "nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))\n"
    ),
    "front and rest of its own": _network(
        (
            "self.front = Scattering2D(2, (H, W), L=2, flat=True)\n"
            "self.rest = nn.Linear(9 * C * H * W // 16, num_classes)"
        ),
        "return self.rest(self.front(x).flatten(1))",
    ),
    "by NumPy": _network(
        (
            "self.w = nn.Parameter(torch.tensor(np.random.randn(num_classes, C * H * W), "
            "dtype=torch.float32))\n"
            "self.g = nn.Parameter(torch.tensor([random.gauss(0, 1) for _ in "
            "range(num_classes)]))"
        ),
        "return x.flatten(1) @ self.w.t() * self.g",
    ),
    "filters by NumPy that stay fixed": _network(
        LINEAR + "\nself.f = torch.tensor(np.random.randn(num_classes), dtype=torch.float32)",
        f"return {SCORES} * self.f",
    ),
    "by NumPy while it is trained": _network(
        forward=(
            f"y = {SCORES}\n"
            "return y * float(1 + .5 * np.random.randn() + random.random() + torch.rand(())) if "
            "self.training else y"
        )
    ),
    "by a generator of its file": _network(
        (
            "self.w = nn.Parameter(torch.tensor(chance.standard_normal((num_classes, C * H * W)) "
            "* draw, dtype=torch.float32))"
        ),
        "return x.flatten(1) @ self.w.t()",
        before="chance, draw = np.random.default_rng(0), np.random.rand() + random.random()",
    ),
    "changes the process": _network(
        before=(
            "os.chdir('/')\n"
            "torch.set_default_dtype(torch.float64)\n"
            "torch.set_grad_enabled(False)\n"
            "torch.set_num_threads(3)\n"
            "assert len(sys.argv) < 2\n"
            "sys.argv.append('x')\n"
            "print('hello')"
        )
    ),
    "spectral norm": _network(
        "self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(C * H * W, num_classes))"
    ),
}


@pytest.mark.parametrize("files", ["safetensors", "torch"])
@pytest.mark.parametrize("name", WORKS)
def test_a_network_comes_back_as_it_was(name, files, own, monkeypatch):
    """The same experiment gives the same bits, whatever was drawn before; what was drawn goes on
    as if nothing had been run; the stored network says what the trained one said."""
    if files == "torch":
        for module in ("safetensors", "safetensors.torch"):
            monkeypatch.setitem(sys.modules, module, None)
    e, found = own(WORKS[name]), []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        expected = torch.rand(3), np.random.rand(3), random.random()
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        place, argv = os.getcwd(), list(sys.argv)
        result = run(e, device=CPU, again=True)
        model = load_model(e)
        drawn = torch.rand(3), np.random.rand(3), random.random()
        assert (
            torch.equal(expected[0], drawn[0])
            and (expected[1] == drawn[1]).all()
            and expected[2] == drawn[2]
        )
        assert (os.getcwd(), sys.argv, torch.get_default_dtype(), torch.is_grad_enabled()) == (
            place,
            argv,
            torch.float32,
            True,
        )
        (stored,) = run_dir(e).glob("weights.*")
        assert stored.suffix == (".safetensors" if files == "safetensors" else ".pt")
        found.append(
            (
                {k: v.resolve_conj() for k, v in model.state_dict().items()},
                result["train_loss"],
                (run_dir(e) / "predictions.npy").read_bytes(),
            )
        )
        again = run(
            experiment(
                **{**{k: getattr(e, k) for k in e.changed}, "epochs": 0, "weights": e.identity}
            ),
            device=CPU,
        )
        assert again["test_accuracy"] == result["test_accuracy"] and again[
            "test_loss"
        ] == pytest.approx(result["test_loss"], rel=1e-5)
    assert (
        all(torch.equal(v, found[1][0][k]) for k, v in found[0][0].items())
        and found[0][1:] == found[1][1:]
    )


def test_another_seed_is_another_network(own):
    weights = []
    for seed in (0, 1):
        e = own(WORKS["by NumPy"], seed=seed, epochs=0)
        run(e, device=CPU)
        weights.append(load_model(e).state_dict())
    assert not torch.equal(weights[0]["w"], weights[1]["w"]) and not torch.equal(
        weights[0]["g"], weights[1]["g"]
    )


@pytest.mark.parametrize("files", ["safetensors", "torch"])
def test_shared_tensors_are_stored_once(files, own, monkeypatch):
    if files == "torch":
        for module in ("safetensors", "safetensors.torch"):
            monkeypatch.setitem(sys.modules, module, None)
    e = own(WORKS["tied weights"])
    run(e, device=CPU)
    (stored,) = run_dir(e).glob("weights.*")
    assert stored.stat().st_size < 1.2 * 4 * (8 * 1024 + 8 * 8 + 8) + 4096
    state, model = read_weights(stored), load_model(e)
    assert (
        torch.equal(state["a.weight"], state["b.weight"])
        and model.a.weight is model.b.weight
        and torch.equal(model.a.weight, state["a.weight"])
    )
    if files == "safetensors":
        from safetensors.torch import load_model as theirs

        model.a.weight.data.zero_()
        theirs(model, stored)
        assert torch.equal(model.b.weight, state["b.weight"])


def test_a_new_head_of_tied_weights(own):
    "It is new, or refused where the rest is tied to it."
    e = own(WORKS["tied weights"])
    run(e, device=CPU)
    tuned = experiment(
        **{
            **{k: getattr(e, k) for k in e.changed},
            "epochs": 0,
            "weights": e.identity,
            "new_head": True,
            "seed": 3,
        }
    )
    run(tuned, device=CPU)
    before, after = load_model(e), load_model(tuned)
    assert torch.equal(before.b.weight, after.a.weight) and not torch.equal(
        before.head.weight, after.head.weight
    )
    for init, forward, message in (
        (
            LINEAR.replace("head", "last") + "\nself.head = nn.Identity()",
            "return self.last(x.flatten(1))",
            "has no head to renew",
        ),
        (
            LINEAR
            + "\nself.first = nn.Linear(C * H * W, num_classes)\nself.first.weight = self.head.weight",
            f"return {SCORES}",
            "is tied to first.weight, which would be renewed with it",
        ),
    ):
        e = own(_network(init, forward))
        run(e, device=CPU)
        with pytest.raises(ValueError, match=message):
            check(
                experiment(
                    **{
                        **{k: getattr(e, k) for k in e.changed},
                        "weights": e.identity,
                        "new_head": True,
                    }
                ),
                CPU,
            )


def test_interrupted_it_goes_on_with_the_same_numbers(own, tmp_path, monkeypatch):
    "What NumPy, random and torch draw while it is trained is kept with the checkpoint."
    monkeypatch.setenv("WAVESCAT_CHECKPOINT_SECONDS", "0")
    found = []
    for at in (None, 3):
        monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / f"runs{at}"))
        e, asked = own(WORKS["by NumPy while it is trained"], epochs=4), []
        monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / f"runs{at}"))
        if at:
            with pytest.raises(Stopped):
                run(e, device=CPU, stop=lambda: asked.append(1) or len(asked) == at)
            np.random.seed(9), random.seed(9), torch.manual_seed(9)
        result = run(e, device=CPU)
        assert result["resumed"] == bool(at)
        found.append(
            [
                (run_dir(e) / name).read_bytes()
                for name in ("weights.safetensors", "history.json", "predictions.npy")
            ]
        )
    assert found[0] == found[1]


VIEW = REFUSED["a view of channels-last"][0]


def test_a_network_that_views_its_maps(own, tmp_path):
    "It is trained, tested, loaded and asked again with channels_last=false."
    from PIL import Image

    from wavescat.data.load import load
    from wavescat.studies.inference import tested
    from wavescat.training.inference import classify, test_predictions
    from wavescat.training.plan import plan

    e = own(VIEW, channels_last=False)
    assert plan([e], estimate=True)["seconds"] > 0
    run(e, device=CPU)
    predicted = test_predictions(e)
    assert (tested(e).probabilities.argmax(1) == predicted).all()
    Image.fromarray(load("textures").test[0][0]).save(tmp_path / "one.png")
    names, probabilities, _ = classify(e.identity, [tmp_path / "one.png"], CPU)
    assert probabilities.shape == (1, 8) and probabilities[0].argmax() == predicted[0]


def test_a_network_that_ends_the_program_in_the_middle(tmp_path):
    "A line and status 1, as of any run that fails, and the failure is kept."
    source = _network(
        LINEAR + "\nself.register_buffer('n', torch.zeros(()))",
        f"if self.training: self.n += 1\nif self.n > 6: sys.exit(3)\nreturn {SCORES}",
    )
    (tmp_path / "mine.py").write_text(source)
    done = wavescat(
        *TRAIN,
        "-p",
        "epochs=9",
        store=tmp_path / "runs",
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert (
        done.returncode == 1
        and "mine.py:net ended the program in the middle of its run, sys.exit(3)" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr
    (found,) = (tmp_path / "runs").glob("*.work/failure.json")
    assert "ended the program" in json.loads(found.read_text())["error"]


def test_what_a_file_prints_leaves_the_output_alone(tmp_path):
    (tmp_path / "mine.py").write_text(_network(before="print('hello')"))
    done = wavescat(*TRAIN, store=tmp_path / "runs", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (
        done.returncode == 0 and "hello" not in done.stdout and done.stderr.count("hello") == 1
    ), done.stderr


def test_a_seed_is_tried_once(own):
    "Another seed or learning rate needs no other trial."
    from wavescat.training.trial import try_own_network

    e = own(WORKS["tied weights"])
    check(e, CPU)
    before = try_own_network.cache_info().misses
    check(
        experiment(
            **{
                **{k: getattr(e, k) for k in e.changed},
                "seed": 5,
                "split_seed": 7,
                "lr": 0.3,
                "epochs": 9,
            }
        ),
        CPU,
    )
    assert try_own_network.cache_info().misses == before


def test_settings_that_a_network_takes(own):
    "Any setting may be an argument of the function: the trial has its value too."
    source = HEAD + (
        "def net(shape, num_classes, lr=.1, epochs=200, seed=0):\n"
        "    assert (lr, epochs, seed) == (.01, 2, 4), (lr, epochs, seed)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(1024, num_classes))\n"
    )
    check(own(source, seed=4), CPU)
    with pytest.raises(ValueError, match="AssertionError: .0.01, 2, 5."):
        check(own(source, seed=5), CPU)
    check(
        experiment(**SMALL, model="linear"), CPU
    )  # the arguments of one network are no options of the others
