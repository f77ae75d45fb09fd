"""The stored runs in MLflow: each once, whatever happens in between; its page in a real browser."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict
from urllib.parse import urlsplit

import pytest
from conftest import ROOT

pytest.importorskip("mlflow")

from wavescat.runs import mlflow_log  # noqa: E402
from wavescat.runs.experiment import experiment  # noqa: E402
from wavescat.runs.lock import claim  # noqa: E402
from wavescat.runs.mlflow_address import Unreachable, database_file, uri  # noqa: E402
from wavescat.runs.mlflow_client import connect  # noqa: E402
from wavescat.runs.mlflow_server import free_port, serve, wait_for_server  # noqa: E402
from wavescat.runs.paths import run_dir, work_dir  # noqa: E402
from wavescat.runs.remove import remove  # noqa: E402
from wavescat.runs.store import publish  # noqa: E402
from wavescat.runs.tracking import mirror  # noqa: E402

HOOK = """ # says what asks another machine
import socket, sys
def hook(event, args):
    if event in ('socket.getaddrinfo', 'socket.connect'): print(event, args[1:], file=sys.stderr)
sys.addaudithook(hook)
"""
KILLED_IN_THE_SECOND_RUN = """
import os
from wavescat.runs import mlflow_log
from wavescat.runs.tracking import mirror
log_content, logged = mlflow_log.log_content, []
def log(client, run, content, figures):
    logged.append(run)
    if len(logged) == 2:
        client.log_param(run.info.run_id, 'L', '8')
        client.set_terminated = lambda *args: os.kill(os.getpid(), 9)
    log_content(client, run, content, figures)
mlflow_log.log_content = log
mirror()
"""
WITHOUT_MLFLOW = """
import sys
sys.modules['mlflow'] = None
from wavescat.runs.mlflow_address import Unreachable
from wavescat.runs.tracking import mirror
assert not {'pandas', 'matplotlib', 'filelock'} & set(sys.modules)
try:
    mirror()
except Unreachable as error:
    print(error)
