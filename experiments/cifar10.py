"""CIFAR-10 (paper section 4.2, table 1): 10.41 % with dropout.

    cifar10.py           the release with two changes that make it start: weights from N(0, 2 / fan-in) instead of
                         N(0, 0.05^2), and the biases of the class maps start at 1 instead of 0, so that no class map
                         starts in the flat part of its ReLU. docs/starting.md has what was measured.
    cifar10.py:release   network, initial weights, rates and decay of the authors' cuda-convnet files (NIN/cifar-10_def,
                         cifar-10_params), unchanged. It does not start reliably; a run that dies stops with exit code
                         70 and says so.
    cifar10.py:caffe     the network and solver of the Caffe Model Zoo (10.4 %, gist e56253735ef32c3c296d): the second
                         pool takes the average, dropout is inverted, cccp6 is slow in its bias too, and the rate drops
                         once. docs/authors_weights.md imports the weights that the authors trained by it.
    cifar10.py:plateau   the rate as section 4.1 has it instead of after 200 and 230 epochs: when training stops improving
                         it falls to a tenth, and once more. The patience of 10 epochs is our choice.
    cifar10.py:tune      the protocol of section 4.2 for choosing hyper-parameters: the last 10,000 training images are
                         for validation. Without it, all 50,000 are trained on, "from scratch", and the test set is used.
    cifar10.py:fast      the same layers with what came later, and 30 epochs: batch normalisation, translations and flips,
                         smoothed labels, an averaged network, a cosine after a warm-up, no ReLU on the class maps, light
                         inverted dropout, one rate for all layers, more weight decay, standardised pictures. Most of
                         these are taken away one by one in experiments/ablations/fast.py.
    cifar10.py:fast100   the same in 100 epochs: 7.57 %. With dropout of 0.4 instead of 0.2 it was 7.85 % (one seed each).

plateau and tune go with release and with each other, joined by commas: cifar10.py:release,plateau,tune; fast and fast100
with tune.

Settings that the release gives in its own units (epsW, epsB, wc, coeff) are turned into the usual ones:
rate = eps * coeff, weight decay = wc / coeff.
"""

from nin_jax.config import default, words

ARGUMENTS = (
    *("release", "caffe", "fast", "fast100", "plateau", "tune", "plateau,tune", "fast,tune", "fast100,tune"),
    *("release,plateau", "release,tune", "release,plateau,tune"),
)


def get_config(arg=None):
    chosen = words(arg, ARGUMENTS)
    config = default()
    config.dataset = "cifar10"
    config.preprocess = ("gcn(scale=55)", "zca(eps=0.1)")  # "the same ... as in the maxout network"
    config.augment = ()  # 8.81 % with those of experiments/ablations/augmentation.py

    # conv1 5x5x192, cccp1 160, cccp2 96, max 3/2, dropout; conv2 5x5x192, cccp3 192, cccp4 192, max 3/2, dropout;
    # conv3 3x3x192, cccp5 192, cccp6 one map a class, global average pooling.
    config.model.name = "nin"
    config.model.kernels = (5, 5, 3)
    config.model.widths = ((192, 160, 96), (192, 192, 192), (192, 192))
    config.model.pools = ("max", "max")
    config.model.pool_start = 0
    config.model.deviations = (0.05,)
    config.model.dropout = 0.5
    config.model.dropout_kind = "classic"
    config.model.relu_on_class_maps = True
    config.model.class_map_bias = 0.0
    config.model.batch_norm = False
    config.model.head = "gap"

    config.batch_size = 128
    config.eval_batch_size = 1024
    config.epochs = 260
    config.optimizer.learning_rate = 0.1
    config.optimizer.learning_rate_factors = ("cccp6/kernel=0.1", "cccp6/bias=0.2", "bias=2")
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.boundaries_epochs = (200, 230)
    config.schedule.factor = 0.1

    if "caffe" in chosen:
        config.model.pools = ("max", "avg")
        config.model.dropout_kind = "inverted"
        config.optimizer.learning_rate_factors = ("cccp6/=0.1", "bias=2")
        # The solver counts updates: a drop after 100,000, the end after 120,000. An epoch has 390 of them here (80 images
        # are left out), so the drop is exact and the end is that of the epoch in which 120,000 falls, 120,120.
        config.schedule.boundaries_epochs = (100_000 / 390,)
        config.epochs = 308
    elif "fast" in chosen or "fast100" in chosen:
        config.preprocess = ("mean(per='channel')", "scale()")
        config.augment = ("crop(pad=4)", "flip()")
        config.model.deviations = ("he",)
        config.model.dropout = 0.2
        config.model.dropout_kind = "inverted"
        config.model.relu_on_class_maps = False
        config.model.batch_norm = True
        config.task = "classify(smoothing=0.1)"
        config.epochs = 100 if "fast100" in chosen else 30
        config.optimizer.learning_rate_factors = ()
        config.optimizer.weight_decay = 5e-4
        config.optimizer.clip_norm = 1.0
        config.optimizer.average = 0.999
        config.schedule.boundaries_epochs = ()
        config.schedule.decay = "cosine"
        config.schedule.final_factor = 0.0
        config.schedule.warmup_epochs = 1.0
    elif "release" not in chosen:
        config.model.deviations = ("he",)
        config.model.class_map_bias = 1.0
    if "plateau" in chosen:
        config.schedule.boundaries_epochs = ()
        config.schedule.plateau_epochs = 10
        config.schedule.plateau_drops = 2
    if "tune" in chosen:
        config.train_split = "train[:40000]"
        config.eval_split = "train[40000:]"
    return config


def sweep(seeds=range(1)):
    """The paper's own tuning (section 4.2), on the validation images: receptive field and weight decay.

    What was tried is not published: the values are those of experiments/ablations/receptive_field.py and weight_decay.py.
    With --final=experiments/cifar10.py, `launch.sweep` then trains with the best of them on all 50,000 images.
    """
    return [
        {
            "config": "experiments/cifar10.py:tune",
            "config.model.kernels": (side, 5, 3),
            "config.optimizer.weight_decay": decay,
            "config.seed": seed,
        }
        for side in (3, 5, 7)
        for decay in (0.0, 1e-5, 1e-4, 5e-4, 1e-3)
        for seed in seeds
    ]
