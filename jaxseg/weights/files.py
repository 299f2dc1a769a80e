"""Foreign weight files: safetensors, torch's .pt and .pth without unpickling anything but arrays, and the data sets of HDF5."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.errors import InputError

LIMIT = 8 << 30
"""Bytes of the largest file that is read, and of all arrays that come out of one."""


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Key -> array of a .safetensors file, of a torch .pt, .pth or .bin, read by `torch.load(weights_only=True)`, or of an .h5 or .hdf5.

    Raises:
      InputError: it is missing, too large, damaged, holds more than arrays, or torch or h5py is needed and not installed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file. Give a .safetensors, .pt, .pth, .bin or .h5 file of weights.")
    if path.stat().st_size > LIMIT:
        raise InputError(f"{path}: {path.stat().st_size} bytes; at most {LIMIT} are read. Give a file of weights alone.")
    readers = {".safetensors": _safetensors, ".h5": _hdf5, ".hdf5": _hdf5}
    state = readers.get(path.suffix.lower(), _torch)(path)
    if not state:
        raise InputError(f"{path}: holds no arrays. Give a file of weights.")
    return state


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        return {key: np.asarray(array) for key, array in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no safetensors file ({error}). Fetch it again.") from error


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{path}: {path.suffix or 'this'} is torch's format, and torch is not installed. `pip install torch`, or convert the file to "
            ".safetensors where it is."
        ) from error
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its zip and pickle readers do
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not weights alone ({first}). Nothing in it was executed; save model.state_dict() there.") from error
    for inside in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(inside), dict):
            state = state[inside]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path}: holds {type(state).__name__}; required a state dict. Save model.state_dict() there.")
    arrays, wrong = {}, []
    for key, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            try:
                arrays[key] = (tensor.detach().float() if tensor.is_floating_point() else tensor.detach()).numpy()
            except (TypeError, RuntimeError):
                wrong.append(f"{key}: {tensor.dtype}, {tensor.layout}, on {tensor.device}")
    if wrong:
        raise InputError(f"{path}: {'; '.join(wrong)}; required are plain tensors. Save the state dict of a dense, unquantised network.")
    return arrays


def _hdf5(path: Path) -> dict[str, np.ndarray]:
    """The data sets by their place, "a/b/0". Only what lies in the file itself is read; no link is followed."""
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"{path}: is HDF5, and h5py is not installed. `pip install jaxseg[hdf5]`.") from error
    links: dict[str, Any] = {}
    state: dict[str, np.ndarray] = {}
    size = 0
    try:
        with h5py.File(path, "r") as file:
            file.visititems_links(links.__setitem__)
            for key, link in links.items():
                item = file[key] if isinstance(link, h5py.HardLink) else link
                if isinstance(item, h5py.Group):
                    continue
                if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu" or item.is_virtual or item.external:
                    what = f"holds {item.dtype}" if isinstance(item, h5py.Dataset) else f"is a {type(item).__name__}"
                    raise InputError(f"{path}: {key} {what}; required are numbers in the file itself. Give a file of weights alone.")
                size += item.nbytes
                if size > LIMIT:
                    raise InputError(f"{path}: its arrays have {size} bytes or more; at most {LIMIT} are read.")
                state[key] = item[()]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{path}: not HDF5 that can be read ({' '.join(str(error).split())[:200]}). Fetch it again.") from error
    return state
