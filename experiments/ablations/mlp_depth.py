"""Layers of the perceptron in each mlpconv (paper section 3.3: "flexible and can be tuned"); not in the paper's tables.

    cccp_2   the paper's: 966,986 parameters
    cccp_1   one 1x1 layer in each mlpconv: 865,066
    cccp_0   none, so linear convolutions; each keeps the number of maps of its mlpconv: 485,578
    linear   as cccp_0 with 193 filters in the first two, so as many parameters as mlpconv has: 963,466, 0.4 % fewer

The last layer, whose maps are the classes, learns at a tenth of the rate whatever it is called.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

LINEAR = {"optimizer.learning_rate_factors": ("conv3/kernel=0.1", "conv3/bias=0.2", "bias=2")}
ROWS = {
    "cccp_2": {},
    "cccp_1": {
        "model.widths": ((192, 96), (192, 192), (192,)),
        "optimizer.learning_rate_factors": ("cccp3/kernel=0.1", "cccp3/bias=0.2", "bias=2"),
    },
    "cccp_0": {"model.widths": ((96,), (192,), ()), **LINEAR},
    "linear": {"model.widths": ((193,), (193,), ()), **LINEAR},
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    return ablation.row(experiment("cifar10"), ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("mlp_depth", ROWS, seeds)
