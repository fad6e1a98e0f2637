"""The paper's comparisons on CIFAR-10, at a scale that two CPU cores do in minutes: a fifth of the images, narrow layers.

    gap           global average pooling, dropout between the mlpconv layers
    fc            a fully connected layer on the class maps instead, without dropout before it (table 5)
    no_dropout    gap without dropout (figure 3)
    linear        gap with linear convolutions instead of mlpconv, 47 filters in the first two: 63,084 parameters to
                  mlpconv's 63,770

Trained on the first 10,000 images, tested on all 10,000 test images; a quarter of the paper's maps in each layer.
The start is that of experiments/cifar100.py, batches are of 32 and the rate drops once, so that 20 epochs are enough to
learn something. Nothing here can be compared with the numbers that the paper prints, only the rows with each other.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

ROWS = {
    "gap": {},
    "fc": {"model.head": "fc"},
    "no_dropout": {"model.dropout": 0.0},
    "linear": {
        "model.widths": ((47,), (47,), ()),
        "optimizer.learning_rate_factors": ("conv3/kernel=0.1", "conv3/bias=0.2", "bias=2"),
    },
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    config = experiment("cifar10")
    config.train_split = "train[:10000]"
    config.model.widths = ((48, 40, 24), (48, 48, 48), (48, 48))
    config.model.class_map_bias = 1.0
    config.optimizer.clip_norm = 0.5
    config.batch_size = 32
    config.epochs = 20
    config.eval_every_epochs = 2
    config.schedule.boundaries_epochs = (16,)
    return ablation.row(config, ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("reduced", ROWS, seeds)
