"""The same network, loss and update in PyTorch, written as its users write it: what our speed is compared with.

The settings are those that PyTorch's documentation names for speed: memory format channels_last, `torch.compile`
(default mode, and "max-autotune"), bfloat16 through autocast, zero_grad(set_to_none=True), an allocator that keeps freed
memory (`parallel.keep_freed_memory`, in force for both sides). Preprocessing costs it nothing here: its batches are
preprocessed floats in memory.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn


class Setting(NamedTuple):
    """One way of running PyTorch; `str` of it is its name in the tables."""

    channels_last: bool = False
    compiled: str = ""  # mode of torch.compile; "": eager
    bfloat16: bool = False

    def __str__(self) -> str:
        parts = [f"compile ({self.compiled})" if self.compiled else "eager"]
        parts += ["channels_last"] * self.channels_last + ["bfloat16" if self.bfloat16 else "float32"]
        return ", ".join(parts)


class NIN(nn.Module):
    """Network In Network with the layers of an experiment's `model` section."""

    def __init__(self, config: Any, channels: int, classes: int):
        super().__init__()
        widths = [*config.widths[:-1], (*config.widths[-1], classes)]
        parts: list[nn.Module] = []
        self.names = []  # paths of our parameters, in the order of the convolutions here
        cccp = 0
        for block, (size, width) in enumerate(zip(config.kernels, widths, strict=True), 1):
            for i, features in enumerate(width):
                conv = nn.Conv2d(channels, features, size if i == 0 else 1, padding=size // 2 if i == 0 else 0)
                parts += [conv, nn.ReLU(inplace=True)]
                cccp += i > 0
                self.names.append((f"mlpconv{block}", f"cccp{cccp}" if i else f"conv{block}"))
                channels = features
            if block < len(widths):
                parts += [nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*parts)

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order of `names`."""
        return [m for m in self.layers if isinstance(m, nn.Conv2d)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


def network(config: Any, params: Any, channels: int, classes: int, setting: Setting) -> NIN:
    """The network with our parameters."""
    model = NIN(config, channels, classes)
    ours = flatten_dict(params)
    with torch.no_grad():
        for name, conv in zip(model.names, model.convolutions(), strict=True):
            conv.weight.copy_(torch.from_numpy(np.array(ours[*name, "kernel"]).transpose(3, 2, 0, 1).copy()))
            assert conv.bias is not None
            conv.bias.copy_(torch.from_numpy(np.array(ours[*name, "bias"])))
    if setting.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - missing in its stubs
    return model


def factors(model: NIN, optimizer: Any) -> dict[tuple[str, ...], float]:
    """The factor of the learning rate of each of our parameters."""
    rules = [
        (re.compile(pattern), float(f)) for pattern, f in (r.rsplit("=", 1) for r in optimizer.learning_rate_factors)
    ]
    paths = [(*name, part) for name in model.names for part in ("kernel", "bias")]
    return {path: next((f for p, f in rules if p.search("/".join(path))), 1.0) for path in paths}


class Trainer:
    """Updates of a network: forward, loss, backward, clipping, step of SGD with rates by layer."""

    def __init__(self, model: NIN, optimizer: Any, setting: Setting):
        self.model, self.clip_norm, self.setting = model, optimizer.clip_norm, setting
        groups = []
        rates = factors(model, optimizer)
        for name, conv in zip(model.names, model.convolutions(), strict=True):
            for part, tensor, decay in (("kernel", conv.weight, optimizer.weight_decay), ("bias", conv.bias, 0.0)):
                rate = optimizer.learning_rate * rates[*name, part]
                groups.append({"params": [tensor], "lr": rate, "weight_decay": decay})
        self.sgd = torch.optim.SGD(groups, momentum=optimizer.momentum)
        self.loss = nn.CrossEntropyLoss()
        self.forward = torch.compile(model, mode=setting.compiled) if setting.compiled else model

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        if self.setting.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.setting.bfloat16):
            return self.forward(image).float()

    def update(self, image: torch.Tensor, label: torch.Tensor) -> float:
        """One update; returns the loss."""
        self.model.train()
        self.sgd.zero_grad(set_to_none=True)
        loss = self.loss(self.logits(image), label)
        loss.backward()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.sgd.step()
        return loss.item()

    def evaluate(self, image: torch.Tensor, label: torch.Tensor) -> float:
        """The loss of a batch in test mode."""
        self.model.eval()
        with torch.inference_mode():
            return self.loss(self.logits(image), label).item()
