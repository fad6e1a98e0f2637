"""Sweeps: what is planned, and that each trial ends with one row whatever is killed. Every run here is a real one."""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from launch import engines, processes, results, search, sweep, trial
from launch.trial import Trial
from nin_jax import config, main
from nin_jax.errors import UserError
from tests.launch import slurm_cluster
from tests.launch.runs import launched, until

SHORT = ["--config=experiments/digits.py", "--config.epochs=4", "--config.eval_every_epochs=1"]
TINY = [*SHORT, "--config.model.widths=((8,),(8,))", "--config.optimizer.learning_rate_factors=()"]


def start(directory, env, *own, common=TINY):
    line = ["-m", "launch.sweep", f"--dir={directory}", *own, "--", *common]
    return launched(line, env)


def finish(directory, env, *own, **common):
    process = start(directory, env, *own, **common)
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    return out, err


def kill(process):
    """kill -9, without waiting for what it has started; what it has said."""
    process.kill()
    return process.communicate()[1]


def table(directory):
    with open(directory / "results.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "processes"])
def test_a_killed_sweep_ends_with_one_row_a_trial(engine, tmp_path, clean_env):
    """GAP against FC with two seeds, killed in the middle and started again; what was done is not done again."""
    own = ("--vary=model.head=gap|fc", "--seeds=0,1", f"--engine={engine}")
    killed = start(tmp_path / "sweep", clean_env, *own)
    until(lambda: list(tmp_path.glob("sweep/runs/*/summary.json")))
    kill(killed)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("sweep/runs/*/summary.json")}
    assert 0 < len(before) < 4
    out, _ = finish(tmp_path / "sweep", clean_env, *own)
    assert "4 of 4 trials have ended" in out
    rows = table(tmp_path / "sweep")
    assert sorted(row["trial"] for row in rows) == sorted(f"head={h}-seed={s}" for h in ("gap", "fc") for s in (0, 1))
    assert {row["status"] for row in rows} == {"done"}
    assert [row["seed"] for row in rows] == ["0", "1"] * 2
    for path, changed in before.items():
        assert path.stat().st_mtime_ns == changed
    for row in rows:
        summary = json.loads((tmp_path / "sweep" / "runs" / row["trial"] / "summary.json").read_text())
        assert float(row["value"]) == pytest.approx(summary["test_error_pct"], abs=1e-4)
        assert ("head=fc" in row["overrides"]) == ("head=fc" in row["trial"])
        metrics = trial.rows(tmp_path / "sweep" / "runs" / row["trial"])
        assert len({(m["step"], m["split"]) for m in metrics}) == len(metrics) == 8
    assert (tmp_path / "sweep" / "results.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_search_prunes_a_bad_trial_and_outlives_its_worker(tmp_path, clean_env):
    """A learning rate of 1e-7 is given up at the first rung; a worker killed in mid-trial costs no trial and no row."""
    own = ("--search=optimizer.learning_rate=0.2|1e-7", "--trials=5", "--prune")
    killed = start(tmp_path / "search", clean_env, *own, common=SHORT)
    until(lambda: list(tmp_path.glob("search/runs/*/metrics.jsonl")))
    said = kill(killed)
    out, err = finish(tmp_path / "search", clean_env, *own, common=SHORT)
    rows = table(tmp_path / "search")
    assert [row["trial"] for row in rows] == [f"trial-{i:03d}" for i in range(5)]
    pruned = [row for row in rows if row["status"] == "pruned"]
    assert pruned
    assert all(row["status"] == "done" for row in rows if row not in pruned)
    for row in pruned:
        assert float(row["epochs"]) < 4
        assert "1e-7" in row["overrides"]
        assert f"{row['trial']} pruned after epoch {float(row['epochs']):g}" in said + err
    assert "Best: optimizer.learning_rate=0.2" in out


@pytest.mark.slow
def test_an_array_of_a_real_slurm(tmp_path, clean_env):
    """Four trials as jobs of one array: four rows. The final run takes the best one's values."""
    try:
        cluster = slurm_cluster.Cluster(tmp_path)
        cluster.start()
    except slurm_cluster.NoSlurm as error:
        pytest.skip(str(error))
    try:
        env = {k: v for k, v in cluster.env.items() if k in clean_env or k not in os.environ}
        own = ("--vary=model.head=gap|fc", "--seeds=0,1", "--engine=slurm", "--workers=2", "--final=digits")
        out, err = finish(tmp_path / "sweep", env, *own, "--slurm=mem=0", "--slurm=cpus_per_task=1")
    finally:
        cluster.stop()
    rows = table(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["done"] * 5
    assert [row["trial"] for row in rows][-1] == "final"
    best = out.split("Best: model.head=")[1].split(",")[0]
    assert f"--config.model.head={best}" in err.split("final: ")[1]


def plan(*words):
    """The trials of a command line."""
    from launch import command

    return sweep.planned(command.parse(sweep.FLAGS, words, None))


def test_what_is_planned():
    """Rows of an ablation, combinations, seeds; each with a directory name of its own, each a legal command."""
    rows = plan("--sweep=experiments/ablations/gap_vs_fc.py", "--seeds=0,7")
    assert [t.flags["config.seed"] for t in rows] == [0, 7] * 6
    assert rows[2].name == "ablations-gap_vs_fc.py-fc-seed=0"
    both = plan(
        "--vary=model.dropout=0.0|0.5", "--vary=optimizer.weight_decay=0.0|1e-4|1e-3", "--seeds=1", "--", *SHORT
    )
    assert len({t.name for t in both}) == len(both) == 6
    tuning = plan("--sweep=experiments/cifar10.py")
    assert len(tuning) == 15
    for one in (*rows, *both, *tuning):
        parsed = main.parse(["main", *one.arguments(Path("runs"))])
        assert parsed.workdir == Path("runs/runs") / one.name
    assert parsed.config.model.arguments["kernels"] == (7, 5, 3)
    assert parsed.config.eval_split == "train[40000:]"


def test_the_final_run_has_the_best_values_and_the_whole_training_set():
    """The paper's own tuning: chosen on 10,000 validation images, then trained on all 50,000."""
    plan("--sweep=experiments/cifar10.py", "--final=experiments/cifar10.py")
    one = {"config": "experiments/cifar10.py:tune", "config.model.kernels": (3, 5, 3), "config.seed": 4}
    parsed = main.parse(["main", *sweep.final(one, ["--config.epochs=7"]).arguments(Path("runs"))]).config
    assert (parsed.model.arguments["kernels"], parsed.epochs, parsed.seed) == ((3, 5, 3), 7, 0)
    assert (parsed.train_split, parsed.eval_split) == ("train", "test")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-- --config=digits", "nothing to sweep"),
        ("--vary=model.head -- --config=digits", "must be KEY=VALUE"),
        ("--vary=model.hed=gap -- --config=digits", "did you mean 'model.head'"),
        ("--vary=model.head=gap|x -- --config=digits", "head"),
        ("--seeds=a -- --config=digits", "whole numbers"),
        ("--seeds=1,1 -- --config=digits", "are the same"),
        ("--sweep=experiments/nothing.py", "no such file"),
        ("--sweep=experiments/digits.py", "no function sweep"),
        ("--search=batch_size=8.. -- --config=digits", "an end is missing"),
        ("--search=batch_size=9..8 -- --config=digits", "LOW..HIGH"),
        (
            "--search=optimizer.momentum=0..1 -- --config=digits",
            "these are whole numbers alone; for those between write 0.0",
        ),
        ("--search=model.dropout=0..1 -- --config=digits", "for those between write 0.0..1.0"),
        ("--sweep=LICENSE", "--sweep=LICENSE: IndentationError"),
        ("--search=batch_size=8..16 --seeds=1 -- --config=digits", "do not go with"),
        ("--seeds=0 --final=nothing -- --config=digits", "no such file"),
        ("--dir= --seeds=0 -- --config=digits", "--dir=: must name a directory"),
    ],
)
def test_a_mistake_costs_one_line(line, said, tmp_path):
    """Before anything is run or written."""
    with pytest.raises(UserError, match=said):
        sweep.launch([f"--dir={tmp_path / 'sweep'}", *line.split()])
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("text", ["{half", "[]", "", "null"])
def test_a_directory_with_something_else_in_it(text, tmp_path):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match="holds another sweep; choose another directory"):
        sweep.launch([f"--dir={tmp_path}", "--seeds=0", "--", "--config=digits"])
    assert (tmp_path / "sweep.json").read_text() == text


