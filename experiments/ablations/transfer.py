"""Fine-tuning with the last layer discarded, as in the slides of 2014, against training from scratch: CIFAR-10 to CIFAR-100.

    pretrain       CIFAR-10, all 50,000 images, 6 epochs: what the next two start from, in runs/transfer-pretrain
    scratch        CIFAR-100, the first 2,500 images, 6 epochs, from random weights
    finetune       the same from the network of "pretrain", but for the class maps
    frozen         the same with the first two mlpconv layers kept as they are

`:fast` of experiments/cifar100.py with a quarter of the maps in each layer and dropout of 0.2, so that a CPU does each in
minutes. Where the first run lies elsewhere, give the others its directory as --config.init_from.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

ROWS = {
    "pretrain": {"dataset": "cifar10", "train_split": "train", "batch_size": 128, "eval_every_epochs": 1},
    "scratch": {},
    "finetune": {"init_from": "runs/transfer-pretrain"},
    "frozen": {
        "init_from": "runs/transfer-pretrain",
        "optimizer.learning_rate_factors": ("mlpconv[12]/=0",),
    },
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    config = experiment("cifar100", "fast")
    config.model.widths = ((48, 40, 24), (48, 48, 48), (48, 48))
    config.model.dropout = 0.2
    config.train_split = "train[:2500]"
    config.batch_size = 32
    config.epochs = 6
    config.eval_every_epochs = 6
    return ablation.row(config, ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("transfer", ROWS, seeds)
