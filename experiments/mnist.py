"""MNIST (paper section 4.5, table 4): 0.47 % with dropout.

mnist.py           the release with experiments/cifar10.py's two changes that make it start.
mnist.py:release   the authors' files (NIN/mnist_def, mnist_params). Their schedule was never published: it is that
                   of CIFAR-10 here.
mnist.py:fast      the same topology with a modern start: standardised images, batch 64, rate 0.05 after a short
                   warm-up, inverted dropout of 0.2, no slow last layer, class maps without ReLU, 3 epochs.

plateau and tune are those of experiments/cifar10.py, joined in the same way: mnist.py:release,tune. tune validates on
the last 10,000 of the 60,000 training images.
"""

from nin_jax.config import experiment, words

ARGUMENTS = (
    *("release", "fast", "plateau", "tune", "plateau,tune"),
    *("release,plateau", "release,tune", "release,plateau,tune"),
)


def get_config(arg=None):
    chosen = words(arg, ARGUMENTS)
    config = experiment("cifar10", None if arg == "fast" else arg)
    config.dataset = "mnist"
    config.preprocess = ("scale(divisor=255)",)
    config.model.kernels = (5, 5, 5)
    config.model.widths = ((96, 64, 48), (128, 96, 48), (128, 96))
    if "tune" in chosen:
        config.train_split = "train[:50000]"
        config.eval_split = "train[50000:]"
    if "fast" in chosen:
        config.preprocess = ("mean(per='channel')", "scale()")
        config.model.dropout = 0.2
        config.model.dropout_kind = "inverted"
        config.model.relu_on_class_maps = False
        config.batch_size = 64
        config.optimizer.learning_rate = 0.05
        config.optimizer.learning_rate_factors = ()
        config.optimizer.clip_norm = 1.0
        config.epochs = 3
        config.schedule.boundaries_epochs = (2, 2.7)
        config.schedule.warmup_epochs = 0.3
    return config
