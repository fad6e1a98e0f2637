"""What the fault tests share: how many cases to try, the tally, the undisturbed run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jax.sharding import AxisType

from nin_jax.devices.mesh import AXIS
from tests.faults import harness


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    """Counts the cases of a test by what came of them; `python -m tests.faults` writes them down."""
    counts = Counter[str]()
    yield counts
    for outcome, number in counts.items():
        record_property(outcome, number)


@pytest.fixture
def luck(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers, the same in every quick run; in a campaign others each time, whose seed is printed."""
    seed = random.SystemRandom().randrange(10**6) if harness.FULL else 0
    print(f"{request.node.name}: seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of `harness.TINY`, by the real command."""
    workdir = tmp_path_factory.mktemp("calm") / "run"
    ended = harness.run(harness.words(workdir))
    assert ended.code == 0, ended.err
    assert ended.clean(), ended.err
    return workdir


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands have one device, so what runs in this process has one too."""
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    monkeypatch.setattr("nin_jax.training.build.make_mesh", lambda: mesh)
