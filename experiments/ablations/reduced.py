"""The paper's comparisons on CIFAR-10, at a scale that a CPU core does in minutes: few images, narrow layers.

    gap           global average pooling, dropout between the mlpconv layers
    fc            a fully connected layer on the class maps instead, without dropout before it (table 5)
    no_dropout    gap without dropout (figure 3)
    linear        gap with linear convolutions instead of mlpconv, 47 filters in the first two: 63,084 parameters to
                  mlpconv's 63,770

Trained on the first 2,500 images, tested on all 10,000 test images; a quarter of the paper's maps in each layer; 30 epochs
of batches of 32 with one drop of the rate. So that so few updates learn something: standardised images instead of
whitened ones, no ReLU on the class maps, and one rate for all layers. Nothing here can be compared with the numbers that
the paper prints, only the rows with each other.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

ROWS = {
    "gap": {},
    "fc": {"model.head": "fc"},
    "no_dropout": {"model.dropout": 0.0},
    "linear": {"model.widths": ((47,), (47,), ())},
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    config = experiment("cifar10")
    config.train_split = "train[:2500]"
    config.preprocess = ("mean(per='channel')", "scale()")
    config.model.widths = ((48, 40, 24), (48, 48, 48), (48, 48))
    config.model.relu_on_class_maps = False
    config.batch_size = 32
    config.epochs = 30
    config.eval_every_epochs = 3
    config.optimizer.learning_rate = 0.05
    config.optimizer.learning_rate_factors = ()
    config.optimizer.clip_norm = 1.0
    config.schedule.boundaries_epochs = (24,)
    return ablation.row(config, ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("reduced", ROWS, seeds)
