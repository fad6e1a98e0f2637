"""The embedded 8x8 digits (1,442 to train on, 355 held out): the whole program in a minute, without a download."""

from nin_jax.config import default


def get_config(arg=None):
    if arg is not None:
        raise ValueError(f"unknown argument {arg!r}: digits.py takes none")
    config = default()
    config.dataset = "digits"
    config.preprocess = ("scale(divisor=255)",)
    config.model.name = "nin"
    config.model.kernels = (3, 3)
    config.model.widths = ((32, 32, 32), (64, 64))
    config.model.pools = ("max",)
    config.model.deviations = ("he",)
    config.model.dropout = 0.3
    config.model.dropout_kind = "inverted"
    config.model.relu_on_class_maps = False  # with it a digit is lost in some seeds
    config.model.head = "gap"
    config.batch_size = 64
    config.eval_batch_size = 1024
    config.epochs = 60
    config.optimizer.learning_rate = 0.1
    config.optimizer.learning_rate_factors = ("cccp4/=0.1",)
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.5
    config.schedule.boundaries_epochs = (45, 55)
    config.schedule.factor = 0.1
    config.schedule.warmup_epochs = 0.0
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 10
    return config
