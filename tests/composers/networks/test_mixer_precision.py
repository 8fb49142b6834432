"""Precision of the depthwise convolutions of a mixer under autocast on CPUs."""

import pytest
import torch

from composers.networks import GridMixer


@pytest.mark.parametrize("grid", [(9,), (4, 5)], ids=["audio", "images"])
def test_convolutions_run_in_float32_only_where_they_are_differentiated(grid):
    torch.manual_seed(0)
    mixer = GridMixer(8, num_blocks=1, kernel_size=3, mlp_ratio=2, axes=len(grid))
    torch.nn.init.normal_(mixer.blocks[0].project.weight)
    dtypes = []
    mixer.blocks[0].convolution.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    tokens = torch.randn(2, *grid, 8).bfloat16()
    expected = mixer(tokens.float())
    with torch.autocast("cpu", torch.bfloat16):
        trained = mixer(tokens)
        with torch.no_grad():
            evaluated = mixer(tokens)
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]
    for actual in (trained, evaluated):
        torch.testing.assert_close(actual.float(), expected, atol=0.05, rtol=0.05)
    trained.float().sum().backward()
    assert mixer.blocks[0].convolution.weight.grad.abs().max() > 0
