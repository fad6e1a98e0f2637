"""CIFAR-100 (paper section 4.3, table 2): 35.68 % with dropout.

cifar100.py           "we do not tune the hyper-parameters, but use the same setting as the CIFAR-10 dataset. The only
                      difference is that the last mlpconv layer outputs 100 feature maps": experiments/cifar10.py
                      with its two changes that make it start.
cifar100.py:release   the authors' files (NIN/cifar-100_def, cifar-100_params), which differ from the paper's
                      sentence: other initial weights, rate 0.02, weight decay 5e-4, no slow last layer.
"""

from nin_jax.config import experiment


def get_config(arg=None):
    config = experiment("cifar10", arg)
    config.dataset = "cifar100"
    if arg == "release":
        # conv1, cccp1, cccp2, conv2, cccp3, cccp4, conv3, cccp5, cccp6
        config.model.deviations = (0.001, 0.01, 0.01, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05)
        config.optimizer.learning_rate = 0.02
        config.optimizer.learning_rate_factors = ("bias=2",)
        config.optimizer.weight_decay = 5e-4
    return config
