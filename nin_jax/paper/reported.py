"""Every number that the paper (arXiv 1312.4400v3) and its authors' slides (ILSVRC 2014) print, with its source.

Where two sources disagree both stand here. A row names the experiments that fill it, or says why there is none.
"""

from __future__ import annotations

from typing import NamedTuple

NOT_IN_THE_ZOO = "a rival outside this zoo"
NO_DETECTION = "this zoo has no such experiment yet"
VOTES = "by `--mode=eval --config.eval.views=3-view` of runs of `experiments/zfnet.py`, three of them by `--ensemble`"
AGAIN = "table {} has it too"


class Row(NamedTuple):
    """A printed number.

    Attributes:
      table: where it is printed: "Table 1" to "Table 5", beside "Figure 3", in "Section 4.6", on the "Slides".
      method: the row's name as printed, or what the text says.
      dataset: what it is measured on.
      value: the number, in per cent.
      source: paper section, or title of the slide.
      configs: the experiments that fill it, the first one first.
      without: why there is none.
      metric: what the number is.
    """

    table: str
    method: str
    dataset: str
    value: float
    source: str
    configs: tuple[str, ...] = ()
    without: str = ""
    metric: str = "test_error_pct"

    @property
    def name(self) -> str:
        """Such as "Table 1: NIN + Dropout", what a results row is told by."""
        return f"{self.table}: {self.method}"


def _nin(dataset: str) -> tuple[str, ...]:
    """The default, the authors' files, and each with the rate as the paper's text has it."""
    file = f"experiments/{dataset}.py"
    return file, f"{file}:release", f"{file}:plateau", f"{file}:release,plateau"


def _maxout(dataset: str) -> tuple[str, ...]:
    return (f"experiments/maxout.py:{dataset}",)


def _stochastic(dataset: str) -> tuple[str, ...]:
    return (f"experiments/stochastic_pooling.py:{dataset}",)


def _rows(table: str, dataset: str, source: str, *rows: tuple[str, float, tuple[str, ...] | str]) -> list[Row]:
    """Rows of a table, each (method, value, its configs or why there are none)."""
    return [
        Row(table, method, dataset, value, source, without=fills)
        if isinstance(fills, str)
        else Row(table, method, dataset, value, source, fills)
        for method, value, fills in rows
    ]


PAPER = [
    *_rows(
        "Table 1",
        "CIFAR-10",
        "section 4.2",
        ("Stochastic Pooling", 15.13, _stochastic("cifar10")),
        ("CNN + Spearmint", 14.98, NOT_IN_THE_ZOO),
        ("Conv. maxout + Dropout", 11.68, _maxout("cifar10")),
        ("NIN + Dropout", 10.41, _nin("cifar10")),
        ("CNN + Spearmint + Data Augmentation", 9.50, NOT_IN_THE_ZOO),
        ("Conv. maxout + Dropout + Data Augmentation", 9.38, _maxout("cifar10_augmented")),
        ("DropConnect + 12 networks + Data Augmentation", 9.32, NOT_IN_THE_ZOO),
        ("NIN + Dropout + Data Augmentation", 8.81, ("experiments/ablations/augmentation.py:crop_flip",)),
    ),
    *_rows(
        "Table 2",
        "CIFAR-100",
        "section 4.3",
        ("Learned Pooling", 43.71, NOT_IN_THE_ZOO),
        ("Stochastic Pooling", 42.51, _stochastic("cifar100")),
        ("Conv. maxout + Dropout", 38.57, _maxout("cifar100")),
        ("Tree based priors", 36.85, NOT_IN_THE_ZOO),
        ("NIN + Dropout", 35.68, _nin("cifar100")),  # the slides say 36.30
    ),
    *_rows(
        "Table 3",
        "SVHN",
        "section 4.4",
        ("Stochastic Pooling", 2.80, _stochastic("svhn")),
        ("Rectifier + Dropout", 2.78, NOT_IN_THE_ZOO),
        ("Rectifier + Dropout + Synthetic Translation", 2.68, NOT_IN_THE_ZOO),
        ("Conv. maxout + Dropout", 2.47, _maxout("svhn")),
        ("NIN + Dropout", 2.35, _nin("svhn")),
        ("Multi-digit Number Recognition", 2.16, NOT_IN_THE_ZOO),
        ("DropConnect", 1.94, NOT_IN_THE_ZOO),
    ),
    *_rows(
        "Table 4",
        "MNIST",
        "section 4.5",
        ("2-Layer CNN + 2-Layer NN", 0.53, NOT_IN_THE_ZOO),
        ("Stochastic Pooling", 0.47, _stochastic("mnist")),
        ("NIN + Dropout", 0.47, _nin("mnist")),
        ("Conv. maxout + Dropout", 0.45, _maxout("mnist")),
    ),
    *_rows(
        "Table 5",
        "CIFAR-10",
        "section 4.6",
        ("mlpconv + Fully Connected", 11.59, ("experiments/ablations/gap_vs_fc.py:fc",)),
        ("mlpconv + Fully Connected + Dropout", 10.88, ("experiments/ablations/gap_vs_fc.py:fc_dropout",)),
        ("mlpconv + Global Average Pooling", 10.41, ("experiments/cifar10.py",)),
    ),
    *_rows(
        "Section 4.6",
        "CIFAR-10",
        "section 4.6, text after table 5",
        ("CNN + Fully Connected", 17.56, ("experiments/convnet.py:fc",)),
        ("CNN + Fully Connected + Dropout", 15.99, ("experiments/convnet.py:fc_dropout",)),
        ("CNN + Global Average Pooling", 16.46, ("experiments/convnet.py:gap",)),
    ),
    *_rows(
        "Figure 3",
        "CIFAR-10",
        "section 4.2, text after table 1",
        ("NIN without dropout", 14.51, ("experiments/ablations/dropout.py:without",)),
    ),
]

