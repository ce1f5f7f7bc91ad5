"""Weights as people have them: below entries and prefixes, in other types, under other codebases' names."""

import dataclasses
from typing import Any

import flax_side
import numpy as np
import pytest
import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp

from resnet_jax import create_model, from_torch, to_torch
from resnet_jax.errors import InteropError
from resnet_jax.interop.names import torch_leaves
from resnet_jax.interop.renamings import namings, recognised
from resnet_jax.models import get_arch


def state_of(name, classes=10, **options):
    """A state dict of seeded numbers."""
    variables = flax_side.variables(create_model(name, classes, **options), (1, 32, 32, 3))
    return to_torch(variables, name, **options)


STATE = state_of("resnet20")
WHOLE = from_torch(STATE, "resnet20")
HEADLESS = {key: value for key, value in STATE.items() if not key.startswith("fc")}


def prefixed(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def same(a, b):
    for (path, x), (other, y) in zip(sorted(seeded.leaves(a)), sorted(seeded.leaves(b)), strict=True):
        assert (path, x.dtype) == (other, y.dtype)
        np.testing.assert_array_equal(x, y, err_msg=path)


def read(state, arch="resnet20", **options):
    """What from_torch returns, and what it reports."""
    lines = []
    return from_torch(state, arch, report=lines.append, **options), lines


def refused(state, *says, arch="resnet20", **options):
    with pytest.raises(InteropError) as error:
        from_torch(state, arch, **options)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in says), message


# --- 1: prefixes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "a.b.c.d."])
def test_a_prefix_of_all_keys_is_stripped(prefix):
    held, lines = read(prefixed(prefix))
    same(held, WHOLE)
    (line,) = lines
    assert "stripped" in line
    assert prefix.replace("_orig_mod.", "") in line


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_any_prefix_is_stripped(prefix):
    same(read(prefixed(prefix))[0], WHOLE)


def test_modules_that_torch_puts_between_others_are_stripped():
    held, lines = read({key.replace("layer1.", "layer1._fsdp_wrapped_module."): x for key, x in STATE.items()})
    same(held, WHOLE)
    assert lines == ["weights read: names of torch.compile's and FSDP's wrappers stripped"]


def test_nothing_is_reported_of_plain_weights():
    assert read(STATE)[1] == []


def test_a_head_beside_a_backbone():
    for name in ("head", "classifier.1", "model.fc", "model.head.fc"):
        head = {f"{name}.weight": STATE["fc.weight"], f"{name}.bias": STATE["fc.bias"]}
        same(read({**prefixed("model.backbone.", HEADLESS), **head})[0], WHOLE)


def test_tensors_beside_the_network_are_an_error_that_lists_them():
    state = {**prefixed("backbone."), "projector.weight": np.ones((8, 64), np.float32)}
    refused(state, "1 unused: projector.weight", "--entry backbone leaves out")
    held, lines = read(state, entry="backbone")
    same(held, WHOLE)
    assert lines[0] == "--entry backbone: 1 other tensors are left out: projector.weight"


OUTER = {"fc.weight": STATE["fc.weight"] + 1, "fc.bias": STATE["fc.bias"]}


@pytest.mark.parametrize(
    ("stray", "says"),
    [
        ({"conv1.weight": STATE["conv1.weight"] + 1}, ("backbone.conv1.weight and conv1.weight", "--entry backbone")),
        ({"layer3.2.bn2.weight": np.ones(64, np.float32)}, ("backbone.layer3.2.bn2.weight and layer3.2.bn2.weight",)),
        (OUTER, (" and fc.", "--entry backbone")),
        ({"classifier.weight": OUTER["fc.weight"]}, ("1 unused: classifier.weight", "--entry backbone")),
    ],
)
def test_a_tensor_beside_the_network_does_not_replace_one_of_it(stray, says):
    for state in ({**prefixed("backbone."), **stray}, {**stray, **prefixed("backbone.")}):
        refused(state, *says)
        same(read(state, entry="backbone")[0], WHOLE)


