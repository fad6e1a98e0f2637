"""HCP (Wei et al. 2014) on PASCAL VOC: --config.data_dir=.../VOCdevkit/VOC2007

    hcp_voc.py:images    image fine-tuning: the shipped CIFAR-10 network, its last layer new, on whole pictures, scaled to 32 x 32
                         pixels. It is also what HCP is compared with.
    hcp_voc.py           hypotheses fine-tuning: the network of the first, in runs/hcp_voc-images, on 10 clusters of
                         hypotheses; in training one of each is drawn at every update, in evaluation all 3 are seen.
                         Where the first run lies elsewhere: --config.init_from=DIR
    hcp_voc.py:short and hcp_voc.py:images,short
                         higher rates and fewer epochs, for a sample of hundreds of pictures on a CPU.

Published, as far as is known: the squared loss on labels that are scaled to sum 1; rates of 0.001 (image fine-tuning) and 0.0001
(hypotheses), ten times as much in the last layer; 60 epochs, a tenth of the rate after 20 and 40; momentum 0.9, dropout 0.5;
ten clusters, one hypothesis of each in training and 50 in evaluation. Not the paper's: the network and its dropout of 0.2,
sliding windows instead of BING, 3 of each cluster (each=50 needs 1.5 MB a picture), the batch size, mirror images.
"""

from nin_jax.config import default, words

ARGUMENTS = ("images", "short", "images,short")
# What nin.cifar10 is, so that its weights fit.
NETWORK = "nin(batch_norm=True, relu_on_class_maps=False, deviations=('he',), dropout=0.2, dropout_kind='inverted')"


def get_config(arg=None):
    chosen = words(arg, ARGUMENTS)
    images = "images" in chosen
    config = default()
    config.dataset = "voc()" if images else "voc(clusters=10, each=3)"
    config.train_split = "trainval"
    config.eval_split = "test"
    config.preprocess = ("mean(per='channel')", "scale()")
    config.augment = ("flip()",) if images else ("hypotheses(clusters=10)", "flip()")
    config.model.name = "hcp"
    config.model.network = NETWORK
    config.task = "multilabel"
    config.init_from = "nin.cifar10" if images else "runs/hcp_voc-images"
    config.batch_size = 16
    config.eval_batch_size = 64 if images else 4
    config.epochs = 60
    config.optimizer.learning_rate = 0.001 if images else 0.0001
    config.optimizer.learning_rate_factors = ("cccp6/=10",)
    config.optimizer.weight_decay = 5e-4
    config.schedule.boundaries_epochs = (20, 40)
    config.eval_every_epochs = 10
    config.checkpoint_every_epochs = 10 if images else 1
    if "short" in chosen:
        config.epochs = 12 if images else 2
        config.optimizer.learning_rate = 0.01
        config.optimizer.learning_rate_factors = ()
        config.schedule.boundaries_epochs = (8, 10) if images else (1,)
        config.eval_every_epochs = config.epochs
        if not images:
            config.init_from = "runs/hcp_voc-images_short"
    return config