# Figure 3: training and test error of the networks with and without dropout (10.41 and 14.51).
FIGURE_3_EPOCHS = 200  # "in the first 200 epochs of training"
FIGURE_3_REDUCTION_PCT = 20  # "reduced the test error by more than 20%", of the error without

_SUMMARY = 'slide "Network in Network (NIN) - Summary"'
_CLASSIFICATION = 'slide "NIN for ImageNet Object Classification"'
_ZFNET = 'second slide "NIN for ImageNet Object Classification"'
_DETECTION = 'slide "NIN for ImageNet Object Detection"'

SLIDES = [
    Row("Slides", "Previous best performance (Maxout), CIFAR-10", "CIFAR-10", 11.68, _SUMMARY, (), AGAIN.format(1)),
    Row("Slides", "Our method, CIFAR-10", "CIFAR-10", 10.41, _SUMMARY, (), AGAIN.format(1)),
    Row("Slides", "Previous best performance (Maxout), CIFAR-100", "CIFAR-100", 38.57, _SUMMARY, (), AGAIN.format(2)),
    Row("Slides", "Our method, CIFAR-100", "CIFAR-100", 36.30, _SUMMARY,
        ("experiments/cifar100.py", "experiments/cifar100.py:release")),  # table 2 of the paper says 35.68
    Row("Slides", "AlexNet, top 1", "ImageNet", 40.7, _CLASSIFICATION, ("experiments/alexnet.py",), "", "top1_error_pct"),
    Row("Slides", "NIN, top 1", "ImageNet", 39.2, _CLASSIFICATION, ("experiments/imagenet.py",), "", "top1_error_pct"),
    # Which error these two are is not printed.
    Row("Slides", "Network in ZFNet, 1 model", "ImageNet", 10.91, _ZFNET, (), VOTES, "error_pct"),
    Row("Slides", "Network in ZFNet, 3 models", "ImageNet", 9.79, _ZFNET, (), VOTES, "error_pct"),
    *(Row("Slides", method, f"ILSVRC 2014 detection, {split}", value, _DETECTION, (), NO_DETECTION, "map_pct")
      for method, split, value in (
          ("NIN, validation", "half of validation", 35.61),
          ("3 NINs, validation", "half of validation", 36.52),
          ("3 NINs + ctx, validation", "half of validation", 37.49),
          ("3 NINs + ctx, test", "test", 37.212))),
]  # fmt: skip

# On the slide of the top-1 errors: parameters, megabytes, days of training on a GTX Titan.
IMAGENET_COST = {"AlexNet": (60_000_000, 230, 8), "NIN": (7_500_000, 29, 4)}

# Average precision in per cent on PASCAL VOC 2012, slide "Classification State-of-the-arts on VOC 2012"; MAP as printed.
VOC_METHODS = ("NUS-PSL", "PRE-1000C", "PRE-1512", "Chatfield et al.", "HCP", "HCP+NUS-PSL")
VOC_2012 = {
    "plane": (97.3, 93.5, 94.6, 96.8, 98.4, 99.5),
    "bicycle": (84.2, 78.4, 82.9, 82.5, 89.5, 93.7),
    "bird": (80.8, 87.7, 88.2, 91.5, 96.2, 96.8),
    "boat": (85.3, 80.9, 84.1, 88.1, 91.7, 94.0),
    "bottle": (60.8, 57.3, 60.3, 62.1, 72.5, 77.7),
    "bus": (89.9, 85.0, 89.0, 88.3, 91.1, 95.3),
    "car": (86.8, 81.6, 84.4, 81.9, 87.2, 92.4),
    "cat": (89.3, 89.4, 90.7, 94.8, 97.1, 98.2),
    "chair": (75.4, 66.9, 72.1, 70.3, 73.0, 86.1),
    "cow": (77.8, 73.8, 86.8, 80.2, 89.5, 91.3),
    "table": (75.1, 62.0, 69.0, 76.2, 75.1, 83.5),
    "dog": (83.0, 89.5, 92.1, 92.9, 96.3, 97.3),
    "horse": (87.5, 83.2, 93.4, 90.3, 93.0, 96.8),
    "motor": (90.1, 87.6, 88.6, 89.3, 90.5, 96.3),
    "person": (95.0, 95.8, 96.1, 95.2, 94.8, 95.8),
    "plant": (57.8, 61.4, 64.3, 57.4, 66.5, 72.2),
    "sheep": (79.2, 79.0, 86.6, 83.6, 90.3, 91.5),
    "sofa": (73.4, 54.3, 62.3, 66.4, 65.8, 81.1),
    "train": (94.5, 88.0, 91.1, 93.5, 95.6, 97.6),
    "tv": (80.7, 78.3, 79.8, 81.9, 82.0, 90.0),
    "MAP": (82.2, 78.7, 82.8, 83.2, 86.8, 91.4),
}

ROWS = [*PAPER, *SLIDES]
