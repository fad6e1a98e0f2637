"""HCP (Wei et al. 2014) in composed scenes: which classes are in a picture of one to three images on textured ground.

    hcp_scenes.py:images    image fine-tuning: the shipped CIFAR-10 network on whole scenes, scaled to its 32 x 32 pixels.
                            It is also what HCP is compared with.
    hcp_scenes.py           hypotheses fine-tuning: the network of the first, in runs/hcp_scenes-images, on 10 clusters of
                            hypotheses; in training one of each is drawn at every update, in evaluation all 3 are seen.
                            Where the first run lies elsewhere: --config.init_from=DIR
    hcp_scenes.py:direct    the same without the first stage and at the paper's rate of this stage: from the shipped network,
                            which knows objects of about the size that they have in hypotheses.
    hcp_scenes.py:images,mnist and hcp_scenes.py:mnist
                            the same of MNIST's digits and the shipped MNIST network, a quarter of the work

The loss, momentum and the two stages are the paper's. Its rates and epochs are those of experiments/hcp_voc.py; here few scenes are
to be learned in minutes on a CPU, so rates are higher and epochs fewer.
"""

from nin_jax.config import experiment, words

ARGUMENTS = ("images", "direct", "mnist", "images,mnist")
# What nin.mnist is, so that its weights fit.
MNIST = "nin(kernels=(5, 5, 5), widths=((96, 64, 48), (128, 96, 48), (128, 96)), deviations=('he',), class_map_bias=1.0, dropout=0.5)"


def get_config(arg=None):
    chosen = words(arg, ARGUMENTS)
    images, mnist = "images" in chosen, "mnist" in chosen
    config = experiment("hcp_voc", "images" if images else None)
    scenes = "of='mnist', side=84, size=28, smallest=300.0, " if mnist else ""
    hypotheses = "" if images else ", clusters=10, each=3"
    config.dataset = f"scenes({scenes}train=100, test=100{hypotheses})"
    config.train_split = "train"
    if "direct" not in chosen:
        config.optimizer.learning_rate = 0.01
        config.optimizer.learning_rate_factors = ()
    config.epochs = 20 if images else 2
    config.schedule.boundaries_epochs = (12, 16) if images else (1,)
    config.eval_every_epochs = config.epochs
    if mnist:
        config.model.network = MNIST
        config.preprocess = ("scale(divisor=255)",)
        config.augment = () if images else ("hypotheses(clusters=10)",)
    if images or "direct" in chosen:
        config.init_from = "nin.mnist" if mnist else "nin.cifar10"
    else:
        config.init_from = "runs/hcp_scenes-images_mnist" if mnist else "runs/hcp_scenes-images"
    return config