"""
MIRROR = (
    HOOK + "import json; from wavescat.runs.tracking import mirror; print(json.dumps(mirror()))"
)


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    "A database of MLflow's without runs: to make one takes seconds."
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(tmp_path, monkeypatch, tables):
    (tmp_path / "runs" / ".mlflow").mkdir(parents=True)
    shutil.copy(tables, tmp_path / "runs" / ".mlflow")
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "runs"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "runs"


def put(seed=0, accuracy=61.5, epochs=3, **result):
    "A whole run, made up."
    x = experiment(model="scatresnet18", L=8, per_class=10, epochs=epochs, seed=seed)
    history = [
        {
            "epoch": e + 1,
            "lr": 0.1 / (e + 1),
            "train_loss": 2.0 / (e + 1),
            "val_accuracy": 40.0 + e,
            "val_loss": None if e == 0 else 1.0,
        }
        for e in range(epochs)
    ]

    def save(d):
        (d / "weights.safetensors").write_bytes(bytes(2000))
        (d / "predictions.npy").write_bytes(b"p")

    publish(
        x,
        {
            "experiment": asdict(x),
            "identity": x.identity,
            "code": "c0de",
            "device": "cpu (x86_64)",
            "precision": "float32",
            "packages": {"torch": "2"},
            "test_accuracy": accuracy,
            "val_accuracy": 42.0,
            "last_test_loss": float("nan"),
            "finished": "2026-01-02T10:00:30+00:00",
            "seconds": 30.0,
            **result,
        },
        history,
        save,
    )
    return x


def fail(seed=0, message="the roof fell in"):
    x = experiment(model="scatresnet18", L=8, per_class=10, epochs=3, seed=seed)
    with contextlib.suppress(RuntimeError), claim(x):
        raise RuntimeError(message)
    return x


def client():
    return connect(uri())


def shown():
    "Runs in MLflow that aren't in its bin, by identity; each identity is there once."
    c = client()
    found = c.search_runs([e.experiment_id for e in c.search_experiments() if e.name == "wavescat"])
    by = {r.data.tags["wavescat.identity"]: r for r in found}
    assert len(by) == len(found), "a run is there twice"
    return by


def counts(done):
    return {k: done[k] for k in ("logged", "already", "left")} | {"refused": len(done["refused"])}


def files(run_id, folder=None):
    return sorted(f.path for f in client().list_artifacts(run_id, folder))


def start(*args, **env):
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def until(true, seconds=60):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


@contextlib.contextmanager
def server(port, tmp_path):
    "MLflow's own server, with a database of its own, on this machine."
    (tmp_path / "server").mkdir(exist_ok=True)
    env = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    env.pop("MLFLOW_TRACKING_URI", None)
    p = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{tmp_path}/server/mlflow.db",
            "--artifacts-destination",
            str(tmp_path / "server" / "artifacts"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ],
        env=env,
        cwd=tmp_path / "server",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_server(p, f"http://127.0.0.1:{port}")
        yield p
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        p.wait()


def test_what_mlflow_shows(store, capfd):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    def figures(directory):
        f, ax = plt.subplots()
        ax.plot([1, 2], [1, 2])
        return {"curves": f}

    database_file(uri()).unlink()
    x, diverged = put(), put(seed=1, status="diverged")
    assert counts(mirror(figures)) == {"logged": 2, "already": 0, "left": 0, "refused": 0}
    assert capfd.readouterr() == ("", "") and not plt.get_fignums()
    runs = shown()
    r = runs[x.identity]
    assert r.data.params == {k: "none" if v is None else str(v) for k, v in asdict(x).items()}
    assert (
        r.info.run_name == "scatresnet18 L=8 per_class=10 seed=0"
        and r.info.status == "FINISHED"
        and runs[diverged.identity].info.status == "FAILED"
    )
    assert r.info.end_time - r.info.start_time == 30_000 and r.info.end_time == 1767348030000
    history = client().get_metric_history(r.info.run_id, "val_accuracy")
    assert [(m.step, m.value, m.timestamp - r.info.start_time) for m in history] == [
        (1, 40, 10_000),
        (2, 41, 20_000),
        (3, 42, 30_000),
    ]
    assert [m.step for m in client().get_metric_history(r.info.run_id, "val_loss")] == [2, 3]
    assert (
        r.data.metrics["test_accuracy"] == 61.5
        and r.data.metrics["result_val_accuracy"] == 42
        and "last_test_loss" not in r.data.metrics
    )
    assert {
        k: r.data.tags[f"wavescat.{k}"]
        for k in ("identity", "code", "device", "precision", "status")
    } == {
        "identity": x.identity,
        "code": "c0de",
        "device": "cpu (x86_64)",
        "precision": "float32",
        "status": "done",
    }
    assert (
        files(r.info.run_id) == ["config.json", "figures", "history.json", "model", "result.json"]
        and files(r.info.run_id, "figures") == ["figures/curves.png"]
        and files(r.info.run_id, "model") == ["model/weights.safetensors"]
    )


def test_twice_is_once(store):
    for s in range(3):
        put(s)
    assert [counts(mirror(limit=n))["logged"] for n in (1, 0, 1, None, None)] == [1, 0, 1, 1, 0]
    assert len(shown()) == 3
    shutil.rmtree(store / ".mlflow" / "logged")
    assert (
        counts(mirror()) == {"logged": 0, "already": 3, "left": 0, "refused": 0}
        and len(shown()) == 3
    )


def test_another_database_gets_all(store):
    put()
    assert mirror()["logged"] == 1
    with contextlib.closing(sqlite3.connect(database_file(uri()))) as db, db:
        for what in (
            "DELETE FROM tags",
            "UPDATE runs SET lifecycle_stage = 'deleted'",
            "UPDATE experiments SET creation_time = creation_time + 1",
        ):
            db.execute(what)
    assert mirror()["logged"] == 1 and len(shown()) == 1


@pytest.mark.parametrize("lost", [False, True], ids=["", "notes lost"])
def test_computed_again(store, lost):
    x = put(accuracy=50.0)
    mirror()
    put(accuracy=70.0)
    if lost:
        shutil.rmtree(store / ".mlflow" / "logged")
    assert mirror()["logged"] == 1
    r = shown()[x.identity]
    assert (
        r.data.metrics["test_accuracy"] == 70.0
        and len(client().get_metric_history(r.info.run_id, "val_accuracy")) == 3
    )
    assert mirror()["already"] == 1


def test_another_store_takes_nothing_away(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    x = put(accuracy=50.0)
    mirror()
    shutil.copytree(store, tmp_path / "copy")
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "copy"))
    shutil.rmtree(tmp_path / "copy" / ".mlflow")
    assert mirror()["already"] == 1, "a copy of a store has the same runs"
    monkeypatch.setenv("WAVESCAT_RUNS", str(tmp_path / "other"))
    put(accuracy=51.0)
    assert mirror()["logged"] == 1
    c = client()
    assert sorted(
        r.data.metrics["test_accuracy"]
        for r in c.search_runs([c.get_experiment_by_name("wavescat").experiment_id])
        if r.data.tags["wavescat.identity"] == x.identity
    ) == [50.0, 51.0]


def test_failed_then_whole(store):
    x = fail()
    with claim(experiment(seed=9)):
        assert mirror()["logged"] == 1, "one that is being computed isn't logged"
    first = shown()[x.identity]
    assert (
        first.info.status == "FAILED"
        and first.data.tags["wavescat.error"] == "RuntimeError: the roof fell in"
        and "Traceback" in first.data.tags["wavescat.traceback"]
        and "failure.json" in files(first.info.run_id)
    )
    assert mirror()["already"] == 1
    fail(message="the floor too")
    assert (
        mirror()["logged"] == 1
        and shown()[x.identity].data.tags["wavescat.error"] == "RuntimeError: the floor too"
    )
    put()
    shutil.rmtree(work_dir(x))
    assert mirror()["logged"] == 1
    r = shown()[x.identity]
    assert (
        r.info.run_id == first.info.run_id
        and r.info.status == "FINISHED"
        and r.data.metrics["test_accuracy"] == 61.5
        and "wavescat.error" not in r.data.tags
        and r.data.tags["wavescat.status"] == "done"
    )
    assert remove(x.identity) and mirror()["logged"] == 0 and shown(), (
        "MLflow keeps what the store has let go"
    )


def test_one_that_is_refused_stops_no_other(store):
    put(0)
    x = put(1)
    put(2)

    def figures(directory):
        return {} if directory.name != x.identity else {}["no such figure"]

    done = mirror(figures)
    assert (
        counts(done) == {"logged": 2, "already": 0, "left": 0, "refused": 1}
        and "no such figure" in done["refused"][x.identity]
    )
    assert mirror()["logged"] == 1 and shown()[x.identity].info.status == "FINISHED"


def test_two_processes_at_once_and_one_killed(store):
    "Two share the work and double nothing; what a third left half logged is completed."
    for s in range(6):
        put(s)
    database_file(uri()).unlink()
    killed = start("-c", HOOK + KILLED_IN_THE_SECOND_RUN)
    assert killed.communicate(timeout=60) == ("", "")
    assert killed.returncode == -9 and sorted(r.info.status for r in shown().values()) == [
        "FINISHED",
        "RUNNING",
    ]
    both = [start("-c", MIRROR) for _ in range(2)]
    printed = [p.communicate(timeout=60) for p in both]
    assert all(p.returncode == 0 for p in both) and [e for _, e in printed] == ["", ""], printed
    done = [json.loads(o) for o, _ in printed]
    assert sorted((d["logged"], d["already"]) for d in done) == [(0, 6), (5, 1)]
    runs = shown()
    assert len(runs) == 6 and {r.info.status for r in runs.values()} == {"FINISHED"}
    assert all(len(client().get_metric_history(r.info.run_id, "lr")) == 3 for r in runs.values())


def test_a_server_that_is_down_and_comes_up_and_dies(store, tmp_path, monkeypatch):
    port = free_port("127.0.0.1", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    before = dict(os.environ)
    runs = [put(s) for s in range(3)]
    began = time.perf_counter()
    with pytest.raises(Unreachable, match="can't be reached.*the runs are stored") as e:
        mirror()
    assert (
        time.perf_counter() - began < 5
        and "\n" not in str(e.value)
        and all(run_dir(x).is_dir() for x in runs)
    )
    assert {
        k: v for k, v in os.environ.items() if k not in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    } == {k: v for k, v in before.items() if k not in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
    with server(port, tmp_path) as p:
        assert mirror(limit=1)["logged"] == 1
        keep = mlflow_log.log_content

        def log(*args):
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
            keep(*args)

        monkeypatch.setattr(mlflow_log, "log_content", log)
        began = time.perf_counter()
        with pytest.raises(Unreachable):
            mirror()
        assert time.perf_counter() - began < 5
        monkeypatch.setattr(mlflow_log, "log_content", keep)
    with server(port, tmp_path):
        assert counts(mirror()) == {"logged": 2, "already": 1, "left": 0, "refused": 0}
        seen = shown()
        assert set(seen) == {x.identity for x in runs} and {
            r.info.status for r in seen.values()
        } == {"FINISHED"}
        for r in seen.values():
            assert (
                files(r.info.run_id) == ["config.json", "history.json", "model", "result.json"]
                and len(client().get_metric_history(r.info.run_id, "lr")) == 3
            )


def test_a_server_that_never_answers(store, monkeypatch):
    put()
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{s.getsockname()[1]}")
        began = time.perf_counter()
        with pytest.raises(Unreachable) as e:
            mirror()
        assert time.perf_counter() - began < 5.5 and "\n" not in str(e.value)


def test_without_mlflow(store):
    put()
    p = start("-c", WITHOUT_MLFLOW)
    out, err = p.communicate(timeout=60)
    assert "MLflow isn't installed" in out and out.count("\n") == 1 and err == ""


def test_the_page_in_a_browser(store, browser, tmp_path):
    for s in range(3):
        put(s, accuracy=60.0 + s)
    fail(7)
    port = free_port("127.0.0.1", 0)
    p = start("-c", f"from wavescat.runs.mlflow_server import serve; serve({port})")
    try:
        printed = p.stdout.readline()
        assert printed == (
            "MLflow shows 4 runs at "
            f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning (Ctrl-C "
            "ends it)\n"
        ), printed + p.stderr.read()
        with pytest.raises(ValueError, match=f"^port {port} of 127.0.0.1 can't be had: [^\n]*$"):
            serve(port)
        page = browser.new_page(viewport={"width": 1500, "height": 800})
        asked, errors = [], []
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: errors.append(str(e)))
        place = client().get_experiment_by_name("wavescat").experiment_id
        page.goto(printed.split(" at ")[1].split()[0])
        for s in (0, 1, 2, 7):
            page.get_by_text(f"scatresnet18 L=8 per_class=10 seed={s}").first.wait_for(
                timeout=30_000
            )
        if shot := os.environ.get("WAVESCAT_SHOT"):
            page.screenshot(path=shot)
        page.get_by_text("scatresnet18 L=8 per_class=10 seed=1").first.click()
        page.get_by_text("test_accuracy").first.wait_for(timeout=30_000)
        run_id = next(r.info.run_id for r in shown().values() if r.data.params["seed"] == "1")
        page.goto(f"http://127.0.0.1:{port}/#/experiments/{place}/runs/{run_id}/artifacts")
        page.get_by_text("result.json").first.click()
        page.get_by_text("test_accuracy").first.wait_for(timeout=30_000)
        page.close()
        away = sorted({urlsplit(u).hostname for u in asked if u.startswith("http")} - {"127.0.0.1"})
        assert not away and not errors, (away, errors)
        group = subprocess.run(
            ["pgrep", "-P", str(p.pid)], capture_output=True, text=True
        ).stdout.split()
        assert len(group) == 1
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=20)
        assert (p.returncode, out, err) == (0, "", "")
        left = subprocess.run(["pgrep", "-g", group[0]], capture_output=True, text=True).stdout
        assert left == "" and free_port("127.0.0.1", port) == port
    finally:
        if p.poll() is None:
            p.terminate()
            p.wait(20)


def test_a_page_that_is_told_to_end_while_it_starts(store):
    p = start("-c", "from wavescat.runs.mlflow_server import serve; serve(0)")
    until((store / ".mlflow" / "server.log").exists)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=20)
    assert p.returncode == 0
    until(lambda: subprocess.run(["pgrep", "-f", str(store)], capture_output=True).returncode, 10)


def test_a_store_of_any_name(tmp_path, monkeypatch, store):
    """The database and the files lie in the store, whatever it is called.

    MLflow's own command reads the address too."""
    shutil.move(store, named := tmp_path / "runs? 50%20#1 'é")
    monkeypatch.setenv("WAVESCAT_RUNS", str(named))
    e = put()
    assert (
        counts(mirror()) == {"logged": 1, "already": 0, "left": 0, "refused": 0}
        and mirror()["already"] == 1
    )
    assert database_file(uri()) == named / ".mlflow" / "mlflow.db" and "result.json" in files(
        shown()[e.identity].info.run_id
    )
    assert list((named / ".mlflow" / "artifacts").rglob("result.json")) and [
        p.name for p in tmp_path.iterdir()
    ] == [named.name]
    printed = subprocess.run(
        [sys.executable, "-m", "mlflow", "experiments", "search"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri()},
    )
    assert printed.returncode == 0 and "wavescat" in printed.stdout, printed.stderr
