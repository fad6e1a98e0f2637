"""What the files of experiments/ablations share: a row of a table as a config, and the whole table as a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nin_jax.config import Config, words

Rows = Mapping[str, Mapping[str, Any]]  # what each row sets, by the row's name: {"fc": {"model.head": "fc"}}


def row(config: Config, rows: Rows, name: str | None) -> Config:
    """`config` with what the row of that name sets; as it is without a name. Raises ValueError for another name."""
    if name is not None:
        words(name, tuple(rows))
        config.update_from_flattened_dict(rows[name])
    return config


def sweep(ablation: str, rows: Rows, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Every row with every seed, as the flags of `nin_jax.main`: [{"config": FILE:ROW, "config.seed": 0}, ...]."""
    seeds = list(seeds)
    file = f"experiments/ablations/{ablation}.py"
    return [{"config": f"{file}:{name}", "config.seed": seed} for name in rows for seed in seeds]
