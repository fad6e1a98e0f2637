"""My own pictures: --config.data_dir=PATH to a folder with one folder of pictures for each class.

Pictures become 32x32 (dataset "folder(size=64)" for larger ones); a fifth of each class is held out as the test split.
The paper's network with a modern start, and its augmentation.
"""

from nin_jax.config import experiment


def get_config(arg=None):
    if arg is not None:
        raise ValueError(f"unknown argument {arg!r}: folder.py takes none")
    config = experiment("mnist", "fast")
    config.dataset = "folder(size=32)"
    config.augment = ("crop(pad=4)", "flip()")
    config.model.kernels = (5, 5, 3)
    config.model.widths = ((192, 160, 96), (192, 192, 192), (192, 192))
    config.model.dropout = 0.3
    config.batch_size = 32
    config.eval_batch_size = 0  # as in training: pictures may be of any size
    config.optimizer.learning_rate = 0.02
    config.epochs = 30
    config.schedule.boundaries_epochs = (20, 26)
    config.schedule.warmup_epochs = 1.0
    return config
