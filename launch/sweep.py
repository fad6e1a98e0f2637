"""Many runs of one experiment: the rows of an ablation, values, seeds, or a search.

python -m launch.sweep --sweep=experiments/ablations/gap_vs_fc.py --seeds=0,1,2
python -m launch.sweep --vary='model.head=gap|fc' --seeds=0,1,2 -- --config=experiments/digits.py
python -m launch.sweep --search=optimizer.learning_rate=0.01..0.3:log --trials=20 --prune -- --config=experiments/digits.py
python -m launch.sweep --sweep=experiments/cifar10.py --final=experiments/cifar10.py

Runs are in DIR/runs (--dir, default runs/sweeps/NAME); DIR/results.csv has a row per trial, and DIR/summary.md and
DIR/results.png show them. A sweep that is started again keeps finished trials and resumes interrupted ones; its directory
may be moved. --engine=local runs one trial per GPU of this machine, or --workers at a time; --engine=slurm submits a Slurm
array through submitit; --engine=processes uses submitit without Slurm. --final=EXPERIMENT then runs that experiment with
the best setting.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import runpy
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch import command, engines, search
from launch import trial as trials
from launch.local import gpus
from launch.trial import Trial
from nin_jax import config as config_lib
from nin_jax import main
from nin_jax.console import say
from nin_jax.errors import Preempted, UserError, nearest, one_line
from nin_jax.storage import write_json

FLAGS = flags.FlagValues()
flags.DEFINE_string("sweep", None, "An experiment with a function sweep(seeds).", flag_values=FLAGS)
flags.DEFINE_multi_string("vary", [], "KEY=A|B|C of the config; repeated: every combination.", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "search", [], "KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A|B|C, chosen by Optuna.", flag_values=FLAGS
)
flags.DEFINE_integer("trials", 20, "Trials of a search.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("prune", False, "End bad trials of a search early, by successive halving.", flag_values=FLAGS)
flags.DEFINE_list("seeds", None, "Seeds of each setting: 0,1,2.", flag_values=FLAGS)
flags.DEFINE_string("final", None, "Experiment to run in the end, with the best setting.", flag_values=FLAGS)
flags.DEFINE_string("dir", None, "Directory of the sweep; default runs/sweeps/NAME.", flag_values=FLAGS)
flags.DEFINE_enum("engine", "local", ("local", "slurm", "processes"), "What runs the trials.", flag_values=FLAGS)
flags.DEFINE_integer("workers", None, "Trials at a time; default: one a GPU, else 1.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_multi_string("slurm", [], "KEY=VALUE of submitit, such as gpus_per_node=1.", flag_values=FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the commands and start nothing.", flag_values=FLAGS)


def launch(argv: Sequence[str]) -> int:
    """Runs the command line above."""
    rest = command.parse(FLAGS, argv, __doc__)
    if not (FLAGS.sweep or FLAGS.vary or FLAGS.search or FLAGS.seeds):
        raise UserError("nothing to sweep: give --sweep, --vary, --search or --seeds")
    if FLAGS.search and (FLAGS.sweep or FLAGS.vary or FLAGS.seeds):
        raise UserError("--search chooses by itself; --sweep, --vary and --seeds do not go with it")
    directory = main.local_directory("--dir", f"runs/sweeps/{_name(rest)}" if FLAGS.dir is None else FLAGS.dir)
    spec, plan = None, []
    if FLAGS.search:
        space = dict(_pair(text, "--search") for text in FLAGS.search)
        spec = search.Spec(space, rest, FLAGS.trials, FLAGS.prune)
        plan = [search.example(spec)]
    else:
        plan = planned(rest)
    for trial in plan:  # a user error costs one line and no run
        config = main.parse(["nin_jax", *trial.arguments(directory)]).config
        if spec:
            search.check_fractions(spec.space, config_lib.to_dict(config))
    if FLAGS.final:
        main.parse(["nin_jax", *final(plan[0].flags, plan[0].common).arguments(directory)])
    if FLAGS.dry_run:
        _show(plan, directory, spec)
        return 0
    _claim(directory, spec._asdict() if spec else {"trials": {trial.name: trial.words() for trial in plan}})
    local = FLAGS.engine == "local"
    engine = engines.Local(_slots()) if local else engines.Submitit(FLAGS.engine, _slurm(), FLAGS.workers)
    return _run(directory, plan, spec, engine)


def _run(directory: Path, plan: list[Trial], spec: search.Spec | None, engine: engines.Local | engines.Submitit) -> int:
    """Runs the unfinished trials, then the final run; returns an exit code."""
    from launch import results  # imports jax, which is slow

    last: list[Trial] = []
    ended: list[tuple[Trial, results.Result]] = []

    def on_change() -> None:
        known, statuses = (plan, {}) if spec is None else _searched(directory, spec)
        planned = spec.trials if spec else len(plan)
        now = results.collect([*known, *last], directory, statuses)
        before = [result for _, result in ended]
        for trial, result in now:
            if result not in before:
                value = f", error {float(result['value']):.2f} %" if result["value"] else ""
                early = f" after epoch {float(result['epochs'] or 0):g}" if result["status"] != "done" else ""
                say(f"{len(now)} of {planned}: {trial.name} {result['status']}{early}{value}")
        if now != ended or not ended:
            ended[:] = now
            results.write(ended, planned + len(last), directory)

    if spec is None:
        left = [trial for trial in plan if not trials.is_over(trial.workdir(directory))]
        codes = engine.run(left, directory, on_change)
        bad = {trial.name: code for trial, code in zip(left, codes, strict=True) if code not in (0, 70)}
    else:
        codes = engine.work(directory, spec.trials, on_change)
        bad = {f"worker {i}": code for i, code in enumerate(codes) if code}
    on_change()
    print((directory / "summary.md").read_text(), end="")
    if bad:
        for trial in plan:
            if bad.get(trial.name, Preempted.exit_code) != Preempted.exit_code:
                say(f"{trial.name}: {trials.last_line(trial.workdir(directory))}")
        say(f"not finished: {', '.join(f'{name} ({code})' for name, code in bad.items())}; start again to resume")
        return Preempted.exit_code if set(bad.values()) == {Preempted.exit_code} else next(iter(bad.values()))
    if not FLAGS.final:
        return 0
    chosen = results.best(ended)
    if chosen is None:
        raise UserError("--final: no setting has all its trials done")
    last.append(final(chosen[0], plan[0].common))
    say(f"final: {' '.join(last[0].arguments(directory))}")
    code = engine.run(last, directory, on_change)[0]
    on_change()
    return code


def planned(common: list[str]) -> list[Trial]:
    """The trials that the flags describe, with unique names."""
    seeds = None
    if FLAGS.seeds is not None:
        try:
            seeds = [int(seed) for seed in FLAGS.seeds]
        except ValueError as error:
            raise UserError(f"--seeds={','.join(FLAGS.seeds)}: whole numbers, as in 0,1,2") from error
    entries: list[dict[str, Any]] = [{}]
    if FLAGS.sweep:
        entries = _sweep_of(FLAGS.sweep, seeds)
    elif seeds:
        entries = [{"config.seed": seed} for seed in seeds]
    choices = [[(key, v) for v in values.split("|")] for key, values in (_pair(t, "--vary") for t in FLAGS.vary)]
    plan = []
    for combination in itertools.product(*choices):
        for entry in entries:
            one = {f"config.{key}": value for key, value in combination} | entry
            plan.append(Trial(trial_name(one), one, common))
    if len({trial.name for trial in plan}) < len(plan):
        raise UserError("two trials of the sweep are the same")
    return plan


def trial_name(one: dict[str, Any]) -> str:
    """The name of a trial's directory: its flags, as far as they can stand in a file name."""
    text = "-".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in one.items())
    plain = text.replace("experiments/", "").replace("config=", "").replace("(", "").replace(")", "")
    short = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", plain)
    if len(short) <= 80:
        return short
    return f"{short[:80]}-{hashlib.sha256(json.dumps(one, default=str).encode()).hexdigest()[:6]}"


