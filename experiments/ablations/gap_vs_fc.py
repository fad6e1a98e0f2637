"""Global average pooling against fully connected layers (paper section 4.6 and table 5), on CIFAR-10.

    gap               mlpconv + global average pooling: 10.41 %
    fc                a fully connected layer, 8 x 8 x 10 -> 10, on the class maps instead: 11.59 %
    fc_dropout        the same after dropout of 0.5: 10.88 %
    conv_gap          the conventional CNN of experiments/convnet.py, averaging its 10 local maps: 16.46 %
    conv_fc           a fully connected layer on them instead: 17.56 %
    conv_fc_dropout   the same after dropout: 15.99 %

"With and without dropout before the fully connected linear layer": the dropout that comes and goes is that before the
last layer. The one between the mlpconv layers stays in all three, as it is "added ... to all the models used in this
paper" (section 4.2). Initial weights and rate of the fully connected layer are not published; here the weights start as
those of the layer below, and the rate is the base rate.
"""

from nin_jax.config import experiment, words
from nin_jax.paper import ablation

ROWS = {
    "gap": {},
    "fc": {"model.head": "fc"},
    "fc_dropout": {"model.head": "fc_dropout"},
    "conv_gap": {},  # experiments/convnet.py:gap, and so on
    "conv_fc": {},
    "conv_fc_dropout": {},
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    words(arg, ARGUMENTS)
    if arg and arg.startswith("conv_"):
        return experiment("convnet", arg.removeprefix("conv_"))
    return ablation.row(experiment("cifar10"), ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("gap_vs_fc", ROWS, seeds)
