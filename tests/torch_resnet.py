"""torchvision's ResNet on torch's own layers, by the names of its state_dict. The dict is used up: each array is read once."""

import importlib

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxseg.weights.table import to_torch


def package(name):
    """The package itself, or else a skip: the test that compares with its network as written down is there in any case."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision's operators, built for another torch
        pytest.skip(f"{name} cannot be imported ({str(error).splitlines()[0]}): its network is compared as written down in the test only")


def state_dict(table, variables):
    """Our variables as theirs. Every variable has its key."""
    import torch

    assert sorted(path for path, _ in table.values()) == sorted(flatten_dict(variables))
    return {key: torch.tensor(array) for key, array in to_torch(table, variables).items()}


def nchw(image):
    import torch

    return torch.tensor(image).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def assert_close(got, expected, relative=1e-4):
    assert got.shape == expected.shape
    assert np.max(np.abs(got - expected)) <= relative * np.max(np.abs(expected))


def conv(state, x, key, stride=1, dilation=1):
    from torch.nn import functional

    weight = state.pop(f"{key}.weight")
    return functional.conv2d(x, weight, state.pop(f"{key}.bias", None), stride, dilation * (weight.shape[-1] // 2), dilation)


def norm(state, x, key, train=False):
    from torch.nn import functional

    mean, var, weight, bias = (state.pop(f"{key}.{name}") for name in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(x, mean, var, weight, bias, training=train)


def resnet(state, x, prefix="", dilate=(False, False, False), train=False):
    """The maps of the stem and the four layers."""
    from torch.nn import functional

    x = norm(state, conv(state, x, f"{prefix}conv1", 2), f"{prefix}bn1", train).relu()
    maps, dilation = [x], 1
    x = functional.max_pool2d(x, 3, 2, 1)
    for layer, dilated in zip((1, 2, 3, 4), (False, *dilate), strict=True):
        first, stride = dilation, 1 if layer == 1 or dilated else 2
        dilation *= 2 if dilated else 1
        i = 0
        while f"{prefix}layer{layer}.{i}.conv1.weight" in state:
            key = f"{prefix}layer{layer}.{i}"
            bottleneck = f"{key}.conv3.weight" in state
            y = x
            wide, last = (2, 3) if bottleneck else (1, 2)
            for j in range(1, last + 1):
                strides = stride if (i, j) == (0, wide) else 1
                d = 1 if bottleneck and j != wide else first if i == 0 else dilation
                y = norm(state, conv(state, y, f"{key}.conv{j}", strides, d), f"{key}.bn{j}", train)
                y = y if j == last else y.relu()
            if f"{key}.downsample.0.weight" in state:
                x = norm(state, conv(state, x, f"{key}.downsample.0", stride), f"{key}.downsample.1", train)
            x = (x + y).relu()
            i += 1
        maps.append(x)
    return maps
