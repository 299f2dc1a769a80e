"""torch's side of the benchmark: a worker that speaks JSON lines on standard input and output. It knows nothing of jaxseg.

The parent (peers.py) runs this file with an interpreter that has torch. One request a line, one answer a line:

    {"do": "hello"}                                     -> versions, threads, whether torch.compile can work
    {"do": "operator", "file": F, "name": ..., ...}     -> relative errors against the results in F (npz); keeps the case
    {"do": "unet", "file": F, ...}                      -> the same for the whole U-Net below
    {"do": "import", "package": "torchvision"}          -> its version
    {"do": "packaged", "file": F, "package": ..., "encoder": ...} -> as unet, for that package's network
    {"do": "run", "key": "fwd", "mode": "eager", "steps": n} -> the seconds of each step
    {"do": "drop"}                                      -> forgets the case

A failure is {"error": text}. Tensors are channels_last, which is NHWC in memory.
"""

import importlib
import json
import os
import shutil
import sys
import time
import traceback

import numpy as np


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d)


def nchw(array, dtype=None):
    """NHWC (or NDHWC) numpy -> NCHW torch of channels_last strides."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 1)
    return channels_last(tensor.to(dtype)) if dtype else tensor


def weight(array, dtype, transposed=True):
    """A kernel [kh, kw, I, O] -> [I, O, kh, kw] of transposed convolutions or [O, I, kh, kw], channels_last as `module.to` makes it."""
    order = (-2, -1) if transposed else (-1, -2)
    return channels_last(torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, order, (0, 1)))).to(dtype))


def nhwc(tensor):
    return tensor.detach().float().movedim(1, -1).numpy()


def error(got, wanted):
    """The largest difference as a share of the largest value."""
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30))


# ---- Operators -------------------------------------------------------------------------------------------------------------


def conv(x, w):
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, w, padding="same")


def conv_transpose(x, w, stride, padding, output_padding=0, groups=1):
    return (F.conv_transpose2d if x.ndim == 4 else F.conv_transpose3d)(x, w, None, stride, padding, output_padding, groups)


def max_pool(x, window, stride, padding):
    return (F.max_pool2d if x.ndim == 4 else F.max_pool3d)(x, window, stride, padding)


def max_unpool(x, indices):
    return F.max_unpool2d(x, indices, (2, 2), (2, 2))


def interpolate(x, scale, mode):
    return F.interpolate(x, scale_factor=scale, mode=mode, align_corners=None if mode == "nearest" else False)


def pixel_shuffle(x, scale):
    return F.pixel_shuffle(x, scale)


OPERATORS = {f.__name__: f for f in (conv, conv_transpose, max_pool, max_unpool, interpolate, pixel_shuffle)}


class Operator:
    """One operator: the phases of operators.PHASES, eager and compiled (forward, and forward with all gradients)."""

    def __init__(self, file, name, options, dtype, compiled):
        data = np.load(file, allow_pickle=False)
        x = nchw(data["x"], getattr(torch, dtype)).requires_grad_()
        self.g = nchw(data["g"], getattr(torch, dtype))
        f, self.floats, rest = OPERATORS[name], [x], []
        self.transposed = name != "conv"
        if "w" in data:
            self.floats.append(weight(data["w"], getattr(torch, dtype), self.transposed).requires_grad_())
        if "indices" in data:
            rest = [nchw(data["indices"]).long().contiguous(memory_format=torch.channels_last)]
        if "constant" in data:
            rest = [weight(data["constant"], getattr(torch, dtype))]
        self.f = {"eager": lambda *floats: f(*floats, *rest, **options)}
        if compiled:
            self.f["compiled"] = torch.compile(self.f["eager"], dynamic=False)
        self.y = self.f["eager"](*self.floats)
        self.data = data

    def check(self):
        y, grads = self.both("eager")
        got = {"y": nhwc(y), "dx": nhwc(grads[0])}
        if len(grads) > 1:
            dw = grads[1].detach().float()
            got["dw"] = (dw if self.transposed else dw.swapaxes(0, 1)).movedim((0, 1), (-2, -1)).numpy()
        return {name: error(value, self.data[name]) for name, value in got.items()}

    def fwd(self, mode):
        with torch.no_grad():
            return self.f[mode](*self.floats)

    def both(self, mode):
        y = self.f[mode](*self.floats)
        return y, torch.autograd.grad(y, self.floats, self.g)

    def dx(self, mode):
        return torch.autograd.grad(self.y, self.floats[0], self.g, retain_graph=True)

    def dw(self, mode):
        return torch.autograd.grad(self.y, self.floats[1], self.g, retain_graph=True)


# ---- Whole networks ---------------------------------------------------------------------------------------------------------


class UNet:
    """jaxseg.models.UNet(padding="same", norm="batch", dropout=0) with transposed convolution; its modules bear the names of ours."""

    def __init__(self, channels, classes, features):
        self.depth = len(features) - 1
        self.parts = torch.nn.ModuleDict()
        for level in range(self.depth + 1):
            self.convs(f"down{level}", channels if level == 0 else features[level - 1], features[level])
        for level in range(self.depth):
            self.parts[f"up{level}_sample"] = torch.nn.ConvTranspose2d(features[level + 1], features[level], 2, 2)
            self.convs(f"up{level}", 2 * features[level], features[level])
        self.parts["logits"] = torch.nn.Conv2d(features[0], classes, 1)

    def convs(self, name, before, after):
        for i, inputs in ((1, before), (2, after)):
            self.parts[f"{name}_conv{i}"] = torch.nn.Conv2d(inputs, after, 3, padding=1, bias=False)
            self.parts[f"{name}_norm{i}"] = torch.nn.BatchNorm2d(after)

    def block(self, x, name):
        for i in (1, 2):
            x = F.relu(self.parts[f"{name}_norm{i}"](self.parts[f"{name}_conv{i}"](x)))
        return x

    def __call__(self, x):
        skips = []
        for level in range(self.depth):
            x = self.block(x, f"down{level}")
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.block(x, f"down{self.depth}")
        for level in reversed(range(self.depth)):
            x = self.parts[f"up{level}_sample"](x)
            x = self.block(torch.cat([skips[level], x], 1), f"up{level}")
        return self.parts["logits"](x)

    def load(self, data):
        """From Flax's names: params/down0_conv1/kernel, batch_stats/down0_norm1/mean."""
        names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        for key in data:
            if key.startswith(("params/", "batch_stats/")):
                _, part, leaf = key.split("/")
                value = torch.from_numpy(data[key])
                if leaf == "kernel":
                    value = value.permute(2, 3, 0, 1) if part.endswith("_sample") else value.permute(3, 2, 0, 1)
                with torch.no_grad():
                    getattr(self.parts[part], names[leaf]).copy_(value)


