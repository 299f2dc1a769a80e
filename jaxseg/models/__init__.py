"""One file per paper, read top to bottom like its figure. `MODELS` names them for the command line, run folders and tests."""

from jaxseg.models.attention_unet import AttentionUNet
from jaxseg.models.basic_unet import BasicUNet
from jaxseg.models.conv_only import ConvOnly
from jaxseg.models.deconvnet import DeconvNet
from jaxseg.models.encoder_unet import EncoderUNet
from jaxseg.models.fcn import FCN
from jaxseg.models.fcn_resnet import FCNResNet
from jaxseg.models.heatmap import DirectHeatmap, PlainEncoder
from jaxseg.models.milesial import MilesialUNet
from jaxseg.models.nnunet import NNUNet
from jaxseg.models.residual_unet import ResidualUNet
from jaxseg.models.segnet import SegNet, SegNetBasic
from jaxseg.models.unet import UNet
from jaxseg.models.unet_plus_plus import UNetPlusPlus
from jaxseg.models.vgg import VGG16

MODELS = {
    "unet": UNet,
    "fcn": FCN,
    "fcn_resnet": FCNResNet,
    "segnet": SegNet,
    "segnet_basic": SegNetBasic,
    "deconvnet": DeconvNet,
    "encoder_unet": EncoderUNet,
    "unet_plus_plus": UNetPlusPlus,
    "attention_unet": AttentionUNet,
    "residual_unet": ResidualUNet,
    "nnunet": NNUNet,
    "milesial": MilesialUNet,
    "basic_unet": BasicUNet,
    "heatmap": DirectHeatmap,
    "conv_only": ConvOnly,
}

ENCODERS = {"plain": PlainEncoder, "vgg16": VGG16}
"""What a model's `encoder` may be where it is a class; elsewhere it is a name."""

__all__ = [
    "ENCODERS",
    "FCN",
    "MODELS",
    "AttentionUNet",
    "BasicUNet",
    "ConvOnly",
    "DeconvNet",
    "DirectHeatmap",
    "EncoderUNet",
    "FCNResNet",
    "MilesialUNet",
    "NNUNet",
    "ResidualUNet",
    "SegNet",
    "SegNetBasic",
    "UNet",
    "UNetPlusPlus",
]
