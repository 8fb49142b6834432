"""Perceptual distance of images, LPIPS (Zhang et al. 2018), with weights from a local file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Backbone = Literal["alex", "vgg", "squeeze"]

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1], as published
_SMALLEST = 1e-8


class _Published(NamedTuple):
    """The published weights of a backbone.

    Attributes:
        file: Name of the file.
        taps: Layers after which features are compared.
    """

    file: str
    taps: tuple[int, ...]

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"https://download.pytorch.org/models/{self.file}"


_PUBLISHED: Mapping[str, _Published] = {
    "alex": _Published("alexnet-owt-7be5be79.pth", (1, 4, 7, 9, 11)),
    "vgg": _Published("vgg16-397923af.pth", (3, 8, 15, 22, 29)),
    "squeeze": _Published("squeezenet1_1-b8a52dc0.pth", (1, 4, 7, 9, 10, 11, 12)),
}


class PerceptualDistance(nn.Module):
    """LPIPS of pairs of images: weighted squared differences of normalised features of a classifier, averaged over the image.

    The features are those of a network that was trained on ImageNet, which are read from a file and never downloaded; the
    weights of their channels come with torchmetrics.

    Args:
        network: ``alex``, ``vgg`` or ``squeeze``; values of different networks are not comparable.
        weights: File with the weights of the network, as published by torchvision.

    Raises:
        ValueError: If the network is unknown, or the file is missing, damaged or of another network.
    """

    def __init__(self, network: Backbone = "alex", weights: str | Path | None = None) -> None:
        super().__init__()
        path = weights_file(network) if weights is None else Path(weights)
        self.taps = _PUBLISHED[network].taps
        self.features = _LAYERS[network]()
        self.features.load_state_dict(_read(path, network, self.features.state_dict()))
        self.channel_weights = nn.ParameterList(_channel_weights(network))
        self.eval().requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distances ``(B,)`` of images ``(B, 3, H, W)`` in [0, 1]."""
        pairs = zip(self._features(first), self._features(second), self.channel_weights, strict=True)
        distances = [((a - b).square() * weight).sum(1).mean((1, 2)) for a, b, weight in pairs]
        return torch.stack(distances).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the features of all compared layers, with unit norm over the channels."""
        shift, scale = (images.new_tensor(numbers).view(3, 1, 1) for numbers in (_SHIFT, _SCALE))
        values, features = (2 * images - 1 - shift) / scale, []
        for index, layer in enumerate(self.features.children()):
            values = layer(values)
            if index in self.taps:
                features.append(values / (values.square().sum(1, keepdim=True) + _SMALLEST).sqrt())
        return features


def weights_file(network: Backbone) -> Path:
    """Return where the published weights of a network are expected, in the cache of `torch.hub`.

    Raises:
        ValueError: If the network is unknown.
    """
    if network not in _PUBLISHED:
        raise ValueError(f"network is {network!r}: choose one of {', '.join(get_args(Backbone))}.")
    return Path(torch.hub.get_dir(), "checkpoints", _PUBLISHED[network].file)


def how_to_get_weights(network: Backbone, path: Path) -> str:
    """Return how to get the weights of a network, as part of a message."""
    return f"download {_PUBLISHED[network].url} to {path}"


def _read(path: Path, network: Backbone, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the layers of a network in a file."""
    if not path.is_file():
        raise ValueError(f"There is no file {path} with the weights of {network}: {how_to_get_weights(network, path)}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = {name.removeprefix("features."): value for name, value in content.items()}
        weights = {name: weights[name] for name in expected}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    except Exception as error:  # unpickling raises errors of many kinds
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(
            f"{path} does not hold the weights of {network} ({reason}): {how_to_get_weights(network, path)}."
        ) from error
    for name, value in expected.items():
        if shapes[name] != tuple(value.shape):
            raise ValueError(
                f"{path} does not hold the weights of {network}, features.{name} is of shape {shapes[name]} rather than "
                f"{tuple(value.shape)}: {how_to_get_weights(network, path)}."
            )
    return weights


def _channel_weights(network: Backbone) -> list[Tensor]:
    """Return the published weights ``(C, 1, 1)`` of the channels of every compared layer."""
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{network}.pth"
    content = torch.load(path, map_location="cpu", weights_only=True)
    return [content[f"lin{index}.model.1.weight"][0] for index in range(len(_PUBLISHED[network].taps))]


class _Fire(nn.Module):
    """Squeeze and expand (Iandola et al. 2016)."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        """Return the features ``(B, 2 * expanded, H, W)``."""
        squeezed = functional.relu(self.squeeze(values))
        return functional.relu(torch.cat((self.expand1x1(squeezed), self.expand3x3(squeezed)), dim=1))


def _alexnet() -> nn.Sequential:
    """Return the layers of AlexNet (Krizhevsky 2014) that are compared."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def _vgg16() -> nn.Sequential:
    """Return the layers of VGG-16 (Simonyan and Zisserman 2015) that are compared."""
    layers: list[nn.Module] = []
    inputs = 3
    for block in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        layers += [nn.MaxPool2d(2, 2)] if layers else []
        for outputs in block:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
    return nn.Sequential(*layers)


def _squeezenet() -> nn.Sequential:
    """Return the layers of SqueezeNet 1.1 (Iandola et al. 2016) that are compared."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(64, 16, 64),
        _Fire(128, 16, 64),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(128, 32, 128),
        _Fire(256, 32, 128),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(256, 48, 192),
        _Fire(384, 48, 192),
        _Fire(384, 64, 256),
        _Fire(512, 64, 256),
    )


_LAYERS = {"alex": _alexnet, "vgg": _vgg16, "squeeze": _squeezenet}