def final(setting: Any, common: Sequence[str]) -> Trial:
    """The final run: the experiment of --final with the values of a setting."""
    values = {key: value for key, value in setting.items() if key not in ("config", "config.seed")}
    others = [word for word in common if not word.startswith("--config=")]
    return Trial("final", {"config": FLAGS.final, **values}, others)


def _sweep_of(file: str, seeds: list[int] | None) -> list[dict[str, Any]]:
    """The flags of each trial of an experiment's sweep()."""
    name, known = file.removeprefix("experiments/").removesuffix(".py"), config_lib.experiments()
    path = Path(file) if Path(file).is_file() else known.get(name)
    if path is None:
        raise UserError(f"--sweep={file}: no such file; {nearest(name, known)}")
    try:
        function = runpy.run_path(str(path), run_name="experiment").get("sweep")
        if function is None:
            raise UserError(f"--sweep={file}: the experiment has no function sweep")
        return function() if seeds is None else function(seeds)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it is code, and may raise anything
        raise UserError(f"--sweep={file}: {type(error).__name__}: {one_line(error)}") from error


def _searched(directory: Path, spec: search.Spec) -> tuple[list[Trial], dict[str, str]]:
    """The trials of a search so far, and the status of those that were pruned or failed."""
    plan, statuses = [], {}
    for one in search.study(directory, spec).get_trials():
        plan.append(search.named(one, spec))
        if one.state.name in ("PRUNED", "FAIL"):
            statuses[plan[-1].name] = {"PRUNED": "pruned", "FAIL": "failed"}[one.state.name]
    return plan, statuses


def _claim(directory: Path, content: dict[str, Any]) -> None:
    """Writes what the sweep is; raises `UserError` where the directory holds another sweep."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "sweep.json"
    ours = not file.exists()
    with contextlib.suppress(OSError, ValueError, RecursionError):  # what is no JSON is no sweep of ours
        ours = ours or json.loads(file.read_text()) == json.loads(json.dumps(content))
    if not ours:
        raise UserError(f"--dir={directory} holds another sweep; choose another directory, or remove it")
    write_json(file, content)


def _show(plan: Sequence[Trial], directory: Path, spec: search.Spec | None) -> None:
    def show(trial: Trial) -> None:
        print("python -m nin_jax.main", shlex.join(trial.arguments(directory)))

    if spec:
        print(f"# {spec.trials} trials such as this one, chosen from {spec.space}")
    for trial in plan:
        show(trial)
    if FLAGS.final:
        print("# then, with the values of the best setting")
        show(final(plan[0].flags, plan[0].common))


def _slots() -> list[dict[str, str]]:
    found = gpus()
    if found:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in found[: FLAGS.workers or len(found)]]
    return [{}] * (FLAGS.workers or 1)


def _slurm() -> dict[str, Any]:
    parameters = {}
    for text in FLAGS.slurm:
        key, value = _pair(text, "--slurm")
        parameters[f"slurm_{key}"] = int(value) if value.isdigit() else value
    return parameters


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UserError(f"{flag}={text}: must be KEY=VALUE")
    return key, value


def _name(rest: Sequence[str]) -> str:
    source = FLAGS.sweep or next((word.split("=", 1)[1] for word in rest if word.startswith("--config=")), "sweep")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", source.removeprefix("experiments/").replace(".py", ""))


if __name__ == "__main__":
    command.run(launch)
