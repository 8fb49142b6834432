"""Programs in the ONNX format: written, and read again as functions of tensors."""

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
from tools.export.modules import ExportModule, Inputs, Program, one_line_errors
from tools.export.programs import dynamic_shapes

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        ValueError: If one is missing.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}: run pip install {' '.join(missing)}, or omit --onnx to write torch.export only."
        )


def write_onnx(module: ExportModule, program: ExportedProgram, path: Path) -> None:
    """Write a program as ONNX with named inputs, outputs and dynamic sizes."""
    with one_line_errors(f"{path.name} cannot be written, omit --onnx"), _silenced():
        onnx = torch.onnx.export(
            program,
            input_names=list(flattened(module.inputs)),
            output_names=list(module.outputs),
            dynamic_shapes=dynamic_shapes(module.inputs),
            dynamo=True,
            verbose=False,
        )
        assert onnx is not None, "returned if no file name is passed"
    onnx.save(path)


def read_onnx(path: Path) -> Program:
    """Return an ONNX file as a function with the arguments of the program that it was written from."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    input_names = [node.name for node in session.get_inputs()]
    output_names = [node.name for node in session.get_outputs()]

    def program(*inputs: Tensor | Latents) -> Latents:
        tensors = [part for value in inputs for part in ([value] if isinstance(value, Tensor) else value.values())]
        feed = {name: tensor.numpy() for name, tensor in zip(input_names, tensors, strict=True)}
        arrays = session.run(output_names, feed)
        return {name: torch.from_numpy(array) for name, array in zip(output_names, arrays, strict=True)}

    return program


def flattened(inputs: Inputs) -> Latents:
    """Return inputs as tensors by name, with the latents one by one."""
    return {
        key: part
        for name, value in inputs.items()
        for key, part in ({name: value} if isinstance(value, Tensor) else value).items()
    }


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress log messages and warnings of torch's ONNX exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision, which is not needed, is missing
    try:
        with warnings.catch_warnings():
            # https://github.com/Lightning-AI/pytorch-lightning/issues/21326, here from torch's own copies
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            warnings.filterwarnings(
                "ignore", ".*axis name: B will not be used.*", UserWarning
            )  # repeated for each latent
            yield
    finally:
        logger.setLevel(level)
