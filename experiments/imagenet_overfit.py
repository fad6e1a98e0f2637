"""The whole way from pictures to an error, in minutes: NIN-ImageNet learns forty photographs by heart.

For a check of data, input and network on a CPU, with a prepared part of ImageNet: in training it sees random windows, and in
evaluation (`--mode=eval --config.eval_split=train`) gets all of them right. Weights of He et al., no dropout, no weight decay.
"""

from nin_jax.config import default


def get_config(arg=None):
    if arg is not None:
        raise ValueError(f"unknown argument {arg!r}: imagenet_overfit.py takes none")
    config = default()
    config.dataset = "imagenet"
    config.eval_split = "validation"
    config.preprocess = ("mean(per='channel')", "scale(divisor=58.0)")
    config.augment = ("flip()",)
    config.model.name = "nin_imagenet"
    config.model.layers = (
        "mlpconv(maps=(96, 96, 96), size=11, stride=4, pad=0)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(256, 256, 256), size=5)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(384, 384, 384), size=3)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(1024, 1024), size=3)",
    )
    config.model.class_deviation = 0.01
    config.model.relu_on_class_maps = False
    config.batch_size = 8
    config.epochs = 90
    config.optimizer.learning_rate = 0.03
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_epochs = 2.0
    config.schedule.decay = "linear"
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 10
    return config