@pytest.mark.parametrize("directory", ["gs://bucket/sweep", "s3://b", "hdfs://host:1/a/b"])
def test_a_directory_that_is_no_local_one(directory, tmp_path, monkeypatch):
    """Refused before anything starts, and no folder "gs:" is made."""
    monkeypatch.chdir(tmp_path)
    for own in (["--seeds=0"], ["--search=batch_size=8..16"], ["--seeds=0", "--dry_run"]):
        with pytest.raises(
            UserError, match=f"^--dir={directory}: {directory.split(':')[0]}:// is not supported; "
        ) as error:
            sweep.launch([f"--dir={directory}", *own, "--", "--config=digits"])
        assert error.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_spaces():
    """Whole numbers, numbers, logarithmic ones, words."""
    found = search.distributions({"batch_size": "8..64", "a.b": "0.1..1", "c": "1e-5..1e-2:log", "d": "gap|fc"})
    kinds = {key: type(d).__name__.removesuffix("Distribution") for key, d in found.items()}
    assert kinds == {"batch_size": "Int", "a.b": "Float", "c": "Float", "d": "Categorical"}
    assert (found["a.b"].low, found["a.b"].high, found["c"].log) == (0.1, 1.0, True)


def ended(directory, name, flags, status="done", error=10.0):
    """A run directory as it is when a run has ended."""
    one = Trial(name, flags, ["--config=experiments/digits.py"])
    workdir = directory / "runs" / name
    workdir.mkdir(parents=True)
    plain = config.to_dict(main.parse(["main", *one.arguments(directory)]).config)
    (workdir / "config.json").write_text(json.dumps(plain))
    row = {"step": 22, "epoch": 1, "split": "test", "loss": 1.0, "error_pct": error}
    (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    facts = {
        "epochs": 60,
        "step": 1320,
        "train_seconds": 1.0,
        "device": "cpu",
        "devices": 1,
        "versions": {},
        "commit": None,
    }
    summary = {"status": status, "test_error_pct": error if status == "done" else None, "seed": plain["seed"], **facts}
    if status in ("done", "diverged"):
        (workdir / "summary.json").write_text(json.dumps(summary))
    return one


def test_results(tmp_path):
    """A row for each trial that has ended, a line for each setting; the best has all its seeds done."""
    fc = {"config.model.head": "fc"}
    trials = [
        ended(tmp_path, "gap-0", {"config.seed": 0}, error=9.0),
        ended(tmp_path, "gap-1", {"config.seed": 1}, error=11.0),
        ended(tmp_path, "fc-0", fc | {"config.seed": 0}, error=2.0),
        ended(tmp_path, "fc-1", fc | {"config.seed": 1}, "diverged", 90.0),
        ended(tmp_path, "running", {"config.seed": 3}, "running"),
    ]
    results.write(results.collect(trials, tmp_path), len(trials), tmp_path)
    rows = table(tmp_path)
    assert [(r["trial"], r["status"], r["seed"], r["value"]) for r in rows] == [
        ("gap-0", "done", "0", "9.0"),
        ("gap-1", "done", "1", "11.0"),
        ("fc-0", "done", "0", "2.0"),
        ("fc-1", "diverged", "1", "90.0"),
    ]
    assert rows[2]["overrides"] == "--config.model.head=fc"
    text = (tmp_path / "summary.md").read_text()
    assert "4 of 5 trials" in text
    assert "| all | 10.00 ± 1.41 | 2 |  |" in text
    assert "| model.head=fc | 2.00 | 1 | diverged |" in text
    assert "Best: all, 10.00." in text


# What earlier tests left to the garbage collector, such as open sockets, may be found while one of these waits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_queue_gives_each_accelerator_one_trial_at_a_time(tmp_path, monkeypatch):
    """Five commands on two slots: never two on one, all ended, their exit codes in order."""
    script = "import os, sys, time; p = os.environ['CUDA_VISIBLE_DEVICES']; os.mkdir(p); time.sleep(0.2); os.rmdir(p)"
    monkeypatch.setattr(
        processes, "MAIN", (sys.executable, "-c", f"{script}; sys.exit(int(sys.argv[-1][-1]) % 2 * 70)")
    )
    slots = [{"CUDA_VISIBLE_DEVICES": str(tmp_path / name)} for name in "ab"]
    changes = []
    trials = [Trial(f"t{i}", {"x": i}) for i in range(5)]
    codes = engines.Local(slots).run(trials, tmp_path, lambda: changes.append(1))
    assert codes == [0, 70, 0, 70, 0]
    assert len(changes) == 5


# What earlier tests left to the garbage collector, such as open sockets, may be found while one of these waits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_stopped_queue_starts_nothing_more(name, tmp_path, monkeypatch):
    """A signal is passed on to the trial that runs; those that wait are left for the next start."""
    script = f"import os, signal, time; os.kill(os.getppid(), signal.{name}); time.sleep(900)"
    monkeypatch.setattr(processes, "MAIN", (sys.executable, "-c", script))
    trials = [Trial(f"t{i}", {}) for i in range(3)]
    begin = time.monotonic()
    assert engines.Local([{}]).run(trials, tmp_path, lambda: None) == [75, 75, 75]
    assert time.monotonic() - begin < 300
    assert not (tmp_path / "runs" / "t1").exists()
    assert signal.getsignal(signal.Signals[name]) == signal.SIG_DFL


# What earlier tests left to the garbage collector, such as open sockets, may be found while one of these waits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_trial_that_is_being_started_is_stopped_too(tmp_path, monkeypatch):
    """The signal comes when the trial's process is there, and before the queue knows it."""
    monkeypatch.setattr(processes, "MAIN", (sys.executable, "-c", "import time; time.sleep(60)"))
    real = processes.start

    def start(*arguments):
        process = real(*arguments)
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(processes, "start", start)
    assert trial.run([Trial("t", {})], tmp_path) == [75]


# What earlier tests left to the garbage collector, such as open sockets, may be found while one of these waits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_trial_is_started_again(tmp_path, monkeypatch):
    """Exit code 75 from outside: the same command once more."""
    script = "import sys, pathlib; p = pathlib.Path(sys.argv[1].split('=')[1], 'n'); n = len(p.read_text()) if p.exists() else 0"
    script += "; p.write_text('x' * (n + 1)); sys.exit(75 if n < 2 else 0)"
    monkeypatch.setattr(processes, "MAIN", (sys.executable, "-c", script))
    assert trial.run([Trial("t", {})], tmp_path) == [0]
    assert (tmp_path / "runs" / "t" / "n").read_text() == "xxx"


def test_a_directory_may_be_moved_and_named_in_any_way(tmp_path, monkeypatch):
    """Absolute, relative, by a link, moved: the same sweep, whose finished trials are kept. With other flags it is another."""
    first, moved, line = tmp_path / "first", tmp_path / "moved", ["--seeds=0,1", "--", "--config=digits"]
    for seed, error in ((0, 9.0), (1, 11.0)):
        ended(first, f"seed={seed}", {"config.seed": seed}, error=error)

    def values(directory):
        (tmp_path / "moved" / "results.csv").unlink(missing_ok=True)
        assert sweep.launch([f"--dir={directory}", *line]) == 0
        return [row["value"] for row in table(directory)]

    monkeypatch.chdir(tmp_path)
    assert values(first) == ["9.0", "11.0"]
    first.rename(moved)
    (tmp_path / "link").symlink_to(moved)
    for name in (moved, "moved", "./moved", "moved/../moved/", "link"):
        assert values(Path(name)) == ["9.0", "11.0"]
    monkeypatch.chdir("moved")
    assert values(Path(".")) == ["9.0", "11.0"]
    with pytest.raises(UserError, match=r"--dir=\. holds another sweep"):
        sweep.launch(["--dir=.", *line, "--config.epochs=2"])


def test_a_dry_run_shows_every_command(tmp_path, capsys):
    """Each of them is a legal command line."""
    own = ["--vary=model.head=gap|fc", "--seeds=0,1", "--dry_run", "--final=digits", f"--dir={tmp_path / 'sweep'}"]
    assert sweep.launch([*own, "--", "--config=digits"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == 5
    for line in lines:
        assert line.startswith("python -m nin_jax.main --workdir=")
        main.parse(["main", *line.split()[3:]])
    assert not (tmp_path / "sweep").exists()
