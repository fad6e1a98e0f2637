"""Network in ZFNet and ZFNet on ImageNet (slides of 2014), "256xN training and 3 view test".

    zfnet.py           Network in ZFNet: cccp layers after each convolution, 65,630,024 parameters. Slides: 10.91 % error
                       of one model, 9.79 % of three (top-5, as the table of ILSVRC 2014 counts).
    zfnet.py:gap       the same with class maps and global average pooling in place of the two hidden layers: 7,255,880
                       parameters. Not in the slides.
    zfnet.py:plain     what they started from: ZFNet with 512, 1024 and 512 maps in its last convolutions. Zeiler and
                       Fergus 2013 report 37.5 % top-1, 16.0 % top-5 error for it.

Of Network in ZFNet the slides give kernels, strides and numbers of maps, and the views. All else is of ZFNet where that
says it: batch 128, rate 0.01, momentum 0.9, dropout of 0.5 between the fully connected layers, 70 epochs. Our choice: the
drops of the rate (ZFNet: "manually, when the validation error plateaus"), weight decay (Krizhevsky et al. 2012), and
AlexNet's response normalisation for ZFNet's contrast normalisation. None of it has been run to its end here.

Three runs with other seeds vote by --mode=eval --ensemble=DIR1,DIR2,DIR3.
"""

from nin_jax.config import default, words

ARGUMENTS = ("gap", "plain")


def get_config(arg=None):
    words(arg, ARGUMENTS)
    config = default()
    config.dataset = "imagenet"
    config.eval_split = "validation"
    config.preprocess = ("mean(per='pixel')",)
    config.augment = ("flip()",)
    config.eval.views = "3-view"

    # conv1 7x7/2x96, cccp1 96; conv2 5x5/2x256, cccp2 256; conv3 3x3x512, cccp3 256; conv4 3x3x1024, cccp4 512, cccp5 384;
    # conv5 3x3x512, cccp6 256; max 3/2 after 1, 2 and 5; 4096, 4096, 1000.
    config.model.name = "zfnet" if arg == "plain" else "network_in_zfnet"
    config.model.head = "gap" if arg == "gap" else "fc_dropout"
    config.model.batch_norm = False

    config.batch_size = 128
    config.epochs = 70
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.schedule.boundaries_epochs = (30, 50, 60)
    config.schedule.factor = 0.1
    return config
