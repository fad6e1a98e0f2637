"""The paper's numbers against what the paper says of them in other words; every experiment they name is there."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax import main
from nin_jax.paper import reported, tables
from nin_jax.training.build import Run

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
    assert 1 - nin / value["Figure 3: NIN without dropout"] > 0.2
    assert value["Table 1: Conv. maxout + Dropout"] - nin > 1
    assert value["Table 2: Tree based priors"] - value["Table 2: NIN + Dropout"] > 1
    assert value["Section 4.6: CNN + Fully Connected"] - value["Section 4.6: CNN + Global Average Pooling"] > 1
    assert value["Slides: Our method, CIFAR-100"] != value["Table 2: NIN + Dropout"]  # the sources disagree
    gains = [value[f"Slides: {n}, validation"] for n in ("NIN", "3 NINs", "3 NINs + ctx")]
    assert np.diff(gains) == pytest.approx([0.91, 0.97])  # printed beside them


def test_the_means_of_the_voc_table_are_those_of_its_categories() -> None:
    table = np.array([list(row.values()) for category, row in reported.VOC_2012.items() if category != "MAP"])
    assert table.shape == (20, 6)
    np.testing.assert_allclose(table.mean(0), list(reported.VOC_2012["MAP"].values()), atol=0.051)


def test_the_size_of_the_imagenet_network() -> None:
    """The slide says 7.5 million parameters; megabytes are those of float32."""
    run = Run(main.parse(["nin_jax", "--config=imagenet", "--config.dataset=synthetic(size=224,classes=1000)"]).config)
    shapes = jax.eval_shape(lambda: run.model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == pytest.approx(reported.IMAGENET_COST["NIN"][0], rel=0.02)
    for parameters, megabytes, _ in reported.IMAGENET_COST.values():
        assert 4 * parameters / 2**20 == pytest.approx(megabytes, rel=0.02)


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