def test_a_second_head_beside_a_network_of_the_chapter():
    width: dict[str, Any] = {"width": 0.125}
    state = state_of("resnet18", **width)
    head = {"fc.weight": state["net.last.2.weight"] + 1, "fc.bias": state["net.last.2.bias"]}
    for both in ({**prefixed("backbone.", state), **head}, {**head, **prefixed("backbone.", state)}):
        refused(both, "2 unused: fc.bias, fc.weight", arch="resnet18", **width)
        same(read(both, "resnet18", entry="backbone", **width)[0], from_torch(state, "resnet18", **width))
        lines = read(both, "resnet18", head="reset", **width)[1]
        assert any(" fc.weight" in line and "net.last.2.weight" in line for line in lines)


def test_two_tensors_of_one_name_behind_the_prefix():
    state = {"0.weight" if key == "conv1.weight" else key: value for key, value in STATE.items()}
    state = {key.replace("bn1.", "1.") if key.startswith("bn1.") else key: value for key, value in state.items()}
    state = {f"{int(key[5]) + 2}{key[6:]}" if key.startswith("layer") else key: x for key, x in state.items()}
    same(read(state)[0], WHOLE)
    refused({**state, "conv1.weight": STATE["conv1.weight"]}, "0.weight and conv1.weight", "only one of them")


# --- 3: entries


COUNTS = {"n_averaged": np.array(7), "initted": np.array([True]), "step": np.array([9], np.int32)}


@pytest.mark.parametrize("path", ["state_dict", "model", "net", "state_dict_ema", "module", "a.b.c", "params.teacher"])
def test_an_entry_of_a_checkpoint_is_found(path):
    checkpoint: dict[str, Any] = prefixed("module.")
    for name in reversed(path.split(".")):
        checkpoint = {name: checkpoint, "epoch": 3, "args": object()}
    checkpoint["optimizer"] = {"state": {0: {"momentum_buffer": STATE["conv1.weight"]}}, "param_groups": [{"lr": 0.1}]}
    held, lines = read(checkpoint)
    same(held, WHOLE)
    assert lines == [f"weights read: entry {path}, prefix module. stripped"]


def test_integer_counters_are_no_weights():
    same(read({**prefixed("module."), **COUNTS})[0], WHOLE)
    refused({**STATE, "decay": np.array(0.9, np.float32)}, "1 unused: decay")


def test_several_entries_that_fit_are_listed_and_one_is_chosen():
    other = {key: value + 1 for key, value in STATE.items()}
    for checkpoint, path in (
        ({"state_dict": STATE, "state_dict_ema": other}, "state_dict_ema"),
        ({"model": {"student": STATE, "teacher": prefixed("module.", other)}}, "model.teacher.module"),
        ({**prefixed("module.encoder_k."), **prefixed("module.encoder_q.", other)}, "module.encoder_q"),
        ({**STATE, "ema": other}, "ema"),
    ):
        refused(checkpoint, "several entries fit resnet20: ", path, "convert --entry NAME")
        same(read(checkpoint, entry=path)[0], from_torch(other, "resnet20"))
        refused(checkpoint, "unknown entry 'nothing'", path, entry="nothing")
    same(read({**STATE, "ema": other}, entry=".")[0], WHOLE)


def test_the_entry_of_the_right_network_is_taken():
    """A deeper network has all keys of a shallow one, and a wider one all its names."""
    for teacher in (state_of("resnet32"), state_of("resnet20", width=2.0)):
        same(read({"teacher": teacher, "student": STATE})[0], WHOLE)


# --- 4: types


@pytest.mark.parametrize(
    ("dtype", "word"), [(np.float16, "widened"), (jnp.bfloat16, "widened"), (np.float64, "rounded")]
)
def test_floating_types_become_float32(dtype, word):
    state = {key: value.astype(dtype) for key, value in STATE.items()}
    held, lines = read(state)
    same(held, from_torch({key: value.astype(np.float32) for key, value in state.items()}, "resnet20"))
    assert lines == [f"{len(STATE)} of {len(STATE)} tensors are {np.dtype(dtype).name}: {word} to float32"]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64", "complex128"])
def test_other_types_are_refused_by_name(dtype):
    refused({**STATE, "fc.weight": np.ones((10, 64), dtype)}, f"fc.weight is {dtype}")


# --- 5: a missing head


