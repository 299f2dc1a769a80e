"""One file per paper, read top to bottom like its figure. `MODELS` names them for the command line, run folders and tests."""

from jaxseg.models.unet import UNet

MODELS = {"unet": UNet}

__all__ = ["MODELS", "UNet"]
