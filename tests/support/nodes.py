"""Which weights' gradient nodes are alive: one that outlives its step forbids CUDA graphs."""

import gc

import torch
from torch import nn


def living_gradient_nodes(module: nn.Module) -> list[str]:
    """Return the trainable parameters whose node of the autograd graph something keeps alive.

    A node is made anew wherever none is alive, so a mark on it tells whether it is the same one.
    """
    gc.collect()
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    for parameter in trained.values():
        torch.autograd.graph.get_gradient_edge(parameter).node.metadata["marked"] = True
    return [
        name
        for name, parameter in trained.items()
        if "marked" in torch.autograd.graph.get_gradient_edge(parameter).node.metadata
    ]