def test_the_message_of_a_backbone_names_the_flags():
    refused(HEADLESS, "no head", "fc.weight, fc.bias", "--head reset --num-classes N")
    refused(prefixed("backbone.", HEADLESS), "--head reset --num-classes N")
    layers = {"fc.0.weight": np.ones((64, 64), np.float32), "fc.2.weight": np.ones((10, 64), np.float32)}
    refused({**HEADLESS, **layers}, "no head of one layer", "fc.0.weight, fc.2.weight", "--head reset")
    held, lines = read({**HEADLESS, **layers}, head="reset", num_classes=3)
    assert held["params"]["head"]["kernel"].shape == (64, 3)
    assert lines == ["the head of the weights is left out: fc.0.weight, fc.2.weight"]
    same(held["params"]["stage1"], WHOLE["params"]["stage1"])


# --- 6: other codebases

# one key of ours -> the same in the codebase
KEYS = {
    ("resnet50", "torchvision"): {"layer2.0.downsample.1.bias": "layer2.0.downsample.1.bias"},
    ("resnet50", "kuangliu/pytorch-cifar"): {"layer2.0.downsample.1.bias": "layer2.0.shortcut.1.bias"},
    ("resnet50", "transformers"): {
        "conv1.weight": "embedder.embedder.convolution.weight",
        "bn1.running_var": "embedder.embedder.normalization.running_var",
        "layer1.0.conv1.weight": "encoder.stages.0.layers.0.layer.0.convolution.weight",
        "layer4.2.bn3.bias": "encoder.stages.3.layers.2.layer.2.normalization.bias",
        "layer2.0.downsample.0.weight": "encoder.stages.1.layers.0.shortcut.convolution.weight",
        "layer2.0.downsample.1.bias": "encoder.stages.1.layers.0.shortcut.normalization.bias",
    },
    ("resnet50", "weiaicunzai/pytorch-cifar100"): {
        "conv1.weight": "conv1.0.weight",
        "bn1.bias": "conv1.1.bias",
        "layer1.0.conv1.weight": "conv2_x.0.residual_function.0.weight",
        "layer4.2.bn3.bias": "conv5_x.2.residual_function.7.bias",
        "layer2.0.downsample.0.weight": "conv3_x.0.shortcut.0.weight",
    },
    ("resnet50", "nn.Sequential(*network.children())"): {
        "bn1.bias": "1.bias",
        "layer1.0.conv1.weight": "4.0.conv1.weight",
    },
    ("resnet50", "nn.Sequential(*network.children()) without a max-pool"): {
        "conv1.weight": "0.weight",
        "layer1.0.conv1.weight": "3.0.conv1.weight",
    },
    ("wrn_16_4", "xternalz/WideResNet-pytorch"): {
        "layer1.0.downsample.0.weight": "block1.layer.0.convShortcut.weight",
        "bn1.weight": "bn1.weight",
    },
    ("resnet18", "the chapter"): {"net.b3.0.conv3.bias": "net.b3.0.conv3.bias"},
    ("resnet18", "nn.Sequential(b1, b2, ...)"): {
        "net.0.0.weight": "0.0.weight",
        "net.0.1.bias": "0.1.bias",
        "net.b2.1.bn2.bias": "1.1.bn2.bias",
        "net.b5.0.conv3.weight": "4.0.conv3.weight",
    },
    ("resnet18", "d2l.resnet18"): {
        "net.0.0.weight": "0.weight",
        "net.0.1.running_mean": "1.running_mean",
        "net.b2.0.conv1.weight": "resnet_block1.0.conv1.weight",
    },
}
HEADS = {"resnet50": "classifier.1", "wrn_16_4": "linear", "resnet18": "7"}


@pytest.mark.parametrize(("name", "codebase"), KEYS, ids=[codebase for _, codebase in KEYS])
def test_the_names_of_other_codebases(name, codebase):
    naming = next(naming for naming in namings(get_arch(name)) if naming.codebase == codebase)
    assert {key: naming.key(key) for key in KEYS[name, codebase]} == KEYS[name, codebase]
    state = state_of(name, width=0.25)
    head = next(key for key, value in state.items() if value.ndim == 2).removesuffix(".weight")
    theirs = {
        f"a.{naming.key(key)}" if head not in key else HEADS[name] + key[len(head) :]: x for key, x in state.items()
    }
    held, lines = read(theirs, name, width=0.25)
    same(held, from_torch(state, name, width=0.25))
    assert lines == ["weights read: prefix a. stripped" + (f", names as in {codebase}" if naming.rules else "")]


