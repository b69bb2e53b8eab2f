"""What an operator holds while it runs: guessed from above, then measured on arguments that take little."""

from __future__ import annotations

import pytest
import torch

from advisor.costs.workspace import Workspace, _described, _made, call_of

aten = torch.ops.aten


def convolution(channels, kernel, groups, side=4, outputs=None):
    x, weight = (
        torch.empty(1, channels, side, side),
        torch.empty(outputs or channels, channels // groups, *kernel),
    )
    args = (x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups)
    return call_of(aten.convolution.default, args, {}, [x, weight])


@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "outputs"),
    [
        (2560, (3, 3), 2560, 2560),  # each group's channel is padded to 16, in and out: 23.6 MB
        (1280, (3, 3), 320, 640),
        (1024, (3, 3), 8, 2048),
        (512, (3, 3), 1, 512),
    ],
)
def test_no_kernel_takes_more_than_was_guessed(channels, kernel, groups, outputs):
    call = convolution(channels, kernel, groups, outputs=outputs)
    workspace = Workspace()
    guessed = workspace.bound(call, made=outputs * 4 * 4)
    assert workspace.peaks([call])[call] <= guessed
    assert workspace.bound(call, made=0) == workspace.peaks([call])[call]  # once it is known


def test_of_depthwise_weights_channels_are_padded_to_sixteen():
    """256 times as many, beside the weights themselves."""
    few, many = (Workspace().bound(convolution(n, (3, 3), n), made=0) for n in (1000, 2000))
    assert 256 * 1000 * 9 * 4 < many - few < 1.1 * 256 * 1000 * 9 * 4


def test_what_is_run_again_takes_no_more_memory_than_its_largest_argument():
    x = torch.zeros(3, 5, 7)
    arguments = (x, x.transpose(0, 2), x[:, :2], torch.zeros(4).expand(50, 4), [torch.zeros(2, 2)], 3, None)
    buffers = {}
    made = _made(_described(arguments), buffers)
    assert [each.shape for each in made[:4]] == [each.shape for each in arguments[:4]]
    assert [each.stride() for each in made[:4]] == [each.stride() for each in arguments[:4]]
    assert made[4][0].shape == (2, 2)
    assert made[5:] == (3, None)
    assert buffers[torch.float32].numel() == x.numel()


def test_indices_that_are_made_are_valid_and_what_is_computed_with_is_no_denormal():
    made = _made(_described((torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.zeros(0))), {})
    assert made[0].tolist() == [1, 1, 1]
    assert made[1].tolist() == [0, 0, 0]
    assert made[2].numel() == 0
