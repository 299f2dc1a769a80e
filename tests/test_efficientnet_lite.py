"""Laws of EfficientNet-Lite0: the published file's keys and counts, and equality with its network in torch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from op_laws import needs_torch
from random_variables import random_variables

from jaxseg.errors import InputError
from jaxseg.models.efficientnet_lite import EfficientNetLite0
from jaxseg.models.heatmap import DirectHeatmap
from jaxseg.weights.efficientnet_lite import IGNORED, layout


def _torch_network():
    """efficientnet-lite-pytorch 0.1.0's EfficientNet for images of any size, with its keys; called, it gives the map after each block."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Same(nn.Conv2d):
        def forward(self, input):
            k, s = self.kernel_size[0], self.stride[0]
            pads = []
            for side in reversed(input.shape[2:]):
                pad = max((-(-side // s) - 1) * s + k - side, 0)
                pads += [pad // 2, pad - pad // 2]
            return functional.conv2d(functional.pad(input, pads), self.weight, None, s, groups=self.groups)

    def norm(features):
        return nn.BatchNorm2d(features, eps=1e-3)

    class MBConv(nn.Module):
        def __init__(self, i, o, k, s, e):
            super().__init__()
            if e > 1:
                self._expand_conv, self._bn0 = Same(i, i * e, 1, bias=False), norm(i * e)
            self._depthwise_conv, self._bn1 = Same(i * e, i * e, k, s, groups=i * e, bias=False), norm(i * e)
            self._project_conv, self._bn2 = Same(i * e, o, 1, bias=False), norm(o)
            self.expand, self.skip = e > 1, s == 1 and i == o

        def forward(self, x):
            y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expand else x
            y = self._bn2(self._project_conv(functional.relu6(self._bn1(self._depthwise_conv(y)))))
            return x + y if self.skip else y

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self._conv_stem, self._bn0 = Same(3, 32, 3, 2, bias=False), norm(32)
            blocks, i = [], 32
            stages = "r1_k3_s1_e1_o16 r2_k3_s2_e6_o24 r2_k5_s2_e6_o40 r3_k3_s2_e6_o80 r3_k5_s1_e6_o112 r4_k5_s2_e6_o192 r1_k3_s1_e6_o320"
            for coded in stages.split():
                r, k, s, e, o = (int(part[1:]) for part in coded.split("_"))
                for first in [True] + [False] * (r - 1):
                    blocks.append(MBConv(i, o, k, s if first else 1, e))
                    i = o
            self._blocks = nn.ModuleList(blocks)
            self._conv_head, self._bn1, self._fc = Same(320, 1280, 1, bias=False), norm(1280), nn.Linear(1280, 1000)

        def forward(self, x):
            maps = [functional.relu6(self._bn0(self._conv_stem(x)))]
            for block in self._blocks:
                maps.append(block(maps[-1]))
            return maps

    network = Network().eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if "_bn" in name and name.endswith(("running_var", "weight")):
                value.uniform_(0.5, 1.5, generator=random)
            elif "_bn" in name and value.dtype.is_floating_point:
                value.normal_(0, 0.3, generator=random)
    return network


@needs_torch
def test_the_maps_equal_torchs_and_the_table_names_every_array():
    import torch

    network = _torch_network()
    state = network.state_dict()
    assert len(state) == 296  # as in the published file
    assert sum(value.numel() for value in network.parameters()) == 4_652_008
    arrays = {key: value.numpy() for key, value in state.items() if not key.endswith("num_batches_tracked")}
    table = layout(EfficientNetLite0())
    assert set(arrays) == set(table) | set(IGNORED)
    assert not set(table) & set(IGNORED)
    change = {"conv": lambda w: w.transpose(2, 3, 1, 0), "same": lambda w: w}
    ours = {path: change[how](arrays[key]) for key, (path, how) in table.items()}
    expected = flatten_dict(jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    assert {path: leaf.shape for path, leaf in expected.items()} == {path: array.shape for path, array in ours.items()}

    apply = jax.jit(EfficientNetLite0().apply)
    for shape in ((1, 64, 96, 3), (1, 77, 45, 3)):
        image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        with torch.no_grad():
            maps = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
        got = apply(unflatten_dict(ours), image)
        last_of_its_size = [a for a, b in itertools.pairwise(maps) if a.shape[2:] != b.shape[2:]] + maps[-1:]
        for stride, ours_, theirs in zip((2, 4, 8, 16, 32), got, [maps[0], *last_of_its_size[1:]], strict=True):
            theirs = theirs.numpy().transpose(0, 2, 3, 1)
            assert ours_.shape == theirs.shape
            assert ours_.shape[1:3] == (-(-shape[1] // stride), -(-shape[2] // stride))
            np.testing.assert_allclose(ours_, theirs, rtol=1e-4, atol=1e-4 * abs(theirs).max())


def test_the_encoder_has_2958848_parameters_and_its_channels():
    maps, variables = jax.eval_shape(EfficientNetLite0().init_with_output, jax.random.key(0), jnp.zeros((2, 1, 33, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 4_652_008 - 1280 * (320 + 2 + 1000) - 1000 == 2_958_848
    assert [m.shape for m in maps] == [(2, 1, 17, 32), (2, 1, 9, 24), (2, 1, 5, 40), (2, 1, 3, 112), (2, 1, 2, 320)]


def test_within_a_model_the_table_leads_to_its_encoder():
    model = DirectHeatmap(2, EfficientNetLite0)
    paths = set(flatten_dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))))
    assert {path for path, _ in layout(model).values()} == paths - {("params", "logits", "kernel"), ("params", "logits", "bias")}


def test_gradients_are_finite_and_reach_every_parameter_and_training_moves_the_statistics():
    model = DirectHeatmap(3, EfficientNetLite0)
    image = np.random.default_rng(1).normal(size=(2, 64, 64, 1)).astype(np.float32)
    variables = random_variables(model, image)

    def loss(params):
        logits, state = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return (logits**2).mean(), state

    gradient, state = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert abs(leaf).max() > 0, path
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), variables["batch_stats"], state["batch_stats"])))


def test_an_image_without_batch_is_an_error():
    with pytest.raises(InputError, match=r"EfficientNetLite0: got an image of shape \(8, 8, 3\); required \[N, H, W, C\]"):
        jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), jnp.zeros((8, 8, 3)))
