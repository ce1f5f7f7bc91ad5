"""The peer in PyTorch: the seed's networks and their training step, served to step.py from a process of its own.

python torch_peer.py ARCH IMAGE_SIZE BATCH_SIZE     reads the name of a mode a line, makes a step, prints its seconds

It needs nothing but torch, so that it can run in an environment where neither jax nor resnet_jax is.
"""

import sys
import time
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

# name: (autocast to bfloat16, channels_last, torch.compile)
MODES = {
    "float32": (False, False, False),
    "float32 channels_last": (False, True, False),
    "bfloat16 channels_last": (True, True, False),
    "bfloat16 channels_last compiled": (True, True, True),
}
STAGES = ((2, 64), (2, 128), (2, 256), (2, 512))


class Residual(nn.Module):
    """The seed's block."""

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
    """The seed's block, with groups of 16 channels."""

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


BLOCKS = {"resnet18": Residual, "resnext18": ResNeXtBlock}


def make_network(arch: str) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, (num_blocks, channels) in enumerate(STAGES):
        for block in range(num_blocks):
            layers.append(BLOCKS[arch](inputs, channels, 2 if stage and not block else 1))
            inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def make_step(arch: str, image_size: int, batch_size: int, mode: str) -> Callable[[], float]:
    """A call that makes one update, on the same images each time, and returns the loss."""
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
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        steps[line.rstrip("\n")]()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
