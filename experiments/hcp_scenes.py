"""HCP (Wei et al. 2014) in composed scenes: which of ten classes are in a picture of one to three CIFAR-10 images on textured ground.

    hcp_scenes.py:images    image fine-tuning: the shipped CIFAR-10 network on whole scenes, scaled to its 32 x 32 pixels.
                            It is also what HCP is compared with.
    hcp_scenes.py           hypotheses fine-tuning: the network of the first, in runs/hcp_scenes-images, on 10 clusters of
                            hypotheses; in training one of each is drawn at every update, in evaluation all 3 are seen.
                            Where the first run lies elsewhere: --config.init_from=DIR

The loss, momentum and the two stages are the paper's. Its rates, 0.001 and 0.0001 with ten times as much in the last layer and a
tenth after 20 and 40 of 60 epochs, are those of experiments/hcp_voc.py; here few scenes are to be learned in minutes on a
CPU, so rates are higher and epochs fewer.
"""

from nin_jax.config import experiment, words

ARGUMENTS = ("images",)


def get_config(arg=None):
    images = "images" in words(arg, ARGUMENTS)
    config = experiment("hcp_voc", arg)
    config.data_dir = None
    config.train_split = "train"
    config.dataset = "scenes(train=100, test=100)" if images else "scenes(train=100, test=100, clusters=10, each=3)"
    config.optimizer.learning_rate = 0.01
    config.optimizer.learning_rate_factors = ()
    config.epochs = 20 if images else 2
    config.schedule.boundaries_epochs = (12, 16) if images else (1,)
    config.eval_every_epochs = config.epochs
    if not images:
        config.init_from = "runs/hcp_scenes-images"
    return config
