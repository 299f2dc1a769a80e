"""Image segmentation for JAX: ops, upsamplers, models, losses, metrics, data and training. Names are imported when they are used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxseg.embed import load
    from jaxseg.errors import InputError
    from jaxseg.inference.whole import predict_whole
    from jaxseg.models import MODELS, UNet
    from jaxseg.upsample import UPSAMPLERS

__all__ = ["MODELS", "UPSAMPLERS", "InputError", "UNet", "load", "predict_whole"]

_HOMES = {
    "InputError": "jaxseg.errors",
    "MODELS": "jaxseg.models",
    "UNet": "jaxseg.models",
    "UPSAMPLERS": "jaxseg.upsample",
    "load": "jaxseg.embed",
    "predict_whole": "jaxseg.inference.whole",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
