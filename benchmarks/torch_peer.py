"""The peer in PyTorch: networks and their train step, in a process that step.py starts.

    python torch_peer.py ARCH IMAGE_SIZE BATCH_SIZE

reads the name of a mode per line, runs one step and prints its seconds. It needs only torch and serve.py, so its
environment may lack jax and resnet_jax.
"""

import sys
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]
from serve import serve
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

# name: (autocast to bfloat16, channels_last, torch.compile)
MODES = {
    "float32": (False, False, False),
    "float32 channels_last": (False, True, False),
    "bfloat16 channels_last": (True, True, False),
    "bfloat16 channels_last compiled": (True, True, True),
}


class Residual(nn.Module):
    """The chapter's block."""

    def __init__(self, inputs: int, channels: int, strides: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, strides, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(inputs, channels, 1, strides) if strides > 1 else nn.Identity()

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.conv3(x))


class ResNeXtBlock(nn.Module):
    """The chapter's block, with groups of 16 channels."""

    def __init__(self, inputs: int, channels: int, strides: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, strides, 1, groups=channels // 16)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(channels) for _ in range(3))
        projection = [nn.Conv2d(inputs, channels, 1, strides), nn.BatchNorm2d(channels)] if strides > 1 else []
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class Small(nn.Module):
    """The block of the networks for small images. Its shortcut pads the channels with zeros (option A)."""

    def __init__(self, inputs: int, channels: int, strides: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, strides, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.strides, self.new = strides, channels - inputs

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        if self.new:
            before = self.new // 2
            x = F.pad(x[:, :, :: self.strides, :: self.strides], (0, 0, 0, 0, before, self.new - before))
        return F.relu(self.bn2(self.conv2(y)) + x)


class Bottleneck(nn.Module):
    """torchvision's block."""

    def __init__(self, inputs: int, channels: int, strides: int):
        super().__init__()
        width = channels // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, strides, 1, bias=False)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (width, width, channels))
        projection = [nn.Conv2d(inputs, channels, 1, strides, bias=False), nn.BatchNorm2d(channels)]
        self.shortcut = nn.Sequential(*(projection if inputs != channels else []))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


# name: (block, blocks and channels of each stage)
NETWORKS = {
    "resnet18": (Residual, ((2, 64), (2, 128), (2, 256), (2, 512))),
    "resnext18": (ResNeXtBlock, ((2, 64), (2, 128), (2, 256), (2, 512))),
    "resnet20": (Small, ((3, 16), (3, 32), (3, 64))),
    "resnet50": (Bottleneck, ((3, 256), (4, 512), (6, 1024), (3, 2048))),
}


def make_network(arch: str) -> nn.Module:
    block, stages = NETWORKS[arch]
    if arch == "resnet20":
        inputs, stem = 16, nn.Conv2d(1, 16, 3, 1, 1, bias=False)
    else:
        inputs, stem = 64, nn.Conv2d(1, 64, 7, 2, 3, bias=arch != "resnet50")
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(inputs), nn.ReLU()]
    if arch != "resnet20":
        layers.append(nn.MaxPool2d(3, 2, 1))
    for stage, (num_blocks, channels) in enumerate(stages):
        for number in range(num_blocks):
            layers.append(block(inputs, channels, 2 if stage and not number else 1))
            inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def make_step(arch: str, image_size: int, batch_size: int, mode: str) -> Callable[[], float]:
    """Return a function that runs one update and returns the loss. All updates use the same images."""
    bfloat16, channels_last, compiled = MODES[mode]
    torch.manual_seed(0)
    model, images = make_network(arch).train(), torch.rand(batch_size, 1, image_size, image_size)
    labels = torch.randint(0, 10, (batch_size,))
    if channels_last:
        model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    arch, image_size, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    steps = {mode: make_step(arch, image_size, batch_size, mode) for mode in MODES}
    serve(f"torch {torch.__version__}, {torch.get_num_threads()} threads", steps)


if __name__ == "__main__":
    main()
