"""Sweeps: what is refused, processes that die, sweeps at once, runs that fail, clusters, Ctrl-C."""

import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from wavescat.runs.experiment import experiment
from wavescat.runs.lock import is_claimed
from wavescat.runs.paths import run_dir, work_dir
from wavescat.runs.progress import failure
from wavescat.runs.query import runs
from wavescat.training import pool
from wavescat.training.checks import check
from wavescat.training.grid import grid, read_grid
from wavescat.training.results import cached_result
from wavescat.training.sweep import RunsFailed, sweep

SMALL = dict(width=2, per_class=2, batch_size=16, augment="none", lr=0.01)
SCRIPT = """
import sys
from wavescat.training.grid import read_grid
from wavescat.training.sweep import sweep
settings, workers, scheduler = sys.argv[1].split(), int(sys.argv[2]), (sys.argv[3:] or [None])[0]
try: sweep(read_grid(settings), workers=workers, scheduler=scheduler)
except KeyboardInterrupt: sys.exit(130)
"""
IN_WORKERS = """
import os, signal, wavescat.training.run
def watched(e, *args, fit=wavescat.training.run.fit, **kw):
    with open(os.environ["COMPUTED"], "a") as f:
        f.write(e.identity + "\\n")
    if e.seed == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if e.seed == 14:
        raise MemoryError("no room")
    return fit(e, *args, **kw)
if wavescat.training.run.fit.__name__ != "watched":  # Dask reads this more than once
    wavescat.training.run.fit = watched
"""


def texts(**settings):
    return " ".join(f"{k}={v}" for k, v in {**SMALL, **settings}.items())


@pytest.fixture
def start(tmp_path):
    "Start sweeps in sessions of their own; whatever is left of them is killed at the end."
    (tmp_path / "in_workers.py").write_text(IN_WORKERS)
    started = []

    def start(settings, workers, *scheduler, cwd=ROOT):
        env = {
            **os.environ,
            "WAVESCAT_RUNS": str(tmp_path / "s"),
            "COMPUTED": str(tmp_path / "computed"),
            "DASK_DISTRIBUTED__WORKER__PRELOAD": str(tmp_path / "in_workers.py"),
            "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s",
        }  # a process takes longer to come back: a sweep waits for it
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, settings, str(workers), *scheduler],
                cwd=cwd,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for p in started:
        for pid in session(p.pid):
            os.kill(pid, signal.SIGKILL)


def session(leader):
    "Live processes of a session."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def workers_of(leader):
    "The processes of a session that compute."
    found = []
    for pid in session(leader):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in command:
            found.append(pid)
    return found


def until(true, seconds=40):
    "Wait for something; the test fails if it doesn't come."
    last = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < last, "waited in vain"
        time.sleep(0.05)
    return value


def epochs_of(progress):
    "How far a run is; 0 where it has ended in the meantime."
    try:
        found = re.search(r'"epoch": (\d+)', progress.read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "s"))
    return tmp_path / "s"


@pytest.fixture(scope="module")
def cluster():
    "A cluster of two processes that was there before."
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@pytest.mark.parametrize(
    "given, says",
    [
        (["L"], "expected SETTING=VALUE"),
        (["L="], "expected SETTING=VALUE"),
        (["LL=3"], "did you mean L?"),
        (["L=3-1"], "first-last"),
        (["L=1-3,2"], "is there twice"),
        (["L=2", "L=3"], "L is given twice"),
        (["lr=.1-.2"], "lr must be float"),
        (["lr=.1,0.10"], "is there twice"),
        (["seed=0-99999999999"], "at most 100,000"),
        (["seed=0-9999", "L=1-20"], "200,000 runs are too many"),
    ],
)
def test_grids_that_are_refused(given, says):
    with pytest.raises(ValueError, match=says.replace("?", r"\?")) as e:
        read_grid(given)
    assert "\n" not in str(e.value)


def test_grids_that_are_read():
    g = read_grid(
        ["L=1-3,8", "model=scatresnet18", "lr=.1,1e-2", "per_class=none,10", "augment=none"]
    )
    assert g == grid(
        L=[1, 2, 3, 8], model="scatresnet18", lr=[0.1, 0.01], per_class=[None, 10], augment="none"
    )


