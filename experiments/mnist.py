"""MNIST (paper section 4.5, table 4): 0.47 % with dropout.

mnist.py           the release with experiments/cifar10.py's two changes that make it start.
mnist.py:release   the authors' files (NIN/mnist_def, mnist_params). Their schedule was never published: it is that
                   of CIFAR-10 here.
mnist.py:fast      the same topology with a modern start: rate 0.02 after a short warm-up, no slow last layer, dropout
                   0.3 and inverted, a class-map layer without ReLU, 10 epochs.
"""

from nin_jax.config import experiment


def get_config(arg=None):
    config = experiment("cifar10", None if arg == "fast" else arg)
    config.dataset = "mnist"
    config.preprocess = ("scale(divisor=255)",)
    config.model.kernels = (5, 5, 5)
    config.model.widths = ((96, 64, 48), (128, 96, 48), (128, 96))
    if arg == "fast":
        config.model.dropout = 0.3
        config.model.dropout_kind = "inverted"
        config.model.relu_on_class_maps = False
        config.optimizer.learning_rate = 0.02
        config.optimizer.learning_rate_factors = ()
        config.optimizer.clip_norm = 1.0
        config.epochs = 10
        config.schedule.boundaries_epochs = (7, 9)
        config.schedule.warmup_epochs = 0.3
    return config
