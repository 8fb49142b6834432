"""Shared fixtures: tiny composers, and a naive coordinate network that shares no code with the implementation."""

import math
import os
from unittest import mock

import numpy as np
import pytest
import torch
from coordinates import grid
from hypothesis import settings

from composers import TransformerIPC, TransINR
from composers.encoders import Patches, Transformer
from composers.networks import CoordinateMLP, FourierFeatures
from datamodules.batch import CoordinateBatch, Observation, Samples

torch.set_num_threads(1)  # parallel tests compete for cores; bit-equal runs need the same number in every process
os.environ["OMP_NUM_THREADS"] = "1"  # for subprocesses

settings.register_profile("tests", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

SIGNAL_SHAPE = (3, 8, 12)  # deliberately not square: six patches of 4 x 4


@pytest.fixture(autouse=True)
def _independent():
    """Seed every test, and restore the environment after it: strategies set variables even for one process."""
    with mock.patch.dict(os.environ):
        os.environ.pop("PL_GLOBAL_SEED", None)
        torch.manual_seed(0)
        _leave_process_group()  # of fixtures of a wider scope
        yield
        _leave_process_group()


def _leave_process_group():
    """Undo what a strategy that shards weights sets up, even for one process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def make_network():
    """Return a maker of tiny coordinate networks with disturbed biases; keywords replace arguments."""

    def make(**changes):
        arguments = {
            "coord_dim": 2,
            "value_dim": 3,
            "hidden_dim": 8,
            "num_layers": 4,
            "encoding": FourierFeatures(num_frequencies=2, max_frequency=4),
        }
        network = CoordinateMLP(**arguments | changes)
        for bias in network.biases.values():
            torch.nn.init.normal_(bias, std=0.3)
        return network

    return make


@pytest.fixture(scope="session")
def make_modulations():
    """Return a maker of random modulations of a network."""

    def make(network, num_instances, dtype=torch.float32):
        return {name: torch.randn(num_instances, *spec.shape, dtype=dtype) for name, spec in network.slots.items()}

    return make


@pytest.fixture(scope="session")
def naive_network():
    """Return `_naive_network`."""
    return _naive_network


@pytest.fixture(scope="session")
def naive_features():
    """Return `_naive_features`."""
    return _naive_features


@pytest.fixture(scope="session")
def make_ipc(make_network):
    """Return a maker of tiny `TransformerIPC`; keywords replace arguments."""
    return lambda **changes: TransformerIPC(**_parts(make_network) | changes)


@pytest.fixture(scope="session")
def make_transinr(make_network):
    """Return a maker of tiny `TransINR` with every layer modulated; keywords replace arguments."""

    def make(**changes):
        parts = {"network": make_network(modulated_layers="all"), "num_groups": 4}
        return TransINR(**_parts(make_network) | parts | changes)

    return make


@pytest.fixture
def tiny_ipc(make_ipc):
    """Return a tiny `TransformerIPC` for images of 8 x 12, in evaluation mode."""
    return make_ipc().eval()


@pytest.fixture
def tiny_transinr(make_transinr):
    """Return a tiny `TransINR` for images of 8 x 12, in evaluation mode."""
    return make_transinr().eval()


@pytest.fixture
def tiny_batch():
    """Return three random images of 8 x 12 as a coordinate batch."""
    signal = torch.rand(3, *SIGNAL_SHAPE)
    samples = Samples(grid(SIGNAL_SHAPE[1:]), signal.flatten(2).mT)
    return CoordinateBatch(Observation(signal, samples), samples, SIGNAL_SHAPE[1:], ["a", "b", "c"])


def _parts(make_network):
    """Return the arguments of a tiny composer."""
    return {
        "network": make_network(),
        "encoder": Patches(SIGNAL_SHAPE, patch_size=4),
        "transformer": Transformer(embed_dim=12, num_blocks=2, num_heads=3, mlp_ratio=2),
    }


def _naive_features(coords, num_frequencies, max_frequency, use_pi=True):
    """Return Fourier features ``(N, 2 K D)``, computed with loops over coordinates, axes and frequencies in float64."""
    last = max(num_frequencies - 1, 1)
    rows = []
    for position in np.asarray(coords, dtype=np.float64):
        phases = []
        for coordinate in position:
            for k in range(num_frequencies):
                frequency = math.exp(k / last * math.log(max_frequency))
                phases.append(coordinate * frequency * (math.pi if use_pi else 1))
        rows.append([math.cos(phase) for phase in phases] + [math.sin(phase) for phase in phases])
    return np.array(rows)


def _naive_network(network, coords, modulations, num_instances):
    """Return the values ``(B, N, C)`` of a ReLU network by loops over instances, layers and columns, in float64.

    Reads the parameters of ``network`` and its settings, and calls none of its code.
    """
    if isinstance(network.encoding, FourierFeatures):
        count, highest = len(network.encoding.frequencies), float(network.encoding.frequencies[-1])
        pi = network.encoding.factor != 1
    values = []
    for instance in range(num_instances):
        places = coords[instance] if coords.dim() == 3 else coords
        hidden = places.detach().double().numpy()
        if isinstance(network.encoding, FourierFeatures):
            hidden = _naive_features(hidden, count, highest, pi)
        for layer in range(len(network.layer_sizes)):
            weight, bias = (
                (modulations[f"{kind}.{layer}"][instance] if f"{kind}.{layer}" in modulations else shared[str(layer)])
                .detach()
                .double()
                .numpy()
                for kind, shared in (("weight", network.weights), ("bias", network.biases))
            )
            if f"shift.{layer}" in modulations:
                bias = bias + modulations[f"shift.{layer}"][instance].detach().double().numpy()
            columns = []
            for j in range(weight.shape[1]):
                column = weight[:, j]
                if network.normalize_weights:
                    column = column / math.sqrt(sum(entry**2 for entry in column))
                columns.append(hidden @ column + bias[j])
            hidden = np.stack(columns, axis=1)
            if layer < len(network.layer_sizes) - 1:
                hidden = np.where(hidden > 0, hidden, 0)
        values.append(hidden + network.output_offset)
    return torch.from_numpy(np.stack(values))