def test_nothing_of_dask_where_nothing_is_computed():
    code = """
import sys
from wavescat.training.grid import grid
from wavescat.training.sweep import sweep
sweep(grid(seed=[1, 2]), compute=False)
assert not {'dask', 'distributed'} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_killed_workers_change_nothing(start, store, cluster, tmp_path, monkeypatch):
    "Every result is that of runs which nobody disturbed, on a cluster that was there before."
    settings = texts(epochs=30, seed="0-2")
    process, killed = start(settings, 2), 0
    for least in range(1, 4):  # whenever a run has got as far as its next epochs

        def under_way():
            return [p for p in store.glob("*.work/progress.json") if epochs_of(p) >= least]

        victims = until(
            lambda: under_way() and workers_of(process.pid) or process.poll() is not None and [None]
        )
        if victims != [None]:
            os.kill(victims[least % len(victims)], signal.SIGKILL)
            killed += 1
    message = process.communicate(timeout=90)[1]
    assert process.returncode == 0 and killed == 3 and "Traceback" not in message, message
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "undisturbed"))
    es = read_grid(settings.split())
    results = sweep(es, scheduler=cluster)
    monkeypatch.setenv("WAVESCAT_RUNS", str(store))
    for e, r in zip(es, results):
        assert r["status"] == "done" and all(
            cached_result(e)[k] == r[k]
            for k in ("test_accuracy", "test_loss", "train_loss", "best_epoch", "threads")
        )
        assert (
            not work_dir(e).exists()
            and len(json.loads((run_dir(e) / "history.json").read_text())) == 30
        )
    assert len(cluster.scheduler_info["workers"]) == 2


def test_two_sweeps_share_the_work(start, store, tmp_path):
    settings = texts(epochs=1, seed="0-5")
    both = [start(settings, 1), start(settings, 1)]
    for p in both:
        assert p.wait(timeout=90) == 0, p.stderr.read()
    computed = (tmp_path / "computed").read_text().split()
    assert (
        sorted(computed) == sorted(e.identity for e in read_grid(settings.split()))
        and len(runs(["status=done"])) == 6
    )


def test_code_that_is_edited_meanwhile(start, store, tmp_path):
    "A sweep compares results with the code that it started with."
    shutil.copytree(
        ROOT / "wavescat",
        tmp_path / "own" / "wavescat",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    process = start(texts(epochs=30, seed="0-1"), 1, cwd=tmp_path / "own")
    until(
        lambda: epochs_of(work_dir(experiment(**SMALL, epochs=30, seed=0)) / "progress.json") >= 2
    )
    with open(tmp_path / "own" / "wavescat" / "data" / "augment.py", "a") as f:
        f.write("\nassert True\n")
    assert process.wait(timeout=90) == 0, process.stderr.read()
    assert (
        len(
            {r["code"] for r in map(cached_result, read_grid(texts(epochs=30, seed="0-1").split()))}
        )
        == 1
    )


def test_runs_that_fail(start, store):
    "One raises and one kills its process: both are stored as failed, and the rest is done."
    process = start(texts(epochs=1, seed="12-15"), 2)
    message = process.communicate(timeout=90)[1]
    last = message.strip().splitlines()[-1]
    raised, killer = (experiment(**SMALL, epochs=1, seed=s) for s in (14, 13))
    assert (
        process.returncode == 1
        and "2 of 4 runs failed: " in last
        and f"{raised.identity} seed=14: MemoryError: no room" in last
        and f"{killer.identity} seed=13: its worker died 4 times" in last
    ), message
    assert (
        "in watched" in failure(raised)["traceback"] and "died 4 times" in failure(killer)["error"]
    )
    assert [r["status"] for r in runs(["seed=12-15"])].count("done") == 2 and len(
        runs(["status=failed"])
    ) == 2


@pytest.mark.parametrize("noticed", [True, False])
def test_a_worker_that_dies_before_it_is_asked(store, monkeypatch, noticed):
    "It has computed its run, and can't say so any more: the run is found in the store."
    from distributed import LocalCluster

    died = []

    class Late(queue.SimpleQueue):
        def put(self, future):
            if future.status == "finished" and not died:
                died.append(future)
                os.kill(future.client.run(os.getpid).popitem()[1], signal.SIGKILL)
                if noticed:
                    until(lambda: future.status != "finished")
            super().put(future)

    monkeypatch.setattr(pool, "queue", SimpleNamespace(SimpleQueue=Late, Empty=queue.Empty))
    monkeypatch.setattr(pool, "ANSWER_SECONDS", 1.0)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        assert [
            r["status"] for r in sweep(grid(**SMALL, epochs=1, seed=range(2)), scheduler=cluster)
        ] == ["done"] * 2
    assert len(died) == 1


def test_failures_can_be_passed_over(store, cluster, tmp_path):
    from PIL import Image

    for i in range(12):
        (tmp_path / "own" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(tmp_path / "own" / "ab"[i % 2] / f"{i}.png")
    bad, sound = (
        experiment(
            dataset=str(tmp_path / "own"),
            width=2,
            per_class=2,
            epochs=1,
            batch_size=4,
            augment="none",
        ),
        experiment(**SMALL, epochs=1, seed=16),
    )
    check(bad)
    shutil.rmtree(tmp_path / "own")  # what is checked, and isn't there where it is computed
    assert [r and r["status"] for r in sweep([bad, sound], scheduler=cluster, strict=False)] == [
        None,
        "done",
    ]
    with pytest.raises(RunsFailed, match="1 of 2 runs failed.*wavescat runs show") as e:
        sweep([bad, sound], scheduler=cluster)
    assert list(e.value.failed) == [bad] and "Traceback" in failure(bad)["traceback"]


def test_other_code_and_another_store_are_refused(store, cluster, monkeypatch, tmp_path):
    e = experiment(**SMALL, epochs=1)
    monkeypatch.setattr(pool, "SHARED_SECONDS", 0)
    with (
        monkeypatch.context() as m,
        pytest.raises(RuntimeError, match="must be one directory that all machines share"),
    ):
        m.setattr(pool, "worker_env", lambda: {"WAVESCAT_RUNS": str(tmp_path / "elsewhere")})
        sweep([e], scheduler=cluster)
    monkeypatch.setattr(pool, "code_version", lambda e=None: "other")
    with pytest.raises(RuntimeError, match="install the same version"):
        sweep([e], scheduler=cluster)
    with pytest.raises(
        ValueError, match="expected the address of a Dask scheduler.*got 'nonsense'"
    ):
        sweep([e], scheduler="nonsense")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(
            ValueError, match=f"no Dask scheduler answers at tcp://127.0.0.1:{s.getsockname()[1]}"
        ):
            sweep([e], scheduler=f"tcp://127.0.0.1:{s.getsockname()[1]}")


def test_a_job_queue(store):
    pytest.importorskip("dask_jobqueue")
    from dask_jobqueue.local import LocalCluster

    with LocalCluster(
        cores=1, processes=1, memory="4 GB", scheduler_options={"dashboard_address": "127.0.0.1:0"}
    ) as queue:
        queue.scale(jobs=1)
        assert [
            r["status"] for r in sweep(grid(**SMALL, epochs=1, seed=range(2)), scheduler=queue)
        ] == ["done"] * 2


@pytest.mark.skipif(os.name == "nt", reason="signals of a terminal")
@pytest.mark.parametrize("whom", ["group", "parent"])
def test_ctrl_c(whom, start, store):
    "It ends within seconds and says nothing, no process is left, and the runs keep their checkpoints."
    process = start(texts(epochs=3000, seed="0-3"), 2)
    until(
        lambda: (
            len([p for p in store.glob("*.work/progress.json") if '"epoch"' in p.read_text()]) == 2
        )
    )
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT) if whom == "group" else process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=15)[1]
    assert (
        process.returncode == 130
        and "Traceback" not in message
        and "Error" not in message
        and time.monotonic() - began < 8
    ), message
    until(lambda: not session(process.pid), 5)
    es = grid(**SMALL, epochs=3000, seed=range(4))
    assert [(work_dir(e) / "checkpoint.pt").exists() for e in es] == [
        True,
        True,
        False,
        False,
    ] and not any(map(is_claimed, es))


def test_a_parent_that_is_killed_leaves_no_workers(start, store):
    process = start(texts(epochs=3000, seed="0-3"), 2)
    until(
        lambda: (
            len([p for p in store.glob("*.work/progress.json") if '"epoch"' in p.read_text()]) == 2
        )
    )
    assert len(workers_of(process.pid)) == 2
    process.kill()
    process.communicate()
    until(lambda: not session(process.pid), 5)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_stays_when_the_sweep_ends(how, start, store, cluster):
    """A sweep that is interrupted, or dies: its runs stop on the cluster with a checkpoint.

    The cluster goes on."""
    process = start(texts(epochs=3000, seed="0-1"), 0, cluster.scheduler_address)
    es = grid(**SMALL, epochs=3000, seed=range(2))
    until(
        lambda: (
            len([p for p in store.glob("*.work/progress.json") if '"epoch"' in p.read_text()]) == 2
        )
    )
    process.send_signal(how)
    process.communicate(timeout=15)
    until(lambda: not any(map(is_claimed, es)), 10)
    assert (
        all((work_dir(e) / "checkpoint.pt").exists() for e in es)
        and len(cluster.scheduler_info["workers"]) == 2
    )
    assert sweep(grid(**SMALL, epochs=1), scheduler=cluster)[0]["status"] == "done"