def test_every_naming_is_tested():
    assert {codebase for _, codebase in KEYS} == {n.codebase for name in HEADS for n in namings(get_arch(name))}


def test_the_small_networks_of_other_codebases():
    """akamaster's ResNet-20 has its name of the head, and kuangliu's ResNet-18 needs --stem small."""
    same(read({key.replace("fc.", "linear."): value for key, value in STATE.items()})[0], WHOLE)
    state = state_of("tv_resnet18", stem="small")
    theirs = {key.replace("downsample", "shortcut").replace("fc.", "linear."): value for key, value in state.items()}
    refused(theirs, "conv1.weight is (64, 3, 3, 3)", "closest: tv_resnet18 --stem small (100%", arch="tv_resnet18")
    refused(theirs, "closest: tv_resnet18 --stem small (100%", arch="resnet18")
    same(read(theirs, "tv_resnet18", stem="small")[0], from_torch(state, "tv_resnet18", stem="small"))


def test_projected_shortcuts_of_small_networks_are_refused_with_the_reason():
    """Those of chenyaofo/pytorch-cifar-models. The way out that the message names works."""
    arch = dataclasses.replace(get_arch("resnet20"), pad_shortcut=False)
    state = to_torch(flax_side.variables(create_model(arch), (1, 32, 32, 3)), arch)
    refused(state, "its shortcuts are convolutions (layer2.0.downsample.0.weight)", "pad_shortcut=False")
    held = from_torch(state, arch)
    kernel = held["params"]["stage2"]["block1"]["shortcut_conv"]["kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), state["layer2.0.downsample.0.weight"])


OTHERS = {  # typical keys -> what the message says
    "features.denseblock1.denselayer1.norm1.weight": "DenseNet",
    "features.0.weight": "VGG",
    "blocks.0.attn.qkv.weight cls_token": "vision transformer",
    "layers.0.blocks.0.attn.relative_position_bias_table": "Swin",
    "stages.0.blocks.0.gamma": "ConvNeXt",
    "features.1.0.layer_scale": "ConvNeXt",
    "blocks.0.0.conv_dw.weight": "MobileNet or EfficientNet",
    "features.1.conv.0.0.weight": "MobileNet or EfficientNet",
    "Mixed_5b.branch1x1.conv.weight": "Inception",
    "trunk_output.block1.block1-0.proj.0.weight": "RegNet",
    "model.layers.0.self_attn.q_proj.weight": "transformer",
    "visual.attnpool.c_proj.weight": "CLIP",
    "conv1.0.weight conv1.3.weight conv1.6.weight": "stem of three convolutions",
    "layer1.0.conv1.weight layer2.0.shortcut.0.weight": "pre-activation ResNet",
    "backbone.bottom_up.res2.0.conv1.norm.weight": "detectron2",
    "conv1.weight_orig": "pruned",
    "conv1.zero_point": "quantised",
}


@pytest.mark.parametrize("keys", OTHERS)
def test_other_networks_are_refused_by_name(keys):
    state = {f"module.{key}": np.ones((3, 3), np.float32) for key in keys.split()}
    refused({"state_dict": state}, "not the weights of resnet20: ", OTHERS[keys])


def test_squeeze_and_excitation_that_was_not_asked_for():
    state = state_of("resnet20", squeeze_excitation=True)
    refused(state, "it has squeeze-and-excitation; add --squeeze-excitation")
    same(read(state, squeeze_excitation=True)[0], from_torch(state, "resnet20", squeeze_excitation=True))


def test_a_resnet_is_not_taken_for_another_network():
    for name in ("resnet18", "resnet50", "resnet20", "wrn_16_4", "resnext50_32x4d"):
        keys = torch_leaves(get_arch(name), create_model(name), 3)
        for naming in namings(get_arch(name))[: 2 if name == "wrn_16_4" else None]:  # of codebases that have it
            assert recognised(f"module.{naming.key(key)}" for key in keys) == "", name
