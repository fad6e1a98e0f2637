"""Every number that the paper (arXiv 1312.4400v3) and its authors' slides (ILSVRC 2014) print, with its source.

They are in reported.csv and voc_2012.csv. If two sources disagree, both have a row: for CIFAR-100, table 2 says 35.68 %
and the slides 36.30 %. A row names the experiments that reproduce it, or says why there is none.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

# From the slide of the top-1 errors: parameters, megabytes, days of training on a GTX Titan.
IMAGENET_COST = {"AlexNet": (60_000_000, 230, 8), "NIN": (7_500_000, 29, 4)}


class Row(NamedTuple):
    """A printed number.

    Attributes:
      table: where it is printed: "Table 1" to "Table 5", beside "Figure 3", in "Section 4.6", on the "Slides".
      method: the row's name as printed, or what the text says.
      dataset: what it is measured on.
      value: the number, in per cent.
      source: paper section, or title of the slide.
      configs: the experiments that reproduce it, the recommended one first; "NAME:ARG" in the file.
      without: the reason if there is none.
      metric: what the number is.
    """

    table: str
    method: str
    dataset: str
    value: float
    source: str
    configs: tuple[str, ...]
    without: str
    metric: str

    @property
    def name(self) -> str:
        """Such as "Table 1: NIN + Dropout", which identifies the row."""
        return f"{self.table}: {self.method}"


def _read(name: str) -> list[dict[str, str]]:
    with open(Path(__file__).with_name(name), newline="") as file:
        return list(csv.DictReader(file))


def _file(config: str) -> str:
    """ "experiments/cifar10.py:release" of "cifar10:release"."""
    name, colon, argument = config.partition(":")
    return f"experiments/{name}.py{colon}{argument}"


def _row(line: dict[str, str]) -> Row:
    configs = tuple(map(_file, line.pop("configs").split()))
    return Row(value=float(line.pop("value")), configs=configs, **line)


ROWS = [_row(line) for line in _read("reported.csv")]

# Average precision in per cent on PASCAL VOC 2012 by category and method, and the mean of each as printed ("MAP");
# slide "Classification State-of-the-arts on VOC 2012".
VOC_2012 = {
    line.pop("category"): {method: float(value) for method, value in line.items()} for line in _read("voc_2012.csv")
}
