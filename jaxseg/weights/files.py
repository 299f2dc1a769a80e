"""Foreign weight files: safetensors, and torch's .pt and .pth without unpickling anything but arrays."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.errors import InputError

LIMIT = 8 << 30
"""Bytes of the largest file that is read."""


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Key -> array of a .safetensors file or of a torch .pt, .pth or .bin, read by `torch.load(weights_only=True)`.

    Raises:
      InputError: it is missing, too large, damaged, holds more than arrays, or torch is needed and not installed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file. Give a .safetensors, .pt, .pth or .bin file of weights.")
    if path.stat().st_size > LIMIT:
        raise InputError(f"{path}: {path.stat().st_size} bytes; at most {LIMIT} are read. Give a file of weights alone.")
    state = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
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
    return {k: v.float().numpy() if v.is_floating_point() else v.numpy() for k, v in state.items() if isinstance(v, torch.Tensor)}
