"""What the paper says in words and shows in no table, on MNIST at a scale that a CPU core does in seconds.

    gap                  two 1x1 layers in each of three mlpconvs, global average pooling
    fc, fc_dropout       a fully connected layer on the class maps, without and with dropout before it. Section 3.2: global
                         average pooling "is more robust to spatial translations of the input";
                         `python -m nin_jax.paper.translations` shows shifted images to the trained networks.
    cccp_0, 1, 3         more or fewer 1x1 layers in each mlpconv. Section 3.1: the perceptron "can be a deep model itself"
    mlpconv_2, 4         more or fewer mlpconvs, each with its pool: the "stacking" of section 3.3
    radial               a radial basis network in place of the perceptron (section 3.1), with the widths of cccp_1

Ten epochs of the first 2,000 training images, tested on all 10,000 test images; about a sixth of the paper's maps in each
layer. So that so few updates learn something: what experiments/mnist.py:fast changes, batch normalisation, and a cosine.
There is no augmentation, as crops would teach every head what translations are. Only these rows can be compared with each
other.
"""

from nin_jax.config import experiment, words
from nin_jax.paper import ablation

ROWS = {
    "gap": {},
    "fc": {"model.head": "fc"},
    "fc_dropout": {"model.head": "fc_dropout"},
    "cccp_0": {"model.widths": ((8,), (8,), ())},
    "cccp_1": {"model.widths": ((16, 8), (16, 8), (16,))},
    "cccp_3": {"model.widths": ((16, 12, 12, 8), (16, 12, 12, 8), (16, 12, 12))},
    "mlpconv_2": {"model.kernels": (5, 5), "model.widths": ((16, 12, 8), (16, 12)), "model.pools": ("max",)},
    "mlpconv_4": {
        "model.kernels": (5, 5, 5, 3),
        "model.widths": ((16, 12, 8), (16, 12, 8), (16, 12, 8), (16, 12)),
        "model.pools": ("max", "max", "max"),
    },
    "radial": {},  # another model
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    words(arg, ARGUMENTS)
    config = experiment("mnist", "fast")
    config.train_split = "train[:2000]"
    config.model.widths = ((16, 12, 8), (16, 12, 8), (16, 12))
    config.model.batch_norm = True
    config.model.class_map_bias = 0.0
    config.batch_size = 32
    config.epochs = 10
    config.eval_every_epochs = 10
    config.schedule.boundaries_epochs = ()
    config.schedule.decay = "cosine"
    config.schedule.final_factor = 0.0
    if arg == "radial":
        config.model = {
            "name": "radial_basis",
            "kernels": config.model.kernels,
            "units": (16, 16, 16),
            "widths": (8, 8),
            "dropout": config.model.dropout,
            "dropout_kind": config.model.dropout_kind,
            "batch_norm": True,
        }
    return ablation.row(config, ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("claims", ROWS, seeds)
