"""Augmentations of training images, inside the jitted step. AUGMENTATIONS holds those that recipes know, by name.

An augmentation is a pure function of (key, image): it gets a jax.random key of its own for each image and step, and an
image (H, W, C) float32 in [0, 1], and returns an image of the same shape and range. Attributes of the function tell
more. With moves_pixels = True it only moves pixels or sets them to 0, whatever their dtype; before any other function
it gets the image as stored. With by_epoch = True it is called with (key, image, epoch); epoch counts from 0, and the
key depends on the seed and on the image's row in the data set, not on the step. A Mix is a function of (key, pair,
other pair), where a pair is an image and the distribution (K,) of its label.

For reach, a number of pixels, see crop: it must be less than the height and the width of the images.
"""

from resnet_jax.data.augment.holes import cutout, erasing
from resnet_jax.data.augment.mixes import Mix, Pair, cutmix, mixup
from resnet_jax.data.augment.moves import alternating_flip, crop, flip, unchanged
from resnet_jax.data.augment.preprocess import (
    Augmentation,
    MeanStd,
    Preprocess,
    Source,
    apply,
    check_augment,
    name_of,
    per_channel,
    resize,
    to_unit,
)
from resnet_jax.data.augment.random_ops import rand_augment
from resnet_jax.data.augment.tones import brightness, contrast
from resnet_jax.data.augment.warps import resized_crop, rotate, shift

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "MeanStd",
    "Mix",
    "Pair",
    "Preprocess",
    "Source",
    "alternating_flip",
    "apply",
    "brightness",
    "check_augment",
    "contrast",
    "crop",
    "cutmix",
    "cutout",
    "erasing",
    "flip",
    "mixup",
    "name_of",
    "per_channel",
    "rand_augment",
    "resize",
    "resized_crop",
    "rotate",
    "shift",
    "to_unit",
    "unchanged",
]

AUGMENTATIONS = {
    item.__name__: item
    for item in (
        flip,
        alternating_flip,
        crop,
        resized_crop,
        rotate,
        shift,
        brightness,
        contrast,
        rand_augment,
        erasing,
        cutout,
        mixup,
        cutmix,
    )
}
