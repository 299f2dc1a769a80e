"""Laws of jaxseg.ops.pixel_shuffle: inverses, channel orders, equality with torch."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_laws import DTYPES, LEADING, MOVES, forward_and_backward, hlo_names, needs_torch, random_array

from jaxseg import ops
from jaxseg.errors import InputError


@LEADING
@pytest.mark.parametrize("r", [1, 2, 3])
def test_depth_to_space_and_space_to_depth_are_inverse(r, leading):
    deep, wide = random_array(*leading, 3, 4, 2 * r * r), random_array(*leading, 3 * r, 4 * r, 2)
    there, back = jax.jit(partial(ops.depth_to_space, scale=r)), jax.jit(partial(ops.space_to_depth, scale=r))
    assert there(deep).shape == wide.shape
    np.testing.assert_array_equal(back(there(deep)), deep)
    np.testing.assert_array_equal(there(back(wide)), wide)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: (there(x) * wide).sum()))(deep), back(wide))


def test_depth_to_space_puts_channel_blocks_in_row_major_cells():
    x = random_array(1, 2, 2, 4 * 3)
    y = np.asarray(ops.depth_to_space(x, 2))
    for i, j in itertools.product((0, 1), repeat=2):
        np.testing.assert_array_equal(y[:, i::2, j::2], x[..., (2 * i + j) * 3 : (2 * i + j + 1) * 3])


@needs_torch
@pytest.mark.parametrize("r", [2, 3])
def test_depth_to_space_equals_torch_pixel_shuffle(r):
    import torch

    x = random_array(2, 3, 4, 5 * r * r)  # torch's channels are [C, r, r], ours [r, r, C]
    theirs = x.reshape(2, 3, 4, r * r, 5).swapaxes(-2, -1).reshape(x.shape)
    expected = torch.nn.functional.pixel_shuffle(torch.tensor(theirs).permute(0, 3, 1, 2), r)
    np.testing.assert_array_equal(ops.depth_to_space(x, r), expected.permute(0, 2, 3, 1))


@DTYPES
def test_depth_to_space_keeps_the_type_and_vmaps(dtype):
    x = jnp.asarray(random_array(3, 2, 4, 8), dtype)
    y = jax.jit(ops.depth_to_space)(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(jax.jit(jax.vmap(ops.depth_to_space, 1, 1))(x[None]), y[None])
    assert not hlo_names(forward_and_backward(ops.depth_to_space), x) & MOVES


def _zeros(*shape):
    return jnp.zeros(shape)


@pytest.mark.parametrize(
    ("call", "got", "advice"),
    [
        (lambda: ops.depth_to_space(_zeros(4, 4)), "depth_to_space: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.depth_to_space(_zeros(4, 4, 6)), "got 6 channels; required a multiple of scale^2 = 4", "Widen"),
        (lambda: ops.space_to_depth(_zeros(4, 4)), "space_to_depth: got shape (4, 4)", "Add the missing axes"),
        (lambda: ops.space_to_depth(_zeros(5, 4, 1)), "got 5 x 4 pixels; required multiples of scale = 2", "Pad"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(call, got, advice):
    with pytest.raises(InputError) as error:
        call()
    assert got in str(error.value)
    assert advice in str(error.value)
