"""CIFAR-100 (paper section 4.3, table 2): 35.68 % with dropout.

cifar100.py           "we do not tune the hyper-parameters, but use the same setting as the CIFAR-10 dataset. The only
                      difference is that the last mlpconv layer outputs 100 feature maps": experiments/cifar10.py
                      with its two changes that make it start.
cifar100.py:release   the authors' files (NIN/cifar-100_def, cifar-100_params), which differ from the paper's
                      sentence: other initial weights, rate 0.02, weight decay 5e-4, no slow last layer.
cifar100.py:fast      experiments/cifar10.py:fast with 100 class maps and dropout of 0.4, with which 100 epochs were
                      recorded (29.11 %; 0.2 has not been run); cifar100.py:fast100 is the same in 100 epochs.

plateau and tune are those of experiments/cifar10.py, joined in the same way: cifar100.py:release,tune; fast and
fast100 with tune.
"""

from nin_jax.config import experiment, words

ARGUMENTS = (
    *("release", "fast", "fast100", "plateau", "tune", "plateau,tune", "fast,tune", "fast100,tune"),
    *("release,plateau", "release,tune", "release,plateau,tune"),
)


def get_config(arg=None):
    chosen = words(arg, ARGUMENTS)
    config = experiment("cifar10", arg)
    config.dataset = "cifar100"
    if "fast" in chosen or "fast100" in chosen:
        config.model.dropout = 0.4
    if "release" in chosen:
        # conv1, cccp1, cccp2, conv2, cccp3, cccp4, conv3, cccp5, cccp6
        config.model.deviations = (0.001, 0.01, 0.01, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05)
        config.optimizer.learning_rate = 0.02
        config.optimizer.learning_rate_factors = ("bias=2",)
        config.optimizer.weight_decay = 5e-4
    return config
