"""Shared by experiments/ablations: one row of a table as a config, and the whole table as a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nin_jax.config import ConfigDict, words

Rows = Mapping[str, Mapping[str, Any]]  # settings by the row's name: {"fc": {"model.head": "fc"}}


def row(config: ConfigDict, rows: Rows, name: str | None) -> ConfigDict:
    """`config` with the settings of the named row; unchanged without a name. Raises ValueError for an unknown name."""
    if name is not None:
        words(name, tuple(rows))
        config.update_from_flattened_dict(rows[name])
    return config


def sweep(ablation: str, rows: Rows, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Every row with every seed, as flags of `nin_jax.main`: [{"config": FILE:ROW, "config.seed": 0}, ...]."""
    seeds = list(seeds)
    file = f"experiments/ablations/{ablation}.py"
    return [{"config": f"{file}:{name}", "config.seed": seed} for name in rows for seed in seeds]
