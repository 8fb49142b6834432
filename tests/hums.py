"""Audio of simple tones, and a tiny untrained model of it, for tests."""

import torch
from torch.utils.data import Dataset

from composers.construction import build
from datamodules import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import Grid
from datamodules.spec import DataSpec
from modalities import Audio


class Hums(CoordinateDataModule):
    """Two recordings of half a second, the second shorter and followed by zeros."""

    modality = Audio()
    spec = DataSpec(Grid(((-0.5, 0.5),)), 1, (1, 200), modality, sample_rate=400)

    def setup(self, stage):
        self.train_set = self.val_set = self.test_set = HumItems()


class HumItems(Dataset):
    """The items of `Hums`."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        values = 0.4 * torch.sin(torch.arange(200) * (0.2 + index)).unsqueeze(0)
        if index:
            values[:, 150:] = 0
        return Signal(values, f"hum{index}", length=150 if index else -1)


def ipc_config(signal_shape=(1, 400), steps=2):
    """Return the config of a tiny `TransformerIPC`."""
    frequencies = {"num_frequencies": 6, "max_frequency": 64}
    network = {
        "coord_dim": len(signal_shape) - 1,
        "value_dim": signal_shape[0],
        "hidden_dim": 8,
        "num_layers": 3,
        "output_offset": 0.0,
        "encoding": {"class_path": "composers.networks.FourierFeatures", "init_args": frequencies},
    }
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.05}}
    rule = {"class_path": "composers.inference.TorchOptimizer", "init_args": {"optimizer": optimizer}}
    parts = {
        "network": ("composers.networks.CoordinateMLP", network),
        "encoder": ("composers.encoders.Patches", {"signal_shape": list(signal_shape), "patch_size": 50}),
        "transformer": ("composers.encoders.Transformer", {"embed_dim": 12, "num_blocks": 1, "num_heads": 3}),
        "refinement": ("composers.Refinement", {"steps": steps, "report": [], "rule": rule}),
    }
    arguments = {name: {"class_path": path, "init_args": options} for name, (path, options) in parts.items()}
    return {"class_path": "composers.TransformerIPC", "init_args": arguments}


def build_ipc(**changes):
    """Return a tiny untrained `TransformerIPC` with random biases."""
    torch.manual_seed(0)
    composer = build(ipc_config(**changes)).eval()
    for bias in composer.network.biases.values():
        torch.nn.init.normal_(bias, std=0.3)
    return composer
