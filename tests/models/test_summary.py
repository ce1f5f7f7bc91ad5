"""The layer table against the seed's printed one and PyTorch's counts."""

import pytest
import seeded

from resnet_jax import Residual, ResNet18, create_model, layer_summary, multiply_adds

PARTS = ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
# the seed's last line but one of code prints these, channels first
SEED = [(1, 24, 24, 64), (1, 24, 24, 64), (1, 12, 12, 128), (1, 6, 6, 256), (1, 3, 3, 512), (1, 10)]


def test_rows_are_the_seeds():
    summary = layer_summary(ResNet18(num_classes=10), (1, 96, 96, 1))
    counts = seeded.frozen("torch_nets")["parameters/resnet18/1"].tolist()
    assert [tuple(row) for row in summary] == list(zip(PARTS, SEED, counts, strict=True))
    assert summary.parameters == 11_178_378


@pytest.mark.parametrize("name", seeded.ARCHS)
def test_counts_are_pytorchs(name):
    summary = layer_summary(create_model(name), (2, 96, 96, 3))
    assert [row.layer for row in summary] == PARTS
    assert [row.output_shape for row in summary] == [(2, *shape[1:]) for shape in SEED]
    assert [row.parameters for row in summary] == seeded.frozen("torch_nets")[f"parameters/{name}/3"].tolist()


def test_it_prints_as_a_table():
    lines = str(layer_summary(ResNet18(), (1, 96, 96, 1))).splitlines()
    assert lines[0].split() == ["layer", "class", "output", "shape", "parameters"]
    classes = ["Stem", *["Stage"] * 4, "Dense"]
    for line, part, kind, shape in zip(lines[1:], PARTS, classes, SEED, strict=False):
        assert line.split()[:2] == [part, kind]
        assert str(shape) in line
    assert lines[-1].split() == ["total", "11,178,378"]
    assert len({len(line) for line in lines}) == 1  # the numbers end in one column


def test_a_block_has_a_table_too():
    """A 3x3 convolution of 3 to 6 channels has 168 parameters, one of 6 to 6 has 330, a 1x1 of 3 to 6 has 24."""
    rows = {row.layer: row for row in layer_summary(Residual(6, use_1x1conv=True, strides=2), (4, 7, 9, 3))}
    assert {layer: row.parameters for layer, row in rows.items()} == {
        "conv1": 168, "bn1": 12, "conv2": 330, "bn2": 12, "conv3": 24,
    }  # fmt: skip
    assert {row.output_shape for row in rows.values()} == {(4, 4, 5, 6)}


def taps(size, stride):
    """Of a 3x3 convolution padded by 1, along one axis: how many of the kernel's rows fall on the image, summed."""
    return sum(0 <= start + tap - 1 < size for start in range(0, size, stride) for tap in range(3))


def test_multiply_adds_are_those_of_every_convolution():
    """Residual(6, halving) of 3 channels at 7x9 by hand; padding is not counted."""
    block = Residual(6, use_1x1conv=True, strides=2)
    conv1, conv2 = taps(7, 2) * taps(9, 2) * 3 * 6, taps(4, 1) * taps(5, 1) * 6 * 6
    conv3 = 4 * 5 * 3 * 6
    assert multiply_adds(block, (1, 7, 9, 3)) == conv1 + conv2 + conv3
    assert multiply_adds(block, (4, 7, 9, 3)) == 4 * (conv1 + conv2 + conv3)


def test_multiply_adds_are_the_papers_but_for_padding():
    """torchvision's documentation tells 4.09, 4.23 and 1.81 thousand million, padding counted."""
    for name, told in {"resnet50": 4.089e9, "resnext50_32x4d": 4.23e9, "tv_resnet18": 1.814e9}.items():
        assert 0.92 * told < multiply_adds(create_model(name, 1000), (1, 224, 224, 3)) < told
