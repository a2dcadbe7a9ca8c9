"""The precision of the layers in training (Micikevicius et al., "Mixed Precision Training", ICLR
2018), by torch.amp."""

from __future__ import annotations

import torch

from cascade.training.optimization.hyperparameters import Hyperparameters, TrainingError

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check(hyper: Hyperparameters, device: torch.device) -> None:
    """Raises TrainingError: the device cannot train in this precision."""
    if hyper.precision == "fp16" and device.type != "cuda":
        raise TrainingError(
            f"precision fp16 came for a training on {device.type}; expected one on cuda, where "
            "losses are scaled so that small gradients stay: give --device cuda, or precision bf16"
        )


def autocast(hyper: Hyperparameters, device: torch.device) -> torch.autocast:
    """What a loss is computed in."""
    enabled = hyper.precision != "float32"
    return torch.autocast(device.type, DTYPES[hyper.precision] if enabled else None, enabled)


def scaler(hyper: Hyperparameters, device: torch.device) -> torch.amp.GradScaler:
    """What scales the loss of fp16; nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=hyper.precision == "fp16")
