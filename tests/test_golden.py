"""Runs computed before the package was rebuilt: the same settings still give the same numbers."""

import hashlib
import json
import platform
import re
from pathlib import Path

import pytest
import torch

from wavescat import experiment, run
from wavescat.runs.paths import run_dir

STORED = json.loads((Path(__file__).parent / "golden_runs.json").read_text())
FILES = ("weights.safetensors", "history.json", "predictions.npy")


def _machine():
    "What the last bits of a float depend on: the processor, and the release of torch."
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else platform.processor()
    wanted = "vendor_id", "cpu family", "model", "stepping"
    found = {k: re.search(rf"^{k}\s*: (.*)$", text, flags=re.M) for k in wanted}
    numbers = [m[1] if m else "" for m in found.values()]
    return [torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability(), *numbers]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", STORED["runs"])
def test_a_stored_run_is_computed_again(name, tmp_path, monkeypatch, one_thread):
    """The same bits on the machine where they were stored; on others nearly the same losses: a last
    bit grows over the steps, to 5 % of a loss between AVX-512 and AVX2."""
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path))
    stored = STORED["runs"][name]
    e = experiment(**stored["settings"])
    assert e.identity == stored["identity"]
    result = run(e)
    assert result["status"] == stored["result"]["status"]
    for key in ("train_loss", "test_loss"):
        assert result[key] == pytest.approx(stored["result"][key], rel=0.1)
    if _machine() == STORED["machine"]:
        for file in FILES:
            bits = hashlib.sha256((run_dir(e) / file).read_bytes()).hexdigest()[:16]
            assert bits == stored["bits"][file], file
