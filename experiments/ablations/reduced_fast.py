"""The rows of experiments/ablations/fast.py at a scale that a CPU core does in minutes: few images, narrow layers.

    all, no_batch_norm, no_augmentation, no_smoothing, no_average, steps, classic, relu, slow_last, gcn_zca    as there

Trained on the first 2,500 images, tested on all 10,000 test images; a quarter of the maps in each layer; 15 epochs of
batches of 32, with dropout of 0.2, which was chosen at this scale. "steps" drops the rate in the same parts of the run. What
a part buys here need not be what it buys on 50,000 images.
"""

import runpy

from nin_jax.config import experiment, experiments
from nin_jax.paper import ablation

ROWS = runpy.run_path(str(experiments()["ablations/fast"]))["ROWS"]
ROWS["steps"] = ROWS["steps"] | {"schedule.boundaries_epochs": (11.55, 13.2)}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    config = experiment("ablations/fast")
    config.train_split = "train[:2500]"
    config.model.widths = ((48, 40, 24), (48, 48, 48), (48, 48))
    config.model.dropout = 0.2
    config.batch_size = 32
    config.epochs = 15
    config.eval_every_epochs = 5
    return ablation.row(config, ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("reduced_fast", ROWS, seeds)
