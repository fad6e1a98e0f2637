"""The same network, loss and training step in PyTorch, written as its users write them: the other side of our timings.

The settings are those that PyTorch's documentation recommends for speed: memory format channels_last, `torch.compile`
(default mode, and "max-autotune"), bfloat16 through autocast, zero_grad(set_to_none=True), an allocator that keeps freed
memory (`cpu_memory.reuse_memory`, in force for both sides). Its batches are preprocessed floats in memory, so
preprocessing costs it nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn

from nin_jax.config import Config
from nin_jax.models import _stages as stages


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
    """A model of ours, which must end in global average pooling.

    Attributes:
      convolutions: by the path of our parameters, such as ("mlpconv1", "conv1").
    """

    def __init__(self, ours: Any, channels: int):
        super().__init__()
        self.convolutions: dict[tuple[str, str], nn.Conv2d] = {}
        parts: list[nn.Module] = []
        for stage, block, names in stages.named(ours.stages()):
            if isinstance(stage, stages.MLPConv):
                for i, (name, maps) in enumerate(zip(names, stage.maps, strict=True)):
                    pad = stage.size // 2 if stage.pad is None else stage.pad
                    window = (1, 1, 0) if i else (stage.size, stage.stride, pad)
                    convolution = self.convolutions[block, name] = nn.Conv2d(channels, maps, *window)
                    parts += [convolution, nn.ReLU(inplace=True)]
                    channels = maps
            elif isinstance(stage, stages.MaxPool):
                parts.append(nn.MaxPool2d(stage.size, stage.stride, ceil_mode=True))
            elif isinstance(stage, stages.Dropout):
                parts.append(nn.Dropout(stage.rate))
            else:
                raise TypeError(f"not written for PyTorch: {stage}")
        self.layers = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


def network(ours: Any, params: Any, channels: int, setting: Setting) -> NIN:
    """A model of ours with these parameters."""
    model, params = NIN(ours, channels), flatten_dict(params)
    with torch.no_grad():
        for path, conv in model.convolutions.items():
            assert conv.bias is not None
            conv.weight.copy_(torch.from_numpy(np.array(params[*path, "kernel"]).transpose(3, 2, 0, 1).copy()))
            conv.bias.copy_(torch.from_numpy(np.array(params[*path, "bias"])))
    if setting.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - missing in its stubs
    return model


class Trainer:
    """Training steps of a network: forward, loss, backward, clipping, SGD with learning rates by layer."""

    def __init__(self, model: NIN, config: Config, setting: Setting):
        optimizer, rules = config.optimizer, config.optimizer.learning_rate_factors
        self.model, self.clip_norm, self.setting = model, optimizer.clip_norm, setting
        groups = []
        for path, conv in model.convolutions.items():
            for part, tensor, decay in (("kernel", conv.weight, optimizer.weight_decay), ("bias", conv.bias, 0.0)):
                name = "/".join((*path, part))
                factor = next((rule.number for rule in rules if rule.pattern.search(name)), 1.0)
                groups.append({"params": [tensor], "lr": factor * optimizer.learning_rate, "weight_decay": decay})
        on_gpu = next(model.parameters()).is_cuda
        self.sgd = torch.optim.SGD(groups, momentum=optimizer.momentum, fused=on_gpu or None)
        self.loss = nn.CrossEntropyLoss()
        self.forward = torch.compile(model, mode=setting.compiled) if setting.compiled else model

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        if self.setting.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.setting.bfloat16):
            return self.forward(image).float()

    def update(self, image: torch.Tensor, label: torch.Tensor) -> None:
        """One training step; on a GPU it may still run when this returns."""
        self.model.train()
        self.sgd.zero_grad(set_to_none=True)
        loss = self.loss(self.logits(image), label)
        loss.backward()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.sgd.step()

    def evaluate(self, image: torch.Tensor, label: torch.Tensor) -> float:
        """The loss of a batch in test mode."""
        self.model.eval()
        with torch.inference_mode():
            return self.loss(self.logits(image), label).item()