def own_unet(data, features):
    """(its module, its function) with the weights of F, "params/..." and "batch_stats/..."."""
    net = UNet(data["image"].shape[-1], data["logits"].shape[-1], features)
    net.load(data)
    return net.parts, net.__call__


def packaged_network(data, package, encoder):
    """(module, function) of torchvision's fcn_resnet without auxiliary head and dropout, or of segmentation_models_pytorch's Unet; with the
    weights of F, "torch/" before their own names."""
    channels, classes = data["image"].shape[-1], data["logits"].shape[-1]
    if package == "torchvision":
        make = getattr(importlib.import_module("torchvision.models.segmentation"), f"fcn_{encoder}")
        module = make(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
        module.classifier[3].p = 0.0
    else:
        make = importlib.import_module(package).Unet
        module = make(encoder, encoder_weights=None, in_channels=channels, classes=classes)
    weights = {key.removeprefix("torch/"): torch.from_numpy(data[key]) for key in data if key.startswith("torch/")}
    missing, unexpected = module.load_state_dict(weights, strict=False)
    wrong = [key for key in missing if not key.endswith("num_batches_tracked")] + unexpected
    if wrong:
        raise ValueError(f"{package}'s network and ours differ in {', '.join(wrong)}")
    return module, (lambda x: module(x)["out"]) if package == "torchvision" else module


NETWORKS = {"unet": own_unet, "packaged": packaged_network}


class Network:
    """Inference, and a training step with cross-entropy and Adam, of one network; eager and compiled."""

    def __init__(self, make, file, dtype, learning_rate, compiled, **options):
        data = np.load(file, allow_pickle=False)
        self.data = data
        self.module, call = make(data, **options)
        self.module.to(memory_format=torch.channels_last)
        self.autocast = torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32")
        self.image = nchw(data["image"]).contiguous(memory_format=torch.channels_last)
        self.label = torch.from_numpy(data["label"]).long()
        self.optimizer = torch.optim.Adam(self.module.parameters(), learning_rate)
        self.f = {"eager": call}
        if compiled:
            self.f["compiled"] = torch.compile(call, dynamic=False)

    def check(self):
        errors = {"logits": error(nhwc(self.inference("eager")), self.data["logits"])}
        losses = np.array([float(self.training("eager")) for _ in self.data["losses"]])
        return {**errors, "losses": error(losses, self.data["losses"])}

    def inference(self, mode):
        self.module.eval()
        with torch.no_grad(), self.autocast:
            return self.f[mode](self.image)

    def training(self, mode):
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            logits = self.f[mode](self.image)
        loss = F.cross_entropy(logits.float(), self.label)
        loss.backward()
        self.optimizer.step()
        return loss


# ---- The conversation ------------------------------------------------------------------------------------------------------


def hello():
    compilers = [name for name in ("g++", "clang++", "c++", "cl") if shutil.which(name)]
    return {
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "threads": torch.get_num_threads(),
        "compile": bool(compilers),
    }


def run(case, key, mode, steps):
    step, seconds = getattr(case, key), []
    for _ in range(steps):
        begun = time.perf_counter()
        step(mode)
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds}


def main():
    case = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "hello":
                answer = hello()
            elif do == "import":
                answer = {"version": importlib.import_module(request["package"]).__version__}
            elif do == "operator" or do in NETWORKS:
                case = None  # so that two are never there together
                case = Operator(**request) if do == "operator" else Network(NETWORKS[do], **request)
                answer = {"errors": case.check()}
            elif do == "run":
                answer = run(case, **request)
            else:  # drop
                case, answer = None, {}
                torch.compiler.reset()
        except Exception as failure:
            traceback.print_exc()
            answer = {"error": f"{type(failure).__name__}: {failure}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    # Only here, so that tools which import every module need no torch. torch's idle threads would spin for milliseconds in the parent's
    # turn; and where another program wants a core they slow torch itself by a factor of ten. This must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch  # pyright: ignore[reportMissingImports]
    import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

    main()
