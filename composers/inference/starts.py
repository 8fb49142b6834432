"""Starts: the latents before any gradient step, predicted or learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from composers.encoders import Encoder, Readout
from composers.latents import Latents, Layout, PatchMixture, module_key
from composers.networks import TensorSpec
from datamodules.batch import Observation
from datamodules.spec import FromData, signal_shape, training_instances


class Start(nn.Module, ABC):
    """Base class of starts, which return the latents of an observation before any gradient step.

    Attributes:
        encoder: Encoder of the signal; None if the start does not read the signal.
        signal_shape: Shape ``(C, *shape)`` of the training signals; None if any shape is accepted.
    """

    encoder: Encoder | None
    signal_shape: tuple[int, ...] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.encoder = None

    @abstractmethod
    def connect(self, latents: Mapping[str, TensorSpec]) -> None:
        """Create the parameters whose sizes depend on the latents; `Composer` calls this once."""

    def layout(self, observation: Observation) -> Layout:
        """Return the layout of the latents of an observation."""
        return Layout()

    @abstractmethod
    def forward(self, observation: Observation, layout: Layout) -> Latents:
        """Return the latents ``(B, ...)`` by name."""

    def initialize(self, mixture: PatchMixture) -> None:
        """Set the parameters to the projection of patches to latents, where a start predicts latents; else do nothing."""

    def facts(self) -> dict[str, str]:
        """Return the lines about this start in the summary of a run, by name."""
        return {}


class Hypernetwork(Start):
    """Predict the latents from the signal in one forward pass.

    Args:
        encoder: Encodes the signal as features.
        readout: Converts the features to latents.
    """

    def __init__(self, encoder: Encoder, readout: Readout) -> None:
        super().__init__()
        self.encoder = encoder
        self.readout = readout
        self.signal_shape = encoder.signal_shape

    @property
    def _encoder(self) -> Encoder:
        """Return the encoder, which is never None here."""
        assert self.encoder is not None
        return self.encoder

    def connect(self, latents: Mapping[str, TensorSpec]) -> None:
        """Connect the readout to the encoder and the latents."""
        self.readout.connect(self._encoder, latents)

    def initialize(self, mixture: PatchMixture) -> None:
        """Initialise the readout."""
        self.readout.initialize(mixture)

    def layout(self, observation: Observation) -> Layout:
        """Return the grid of the encoder's tokens."""
        return Layout() if observation.signal is None else self._encoder.layout(observation.signal)

    def forward(self, observation: Observation, layout: Layout) -> Latents:
        """Return the predicted latents.

        Raises:
            ValueError: If the observation has no signal.
        """
        if observation.signal is None:
            raise ValueError("A hypernetwork encodes signals: pass an Observation with a signal.")
        latents: Latents = self.readout(self._encoder(observation.signal))
        return latents

    def facts(self) -> dict[str, str]:
        """Return the numbers of tokens."""
        data, weight = self._encoder.num_tokens, self.readout.num_weight_tokens
        return {} if data is None else {"tokens": f"{data} data + {weight} weight" if weight else f"{data} data"}


class _SignalFree(Start):
    """A start that does not read the signal, but records its shape in training, for which prediction prepares its inputs.

    Args:
        signal_shape: Shape ``(C, *shape)`` of the training signals; the command line sets it from the data. Signals of other
            shapes are accepted.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}
    recorded: ClassVar[tuple[str, ...]] = ("signal_shape",)

    def __init__(self, signal_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.signal_shape = None if signal_shape is None else tuple(signal_shape)


class LearnedStart(_SignalFree):
    """Start from one learned initialisation for all instances (MAML, Finn et al. 2017)."""

    def connect(self, latents: Mapping[str, TensorSpec]) -> None:
        """Create one parameter per latent."""
        self.latents = nn.ParameterDict(
            {module_key(name): nn.Parameter(spec.initial()) for name, spec in latents.items()}
        )
        self.specs = dict(latents)

    def forward(self, observation: Observation, layout: Layout) -> Latents:
        """Return the initialisation, expanded to all instances and over the layout."""
        return {
            name: self.latents[module_key(name)].expand(observation.num_instances, *layout.shape(spec.shape))
            for name, spec in self.specs.items()
        }


class ZeroStart(_SignalFree):
    """Start from zero, without learned parameters (CAVIA, Zintgraf et al. 2019; functa)."""

    def connect(self, latents: Mapping[str, TensorSpec]) -> None:
        """Keep the shapes of the latents."""
        self.specs = dict(latents)

    def forward(self, observation: Observation, layout: Layout) -> Latents:
        """Return zeros."""
        like = observation.reference
        return {
            name: like.new_zeros(observation.num_instances, *layout.shape(spec.shape))
            for name, spec in self.specs.items()
        }


class LearnedCode(_SignalFree):
    """Learn one code per training instance (auto-decoder; Park et al., DeepSDF, CVPR 2019, section 4).

    In training, ``observation.index`` selects the code. In evaluation, the latents start from the mean of the learned codes,
    and refinement fits them to the new instance, so the composer needs a ``refinement`` with enough steps.

    Args:
        num_instances: Number of training instances; the command line sets it from the data.
        signal_shape: Shape ``(C, *shape)`` of the training signals; also set from the data.
        std: Standard deviation of the noise that is added to the initial latents of the parametrization.

    Raises:
        ValueError: If ``num_instances`` is not positive or ``std`` is negative.
    """

    from_data: ClassVar[FromData] = {
        "signal_shape": signal_shape,
        "num_instances": training_instances,
    }

    def __init__(
        self, num_instances: int | None = None, signal_shape: Sequence[int] | None = None, std: float = 0.01
    ) -> None:
        super().__init__(signal_shape)
        if num_instances is None or num_instances < 1 or std < 0:
            raise ValueError(
                f"num_instances of LearnedCode is {num_instances} and std {std}; they must be at least 1 and at least 0. The "
                "command line sets num_instances where the data module knows it before set-up; otherwise pass it."
            )
        self.num_instances = num_instances
        self.std = std

    def connect(self, latents: Mapping[str, TensorSpec]) -> None:
        """Create the codes of all training instances.

        Raises:
            ValueError: If the shape of a latent depends on the signal.
        """
        self.specs = dict(latents)
        self.codes = nn.ParameterDict()
        for name, spec in latents.items():
            noise = torch.randn(self.num_instances, *Layout().shape(spec.shape)) * self.std
            self.codes[module_key(name)] = nn.Parameter(spec.initial() + noise)

    def forward(self, observation: Observation, layout: Layout) -> Latents:
        """Return the codes of training instances, or their mean.

        Raises:
            ValueError: If an index exceeds ``num_instances``.
        """
        index, latents = observation.index if self.training else None, {}
        for name in self.specs:
            codes = self.codes[module_key(name)]
            if index is None:
                latents[name] = codes.mean(0).expand(observation.num_instances, *codes.shape[1:])
            else:
                latents[name] = self._rows(codes, index)
        return latents

    def _rows(self, codes: Tensor, index: Tensor) -> Tensor:
        """Return the codes of some instances."""
        try:
            return codes[index]
        except IndexError as error:
            raise ValueError(
                f"Instance {int(index.max())} has no code: num_instances of LearnedCode is {self.num_instances}, and the "
                "training set is larger."
            ) from error
