"""Layers that wait in host memory give what loaded ones give, and leave again."""

import pytest
import torch
from comfyui_glm_image.pipeline.devices.layer_offload import offload_layers, repeated_layers, visiting
from comfyui_glm_image.pipeline.diagnostics.tiny_models import GRID, dit_config
from comfyui_glm_image.pipeline.models.transformer import Dit
from torch import nn

CPU = torch.device("cpu")


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x):
        return x + self.inner(x)


class Stack(nn.Module):
    def __init__(self, layers=4):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.pair = nn.ModuleList([nn.Linear(8, 8), nn.Identity()])
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x):
        x = self.pair[0](self.first(x))
        for layer in self.layers:
            x = layer(x)
        return x


def test_only_lists_of_one_kind_are_layers():
    stack = Stack()
    assert repeated_layers(stack) == list(stack.layers)


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_a_streamed_module_computes_the_same_twice(kept):
    stack, x = Stack(), torch.randn(3, 8)
    expected = stack(x)
    size = sum(p.nbytes for p in stack.layers[0].parameters())
    offload_layers(stack, CPU, keep=kept * size)
    assert torch.equal(stack(x), expected)
    assert torch.equal(stack(x), expected)


def test_layers_leave_after_their_turn_and_their_names_stay():
    stack = Stack().to(torch.float64)  # so that moving to the "device" makes tensors of its own
    names = list(stack.state_dict())
    offload_layers(stack, CPU)
    host = [p.data_ptr() for p in stack.layers.parameters()]
    stack(torch.randn(3, 8, dtype=torch.float64))
    assert [p.data_ptr() for p in stack.layers.parameters()] == host
    assert list(stack.state_dict()) == names


def test_a_part_called_by_itself_comes_by_itself():
    stack, x = Stack(), torch.randn(3, 8)
    expected = stack.layers[2].inner[0](x)
    offload_layers(stack, CPU)
    assert torch.equal(stack.layers[2].inner[0](x), expected)
    assert stack(x).shape == x.shape


def test_the_decoder_streams_its_blocks():
    torch.manual_seed(0)
    dit = Dit(dit_config()).requires_grad_(False)
    h, w = GRID
    arguments = (
        torch.randn(1, 16, 2 * h, 2 * w),
        torch.randn(1, 3, 48),
        torch.zeros(1, h * w, dtype=torch.long),
        False,
        torch.tensor([500.0]),
        torch.tensor([[64.0, 64.0]]),
        torch.zeros(1, 2),
    )
    expected = dit(*arguments)
    assert torch.equal(offload_layers(dit, CPU)(*arguments), expected)


def test_what_stays_is_not_moved_and_a_visit_leaves_nothing_behind():
    stack = Stack()
    home = {name: p.data_ptr() for name, p in stack.named_parameters()}
    offload_layers(stack, torch.device("meta"), staying=[stack.first, stack.layers])
    kinds = {name: p.device.type for name, p in stack.named_parameters()}
    assert {name for name, kind in kinds.items() if kind == "meta"} == {"pair.0.weight", "pair.0.bias"}
    with visiting([stack.first, stack.layers], torch.device("meta")):
        assert {p.device.type for p in stack.parameters()} == {"meta"}
    stays = {name: p.data_ptr() for name, p in stack.named_parameters() if kinds[name] == "cpu"}
    assert stays == {name: home[name] for name in stays}
