"""LIIF and LTE by loops over coordinates, cells and pixels in NumPy and float64, sharing no code with the implementation.

Weights have the names of the released code, whose formulas these are (Chen et al., CVPR 2021; Lee and Jin, CVPR 2022).
"""

import math

import numpy as np


def convolution(image, weights, name):
    """Return the convolution ``(O, H, W)`` of an image ``(C, H, W)`` with zero padding."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    _, height, width = image.shape
    reach = kernel.shape[-1] // 2
    output = np.empty((len(kernel), height, width))
    for row in range(height):
        for column in range(width):
            total = bias.copy()
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    if 0 <= row + i < height and 0 <= column + j < width:
                        total += kernel[:, :, i + reach, j + reach] @ image[:, row + i, column + j]
            output[:, row, column] = total
    return output


def edsr(image, weights, num_blocks, residual_scale=1.0):
    """Return the feature map of an image ``(C, H, W)`` in [-1, 1] by EDSR without up-sampling."""
    head = convolution(image, weights, "encoder.head.0")
    hidden = head
    for block in range(num_blocks):
        name = f"encoder.body.{block}.body"
        inner = np.maximum(convolution(hidden, weights, f"{name}.0"), 0)
        hidden = hidden + residual_scale * convolution(inner, weights, f"{name}.2")
    return head + convolution(hidden, weights, f"encoder.body.{num_blocks}")


def rdn(image, weights, num_blocks, num_layers):
    """Return the feature map of an image ``(C, H, W)`` in [-1, 1] by RDN without up-sampling."""
    first = convolution(image, weights, "encoder.SFENet1")
    hidden, outputs = convolution(first, weights, "encoder.SFENet2"), []
    for block in range(num_blocks):
        dense = hidden
        for layer in range(num_layers):
            new = np.maximum(convolution(dense, weights, f"encoder.RDBs.{block}.convs.{layer}.conv.0"), 0)
            dense = np.concatenate((dense, new))
        hidden = hidden + convolution(dense, weights, f"encoder.RDBs.{block}.LFF")
        outputs.append(hidden)
    fused = convolution(np.concatenate(outputs), weights, "encoder.GFF.0")
    return first + convolution(fused, weights, "encoder.GFF.1")


def mlp(inputs, weights):
    """Return the output of an MLP with ReLU; its layers are ``imnet.layers.0``, ``.2`` and so on."""
    layers = [int(name.split(".")[2]) for name in weights if name.startswith("imnet.") and name.endswith("weight")]
    hidden = np.asarray(inputs)
    for layer in sorted(layers):
        hidden = weights[f"imnet.layers.{layer}.weight"] @ hidden + weights[f"imnet.layers.{layer}.bias"]
        hidden = hidden if layer == max(layers) else np.maximum(hidden, 0)
    return hidden


def unfolded(features, row, column):
    """Return the neighbourhood of 3 x 3 cells as a vector, channel by channel, zero beyond the map."""
    _, height, width = features.shape
    places = [(i, j) for i in (row - 1, row, row + 1) for j in (column - 1, column, column + 1)]
    return [channel[i, j] if 0 <= i < height and 0 <= j < width else 0.0 for channel in features for i, j in places]


def nearest(position, size):
    """Return the index of the cell of a position in [-1, 1], and its centre; a tie belongs to the even index."""
    index = round(((position + 1) * size - 1) / 2)
    return index, -1 + (2 * index + 1) / size


def blended(size, position, predict, ensemble=True):
    """Return the mean of predictions from the cells around a position, weighted by the areas of the opposite rectangles.

    Args:
        size: Rows and columns of the map.
        position: Row and column in [-1, 1].
        predict: Function of the row and the column of a cell, and of the offset from its centre, neighbouring ones 2 apart.
        ensemble: Whether to read four cells rather than the nearest.
    """
    predictions, areas = {}, {}
    for v in [(-1, -1), (-1, 1), (1, -1), (1, 1)] if ensemble else [(0, 0)]:
        index, offset = [], []
        for axis in (0, 1):
            place = position[axis] + v[axis] / size[axis] + (1e-6 if ensemble else 0.0)
            cell, centre = nearest(min(max(place, -1 + 1e-6), 1 - 1e-6), size[axis])
            index.append(cell)
            offset.append((position[axis] - centre) * size[axis])
        predictions[v] = predict(*index, offset)
        areas[v] = abs(offset[0] * offset[1]) + 1e-9
    total = sum(areas.values())
    return sum(prediction * areas[-v[0], -v[1]] / total for v, prediction in predictions.items())


def liif(features, weights, coords, cells, unfold=True, use_cell=True, ensemble=True):
    """Return the values ``(N, C)`` in [0, 1] of a feature map ``(E, H, W)`` at coordinates, with the sizes of queries."""
    size = features.shape[1:]
    values = []
    for position, cell in zip(coords, cells, strict=True):

        def predict(row, column, offset, cell=cell):
            vector = unfolded(features, row, column) if unfold else list(features[:, row, column])
            relative = [cell[axis] * size[axis] for axis in (0, 1)] if use_cell else []
            return mlp([*vector, *offset, *relative], weights)

        values.append(blended(size, position, predict, ensemble) * 0.5 + 0.5)
    return np.array(values)


def bilinear(image, position):
    """Return the bilinear interpolation of an image ``(C, H, W)`` at a position in [-1, 1], constant beyond its centres."""
    corners = []
    for place, size in zip(position, image.shape[1:], strict=True):
        index = min(max(((place + 1) * size - 1) / 2, 0), size - 1)
        low = min(math.floor(index), size - 1)
        corners.append([(low, 1 - (index - low)), (min(low + 1, size - 1), index - low)])
    return sum(image[:, i, j] * (a * b) for i, a in corners[0] for j, b in corners[1])


def lte(features, image, weights, coords, cells, max_scale):
    """Return the values ``(N, C)`` in [0, 1] of LTE at coordinates, with the sizes of queries limited to those in training.

    Args:
        features: Map ``(E, H, W)``.
        image: The observed image ``(C, H, W)`` in [0, 1].
        weights: Of the layers ``coef``, ``freq``, ``phase`` and ``imnet``.
        coords: Positions ``(N, 2)``.
        cells: Sizes of queries ``(N, 2)``.
        max_scale: Largest scale in training.
    """
    size = features.shape[1:]
    amplitudes, frequencies = (convolution(features, weights, name) for name in ("coef", "freq"))
    values = []
    for position, cell in zip(coords, cells, strict=True):
        relative = [max(cell[axis] * size[axis], 2 / max_scale) for axis in (0, 1)]
        phases = weights["phase.weight"] @ np.array(relative)

        def predict(row, column, offset, phases=phases):
            theta = []
            for k, phase in enumerate(phases):
                pair = frequencies[2 * k, row, column], frequencies[2 * k + 1, row, column]
                theta.append(pair[0] * offset[0] + pair[1] * offset[1] + phase)
            waves = [math.cos(math.pi * angle) for angle in theta] + [math.sin(math.pi * angle) for angle in theta]
            return mlp(amplitudes[:, row, column] * waves, weights)

        normalised = blended(size, position, predict) + bilinear(2 * image - 1, position)
        values.append(normalised * 0.5 + 0.5)
    return np.array(values)
