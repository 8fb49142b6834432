"""Tiny patch-wise composers for signals of any size, and signals for them."""

import torch
from torch import nn

from composers import PatchIPC, Refinement
from composers.encoders import MixedPatches
from composers.inference import TorchOptimizer
from composers.latents import PatchCodes
from composers.networks import PatchwiseMLP

SMALL = {"num_blocks": 1, "kernel_size": 3, "mlp_ratio": 1}


def build_patch_ipc(axes=2, patch_size=4, channels=3, **changes):
    """Return a tiny `PatchIPC` with random weights in evaluation mode."""
    torch.manual_seed(0)
    rule = TorchOptimizer(lambda latents: torch.optim.Adam(latents, lr=0.02))
    parts = {
        "network": PatchwiseMLP(axes, channels, patch_size, hidden_dim=8, rank=4),
        "encoder": MixedPatches((channels, *(-1,) * axes), patch_size, **SMALL),
        "codes": PatchCodes(code_dim=5, context=1, **SMALL),
        "refinement": Refinement(3, rule, report=[]),
    }
    composer = PatchIPC(**parts | changes).eval()
    for name, parameter in composer.named_parameters():
        if name.endswith("project.weight"):  # zero before training
            nn.init.normal_(parameter, std=0.02)
    return composer


def random_pixels(rows, columns, seed=0):
    """Return pixels ``(3, rows, columns)`` uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8, generator=generator)
