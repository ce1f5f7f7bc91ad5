"""The peer of inference.py in PyTorch: networks in evaluation mode, in a process that inference.py starts.

    python torch_inference_peer.py MODE ... ARCH IMAGE_SIZE BATCH_SIZE

reads the name of a mode per line, computes the probabilities of one batch and prints the seconds. It needs only torch
and the files beside it, so its environment may lack jax and resnet_jax. All modes store images channels-last. A mode
is a dtype and a form:

    eager     the network as it is
    folded    batch norms folded into convolutions by torch.nn.utils.fusion
    compiled  the folded network by torch.compile
    frozen    the same with torch._inductor's freezing: weights are constants in oneDNN's layout
"""

import sys
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]
from serve import serve
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]
from torch.nn.utils.fusion import fuse_conv_bn_eval  # pyright: ignore[reportMissingImports]
from torch_peer import Bottleneck

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Basic(nn.Module):
    """torchvision's basic block."""

    def __init__(self, inputs: int, channels: int, strides: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, strides, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        projection = [nn.Conv2d(inputs, channels, 1, strides, bias=False), nn.BatchNorm2d(channels)]
        self.shortcut = nn.Sequential(*(projection if inputs != channels else []))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)).add_(self.shortcut(x)), inplace=True)


NETWORKS = {
    "tv_resnet18": (Basic, ((2, 64), (2, 128), (2, 256), (2, 512))),
    "resnet50": (Bottleneck, ((3, 256), (4, 512), (6, 1024), (3, 2048))),
}


def make_network(arch: str) -> nn.Module:
    """torchvision's network for 3 channels and 1000 classes, with its names of modules inside a block."""
    block, stages = NETWORKS[arch]
    inputs = 64
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for stage, (num_blocks, channels) in enumerate(stages):
        for number in range(num_blocks):
            layers.append(block(inputs, channels, 2 if stage and not number else 1))
            inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def fold(model: nn.Module) -> nn.Module:
    """The network with each batch norm folded into the convolution before it."""
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            pairs = [(str(i), str(i + 1)) for i in range(len(module) - 1)]
        else:
            pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        for conv, norm in pairs:
            children = dict(module.named_children())
            if isinstance(children.get(conv), nn.Conv2d) and isinstance(children.get(norm), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(children[conv], children[norm]))
                setattr(module, norm, nn.Identity())
    return model


def make_run(arch: str, image_size: int, batch_size: int, mode: str) -> Callable[[], object]:
    """Return a function that computes the probabilities of one batch, the same images in each call."""
    dtype, form = mode.split(" ")
    torch.manual_seed(0)
    model = make_network(arch).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    model = model if form == "eager" else fold(model)
    model = model.to(DTYPES[dtype]).to(memory_format=torch.channels_last)
    images = torch.rand(batch_size, 3, image_size, image_size).to(memory_format=torch.channels_last)

    def probabilities(images: torch.Tensor) -> torch.Tensor:
        return F.softmax(model(images.to(DTYPES[dtype])).float(), 1)

    if form == "frozen":  # constant weights, in the layout of oneDNN
        torch._inductor.config.freezing = True  # pyright: ignore[reportPrivateImportUsage]
    run = torch.compile(probabilities) if form in ("compiled", "frozen") else probabilities

    def call() -> object:
        with torch.inference_mode() if form != "frozen" else torch.no_grad():  # freezing needs the latter
            return run(images)[0, 0].item()

    call()  # compiles
    torch._inductor.config.freezing = False  # pyright: ignore[reportPrivateImportUsage]
    return call


def main() -> None:
    *modes, arch, image_size, batch_size = sys.argv[1:]
    runs = {mode: make_run(arch, int(image_size), int(batch_size), mode) for mode in modes}
    serve(f"torch {torch.__version__}, {torch.get_num_threads()} threads", runs)


if __name__ == "__main__":
    main()
