"""The paper's numbers against what the paper says of them in other words; every experiment they name is there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nin_jax import main
from nin_jax.paper import reported, tables

BY_NAME = {row.name: row for row in reported.ROWS}


def test_rows_are_told_apart_and_have_a_config_or_a_reason() -> None:
    assert len(BY_NAME) == len(reported.ROWS)
    for row in reported.ROWS:
        assert bool(row.configs) != bool(row.without), row


@pytest.mark.parametrize("table", [f"Table {n}" for n in range(1, 6)])
def test_the_tables_are_printed_from_the_worst_to_the_best(table: str) -> None:
    values = [row.value for row in reported.ROWS if row.table == table]
    assert values == sorted(values, reverse=True)
    assert len(values) == {"Table 1": 8, "Table 2": 5, "Table 3": 7, "Table 4": 4, "Table 5": 3}[table]


def test_what_the_text_says_of_the_numbers() -> None:
    value = {name: row.value for name, row in BY_NAME.items()}
    nin = value["Table 1: NIN + Dropout"]
    assert value["Table 5: mlpconv + Global Average Pooling"] == nin == value["Slides: Our method, CIFAR-10"]
    assert value["Slides: Previous best performance (Maxout), CIFAR-10"] == value["Table 1: Conv. maxout + Dropout"]
    assert value["Slides: Previous best performance (Maxout), CIFAR-100"] == value["Table 2: Conv. maxout + Dropout"]
    # "reduced the test error by more than 20%"; "improves more than one percent"; "one percent improvement"
    without = value["Figure 3: NIN without dropout"]
    assert 100 * (1 - nin / without) > reported.FIGURE_3_REDUCTION_PCT
    assert value["Table 1: Conv. maxout + Dropout"] - nin > 1
    assert value["Table 2: Tree based priors"] - value["Table 2: NIN + Dropout"] > 1
    assert value["Section 4.6: CNN + Fully Connected"] - value["Section 4.6: CNN + Global Average Pooling"] > 1
    assert value["Slides: Our method, CIFAR-100"] != value["Table 2: NIN + Dropout"]  # the sources disagree
    gains = [value[f"Slides: {n}, validation"] for n in ("NIN", "3 NINs", "3 NINs + ctx")]
    assert np.diff(gains) == pytest.approx([0.91, 0.97])  # printed beside them


def test_the_means_of_the_voc_table_are_those_of_its_categories() -> None:
    table = np.array([v for k, v in reported.VOC_2012.items() if k != "MAP"])
    assert table.shape == (20, len(reported.VOC_METHODS))
    np.testing.assert_allclose(table.mean(0), reported.VOC_2012["MAP"], atol=0.051)


@pytest.mark.parametrize("config", sorted(set(itertools.chain(*(row.configs for row in reported.ROWS)))))
def test_every_command_is_a_recipe(config: str) -> None:
    """It parses, passes the check, and is among those that a run is compared with."""
    assert main.parse(["nin_jax", f"--config={config}"]).config.epochs > 1
    assert tables.canonical(config) in tables.recipes()


def test_a_number_is_filled_on_its_own_data_set() -> None:
    names = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "SVHN": "svhn", "MNIST": "mnist", "ImageNet": "imagenet"}
    for row in reported.ROWS:
        for config in row.configs:
            plain = tables.recipes()[config]
            split = (
                "validation" if row.dataset == "ImageNet" else "test"
            )  # the labels of its test set were never published
            assert (plain["dataset"], plain["eval_split"]) == (names[row.dataset], split), config
