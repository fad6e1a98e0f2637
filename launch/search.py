"""A search with Optuna, whose workers share one journal.

A trial left by a killed worker is resumed by another, from its newest checkpoint. With pruning, a trial ends at a rung of
successive halving where it is not among the best trials that got so far.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch import trial as trials
from launch.trial import Row, Trial
from nin_jax import storage
from nin_jax.console import say
from nin_jax.errors import Diverged, ExitError, Preempted, UserError

REDUCTION = 3  # the best third of a rung continues


class Spec(NamedTuple):
    """A search, as stored in sweep.json.

    Attributes:
      space: the range of each config key: "0.01..0.3:log", "0..0.7", "16..64" (whole numbers), "fc|gap".
      common: flags of `nin_jax.main` that all trials share.
      trials: how many.
      prune: whether bad trials are ended early.
      seed: of the sampler.
    """

    space: dict[str, str]
    common: list[str]
    trials: int
    prune: bool
    seed: int = 0


def distributions(space: Mapping[str, str]) -> dict[str, Any]:
    """Optuna's distributions of a space. Raises `UserError`."""
    optuna = _optuna()
    found: dict[str, Any] = {}
    for key, text in space.items():
        interval = re.fullmatch(r"([^.|]+(?:\.[^.|]+)?)\.\.([^|:]+)(:log)?", text)
        try:
            if interval:
                low, high, log = interval[1], interval[2], bool(interval[3])
                whole = re.fullmatch(r"[-+]?\d+", low) and re.fullmatch(r"[-+]?\d+", high)
                kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
                number = int if whole else float
                found[key] = kind(number(low), number(high), log=log)
            elif ".." in text:
                raise ValueError("an end is missing")
            else:
                found[key] = optuna.distributions.CategoricalDistribution(text.split("|"))
        except ValueError as error:
            raise UserError(f"--search={key}={text}: LOW..HIGH, LOW..HIGH:log or A|B|C: {error}") from error
    return found


def check_fractions(space: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Raises `UserError` for "0..1" of a key that is a fraction in a plain config: 0 and 1 alone would be tried."""
    for key, one in distributions(space).items():
        value = functools.reduce(lambda section, name: section[name], key.split("."), config)
        if isinstance(value, float) and isinstance(getattr(one, "low", None), int):
            raise UserError(
                f"--search={key}={space[key]}: these are whole numbers alone; for those between write {one.low}.0..{one.high}.0"
            )


def example(spec: Spec) -> Trial:
    """One possible trial of a search, for checking its command line."""
    first = {key: d.choices[0] if hasattr(d, "choices") else d.low for key, d in distributions(spec.space).items()}
    return Trial("trial-000", {f"config.{key}": value for key, value in first.items()}, spec.common)


def study(directory: Path, spec: Spec) -> Any:
    """The Optuna study in a sweep's directory, created if it is not there."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = optuna.storages.journal
    shared = optuna.storages.JournalStorage(journal.JournalFileBackend(str(directory / "optuna.journal")))
    rungs = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    return optuna.create_study(
        storage=shared,
        study_name="sweep",
        load_if_exists=True,
        pruner=rungs if spec.prune else optuna.pruners.NopPruner(),
    )


def work(directory: Path) -> None:
    """Runs trials until there are enough. Raises `Preempted` when asked to stop."""
    spec = Spec(**json.loads((directory / "sweep.json").read_text()))
    optuna, shared = _optuna(), study(directory, spec)
    states = optuna.trial.TrialState
    while True:
        with contextlib.ExitStack() as claims:
            chosen = _claim(directory, shared, spec, claims)
            if chosen is None:
                return
            one, pruned = named(chosen, spec), []

            def on_row(row: Row, chosen=chosen, one=one, pruned=pruned) -> bool:
                if row["split"] == "train" or pruned:
                    return False
                step = round(row["epoch"])
                if step not in shared.trials[chosen.number].intermediate_values:
                    chosen.report(row["error_pct"], step)
                if spec.prune and chosen.should_prune():
                    pruned.append(step)
                    say(f"{one.name} is pruned after epoch {step} with an error of {row['error_pct']:.2f} %")
                return bool(pruned)

            code = trials.run([one], directory, on_row=on_row)[0]
            workdir = one.workdir(directory)
            result = trials.summary(workdir)
            if code == 0 and result.get("status") == "done":
                shared.tell(chosen.number, result["test_error_pct"])
            elif pruned:
                shared.tell(chosen.number, state=states.PRUNED)
            elif code == Preempted.exit_code:
                raise Preempted("the worker was stopped; start the sweep again to resume")
            else:
                shared.tell(chosen.number, state=states.FAIL)
                if code != Diverged.exit_code:
                    say(f"{one.name} failed with {code}: {trials.last_line(workdir)}")


def named(chosen: Any, spec: Spec) -> Trial:
    """The trial of a sweep for one of Optuna's."""
    flags = {f"config.{key}": value for key, value in chosen.params.items()}
    return Trial(f"trial-{chosen.number:03d}", flags, spec.common)


def _claim(directory: Path, shared: Any, spec: Spec, claims: contextlib.ExitStack) -> Any:
    """An unfinished trial that no worker holds, or a new one; None when there are enough."""
    optuna = _optuna()
    with storage.lock(directory / ".ask", wait=True):
        known = shared.get_trials(deepcopy=False)
        for left in (t for t in known if t.state == optuna.trial.TrialState.RUNNING):
            with contextlib.suppress(BlockingIOError):
                claims.enter_context(storage.lock(directory / f".trial-{left.number:03d}"))
                return optuna.trial.Trial(shared, left._trial_id)
        if len(known) >= spec.trials:
            return None
        shared.sampler = optuna.samplers.TPESampler(seed=spec.seed + len(known))
        chosen = shared.ask(distributions(spec.space))
        claims.enter_context(storage.lock(directory / f".trial-{chosen.number:03d}"))
        return chosen


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError('--search needs Optuna: python -m pip install -e ".[launch]"') from error
    return optuna


def outcome(directory: Path) -> int:
    """Runs a worker; returns its exit code."""
    try:
        work(directory)
    except ExitError as ending:
        say(str(ending))
        return ending.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(outcome(Path(sys.argv[1])))
