"""The same network, loss and update in PyTorch, written as its users write it: what our speed is compared with.

The settings are those that PyTorch's documentation names for speed: memory format channels_last, `torch.compile`
(default mode, and "max-autotune"), bfloat16 through autocast, zero_grad(set_to_none=True), an allocator that keeps freed
memory (`cpu_memory.reuse_memory`, in force for both sides). Preprocessing costs it nothing here: its batches are
preprocessed floats in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn

from nin_jax.models._stages import Dropout, MaxPool, MLPConv, Network, named


class Setting(NamedTuple):
    """One way of running PyTorch; `str` of it is its name in the tables."""

    channels_last: bool = False
    compiled: str = ""  # mode of torch.compile; "": eager
    bfloat16: bool = False

    def __str__(self) -> str:
        parts = [f"compile ({self.compiled})" if self.compiled else "eager"]
        parts += ["channels_last"] * self.channels_last + ["bfloat16" if self.bfloat16 else "float32"]
        return ", ".join(parts)


class Convolution(NamedTuple):
    """A convolution with ReLU, and the path of our parameters of it."""

    path: tuple[str, str]
    maps: int
    size: int = 1
    stride: int = 1
    pad: int = 0


def layers(model: Network) -> Iterator[Convolution | nn.Module]:
    """The layers of a network of ours, in order."""
    for stage, name, maps in named(model.stages()):
        if isinstance(stage, MLPConv):
            pad = stage.size // 2 if stage.pad is None else stage.pad
            window = [(stage.size, stage.stride, pad), *[(1, 1, 0)] * (len(maps) - 1)]
            for layer, features, (size, stride, edge) in zip(maps, stage.maps, window, strict=True):
                yield Convolution((name, layer), features, size, stride, edge)
        elif type(stage) is MaxPool:
            yield nn.MaxPool2d(stage.size, stage.stride, ceil_mode=True)
        elif isinstance(stage, Dropout):
            yield nn.Dropout(stage.rate)
        else:
            raise TypeError(f"not written for PyTorch: {stage}")


class NIN(nn.Module):
    """Network In Network with the layers of a model of ours."""

    def __init__(self, model: Any, channels: int):
        super().__init__()
        parts: list[nn.Module] = []
        self.names = []  # paths of our parameters, in the order of the convolutions here
        for layer in layers(model):
            if isinstance(layer, Convolution):
                parts += [nn.Conv2d(channels, layer.maps, layer.size, layer.stride, layer.pad), nn.ReLU(inplace=True)]
                self.names.append(layer.path)
                channels = layer.maps
            else:
                parts.append(layer)
        self.layers = nn.Sequential(*parts)

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order of `names`."""
        return [m for m in self.layers if isinstance(m, nn.Conv2d)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


def network(ours: Any, params: Any, channels: int, setting: Setting) -> NIN:
    """A model of ours with these parameters."""
    model = NIN(ours, channels)
    params = flatten_dict(params)
    with torch.no_grad():
        for name, conv in zip(model.names, model.convolutions(), strict=True):
            conv.weight.copy_(torch.from_numpy(np.array(params[*name, "kernel"]).transpose(3, 2, 0, 1).copy()))
            assert conv.bias is not None
            conv.bias.copy_(torch.from_numpy(np.array(params[*name, "bias"])))
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
