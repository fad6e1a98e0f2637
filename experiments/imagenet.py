"""ImageNet (slides of 2014): NIN of four mlpconv layers with global average pooling, 7,595,176 parameters.

    imagenet.py               network and solver of the authors' model in the Caffe Model Zoo (gist d802a5849de39225bcc6):
                              batch 64, rate 0.01, a tenth of it every 200,000 updates, 450,000 in all. Reported: 59.36 %
                              top-1 of the centre (40.64 % error); slides: 39.2 % error, of crops that they do not name.
    imagenet.py:large_batch   the same for many accelerators: batch 1,024, the rate 16 times as high after five epochs of
                              warm-up (Goyal et al. 2017), bfloat16. The schedule is the same in epochs. Its error is unmeasured.
    imagenet.py:deeper        the slides' next step: a second mlpconv of 384 maps at 13 x 13. Unmeasured.

Training images are 256 x N, random windows of 224 x 224, mirrored at random, less the mean image. --config.model.head=fc
or fc_dropout put a fully connected layer on the class maps. docs/imagenet.md tells the whole way.
"""

from nin_jax.config import default, words

ARGUMENTS = ("large_batch", "deeper")
UPDATES = 1_281_167 // 64  # of an epoch of the solver's batches


def get_config(arg=None):
    words(arg, ARGUMENTS)
    config = default()
    config.dataset = "imagenet"
    config.eval_split = "validation"
    config.preprocess = (
        "bgr()",
        "mean(per='pixel')",
    )  # OpenCV's order of the channels, as the published weights have it
    config.augment = ("flip()",)
    config.eval.views = "center"

    # conv1 11x11/4x96, cccp1 96, cccp2 96, max 3/2; conv2 5x5x256, cccp3 256, cccp4 256, max 3/2; conv3 3x3x384, cccp5 384,
    # cccp6 384, max 3/2, dropout 0.5; conv4 3x3x1024, cccp7 1024, cccp8 one map a class, global average pooling.
    config.model.name = "nin_imagenet"
    config.model.head = "gap"
    config.model.class_deviation = 0.01
    config.model.relu_on_class_maps = True
    config.model.class_map_bias = 0.0
    config.model.batch_norm = False

    config.batch_size = 64
    config.epochs = 23  # 450,000 updates are 22.5 epochs
    config.optimizer.learning_rate = 0.01
    config.optimizer.learning_rate_factors = ("bias=2",)
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.schedule.boundaries_epochs = (200_000 / UPDATES, 400_000 / UPDATES)
    config.schedule.factor = 0.1

    if arg == "large_batch":
        config.batch_size = 1024
        config.optimizer.learning_rate = 0.16
        config.schedule.warmup_epochs = 5.0
        config.precision = "bfloat16"
    elif arg == "deeper":
        config.model.layers = (
            "mlpconv(maps=(96, 96, 96), size=11, stride=4, pad=0, deviations=(0.01, 0.05, 0.05))",
            "max_pool(size=3, stride=2)",
            "mlpconv(maps=(256, 256, 256), size=5, deviations=(0.05,))",
            "max_pool(size=3, stride=2)",
            "mlpconv(maps=(384, 384, 384), size=3, deviations=(0.01, 0.05, 0.05))",
            "mlpconv(maps=(384, 384, 384), size=3, deviations=(0.01, 0.05, 0.05))",
            "max_pool(size=3, stride=2)",
            "dropout(rate=0.5)",
            "mlpconv(maps=(1024, 1024), size=3, deviations=(0.05,))",
        )
    return config
