"""torchvision's ResNet on torch's own layers, by the names of its state_dict. The dict is used up: each array is read once."""


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
