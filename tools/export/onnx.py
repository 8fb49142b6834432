"""The same programs as ONNX: written, and read again as functions of tensors."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from composers.latents import Latents
from tools.export.halves import Half, Inputs, Program, refusing
from tools.export.programs import free_sizes

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Refuse ONNX where a package for it is missing.

    Raises:
        ValueError: With the missing ones.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}: run pip install {' '.join(missing)}, or leave --onnx out for torch.export alone."
        )


def write_onnx(half: Half, program: ExportedProgram, path: Path) -> None:
    """Write a program as ONNX, its inputs, outputs and free sizes by name."""
    with refusing(f"{path.name} cannot be written, leave --onnx out"), _quiet():
        written = torch.onnx.export(
            program,
            input_names=list(flat(half.example)),
            output_names=list(half.outputs),
            dynamic_shapes=free_sizes(half.example),
            dynamo=True,
            verbose=False,
        )
        assert written is not None, "without a file name a program is returned"
    written.save(path)


def read_onnx(path: Path) -> Program:
    """Return an ONNX file as a function like the program that it was made of."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names, outputs = ([place.name for place in places] for places in (session.get_inputs(), session.get_outputs()))

    def program(*inputs: Tensor | Latents) -> Latents:
        parts = [part for value in inputs for part in ([value] if isinstance(value, Tensor) else value.values())]
        found = session.run(outputs, {name: part.numpy() for name, part in zip(names, parts, strict=True)})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, found, strict=True)}

    return program


def flat(inputs: Inputs) -> Latents:
    """Return inputs by name, every latent for itself."""
    return {
        key: part
        for name, value in inputs.items()
        for key, part in ({name: value} if isinstance(value, Tensor) else value).items()
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from people what torch's ONNX exporter says of itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is absent, which nothing here needs
    try:
        with warnings.catch_warnings():
            # https://github.com/Lightning-AI/pytorch-lightning/issues/21326, here from torch's own copies
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            warnings.filterwarnings("ignore", ".*axis name: B will not be used.*", UserWarning)  # again, for latents
            yield
    finally:
        logger.setLevel(level)
