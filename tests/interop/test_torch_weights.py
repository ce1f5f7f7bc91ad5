"""Conversion of state dicts, compared with the keys, shapes and bytes of PyTorch's own modules."""

import family
import flax_side
import jax
import numpy as np
import pytest
import seeded
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import create_model, from_torch, to_torch
from resnet_jax.errors import InteropError, UserError

FROZEN = seeded.frozen("torch_family")


def variables(name, channels=3, **options):
    """Return the seeded variables of an architecture."""
    return flax_side.variables(create_model(name, family.COUNTS[name][0], **options), (1, 32, 32, channels))


def zeros(name):
    """Return variables of zeros that take no memory."""
    model = create_model(name, family.COUNTS[name][0])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)


def same(a, b):
    for (path, x), (other, y) in zip(sorted(seeded.leaves(a)), sorted(seeded.leaves(b)), strict=True):
        assert path == other
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.parametrize("name", family.BYTES)
def test_state_dict_has_pytorchs_bytes_and_the_round_trip_is_exact(name):
    held = variables(name)
    state = to_torch(held, name)
    np.testing.assert_array_equal(family.digest(state, content=True), FROZEN[f"bytes/{name}"])
    back = from_torch(state, name)
    same(back, held)
    again = to_torch(back, name)
    assert all(np.array_equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("name", thorough_except(family.COUNTS, *family.ONE_OF_EACH))
def test_keys_and_shapes_are_pytorchs(name):
    np.testing.assert_array_equal(family.digest(to_torch(zeros(name), name), content=False), FROZEN[f"keys/{name}"])


def test_one_key_of_each_kind():
    assert to_torch(zeros("resnet50"), "resnet50").keys() > {
        "conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_mean",
        "layer3.5.conv3.weight", "layer4.2.bn3.bias", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert to_torch(zeros("resnet18"), "resnet18").keys() > {
        "net.0.0.weight", "net.0.0.bias", "net.0.1.running_mean", "net.b2.1.conv2.bias", "net.b3.0.conv3.weight",
        "net.b5.1.bn2.weight", "net.last.2.weight",
    }  # fmt: skip
    held = variables("resnet20", squeeze_excitation=True)
    state = to_torch(held, "resnet20", squeeze_excitation=True)
    assert state["layer1.0.se.fc1.weight"].shape == (8, 16, 1, 1)  # timm's
    same(from_torch(state, "resnet20", squeeze_excitation=True), held)


STATE = to_torch(variables("resnet20"), "resnet20")


def test_other_numbers_of_channels_and_classes_are_accepted():
    held = flax_side.variables(create_model("resnet20", 7), (1, 32, 32, 5))
    same(from_torch(to_torch(held, "resnet20"), "resnet20"), held)


def test_counters_are_dropped_and_arrays_are_copies():
    state = {**STATE, "bn1.num_batches_tracked": np.int64(3)}
    held = from_torch(state, "resnet20")
    before = STATE["bn1.weight"].copy()
    held["params"]["stem"]["bn"]["scale"][:] = 9
    np.testing.assert_array_equal(STATE["bn1.weight"], before)


def test_the_running_variance_is_copied_unchanged():
    """There is no factor of n / (n - 1), so evaluation matches PyTorch."""
    held = from_torch(STATE, "resnet20")
    np.testing.assert_array_equal(held["batch_stats"]["stem"]["bn"]["var"], STATE["bn1.running_var"])


def test_only_the_head_is_new_after_a_reset():
    held = from_torch(STATE, "resnet20", head="reset", num_classes=4)
    assert held["params"]["head"]["kernel"].shape == (64, 4)
    assert 0 < np.abs(held["params"]["head"]["kernel"]).max() <= 1 / 8
    whole = from_torch(STATE, "resnet20")
    for name in ("stem", "stage1", "stage2", "stage3"):
        same(held["params"][name], whole["params"][name])
    other = from_torch(STATE, "resnet20", head="reset", num_classes=4, seed=1)
    assert np.any(other["params"]["head"]["kernel"] != held["params"]["head"]["kernel"])
    headless = {key: value for key, value in STATE.items() if not key.startswith("fc")}
    assert from_torch(headless, "resnet20", head="reset")["params"]["head"]["kernel"].shape == (64, 10)


def test_one_channel_is_the_rgb_network_on_grey_images():
    rgb, grey = from_torch(STATE, "resnet20"), from_torch(STATE, "resnet20", in_channels=1)
    assert grey["params"]["stem"]["conv"]["kernel"].shape == (3, 3, 1, 16)
    x = seeded.normal("x", (2, 16, 16, 1))
    model = create_model("resnet20")
    np.testing.assert_allclose(
        flax_side.apply(model, grey, x), flax_side.apply(model, rgb, np.repeat(x, 3, -1)), rtol=0, atol=1e-4
    )
    assert STATE["conv1.weight"].shape == (16, 3, 3, 3)  # the state dict is unchanged


class Tensor:
    """The part of a torch tensor's interface that from_torch uses."""

    def __init__(self, array, dtype):
        self.array, self.dtype, self.shape = array, dtype, np.shape(array)

    def float(self):
        return Tensor(self.array.astype(np.float32), "torch.float32")

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array


def test_torch_tensors_are_accepted():
    same(
        from_torch({key: Tensor(value, "torch.float32") for key, value in STATE.items()}, "resnet20"),
        from_torch(STATE, "resnet20"),
    )
    half = Tensor(STATE["bn1.bias"].astype(np.float16), "torch.float16")
    held = from_torch({**STATE, "bn1.bias": half}, "resnet20")
    np.testing.assert_array_equal(held["params"]["stem"]["bn"]["bias"], half.array)
    with pytest.raises(InteropError, match=r"bn1\.bias is qint8"):
        from_torch({**STATE, "bn1.bias": Tensor(STATE["bn1.bias"], "torch.qint8")}, "resnet20")


def without(*keys):
    return {key: value for key, value in STATE.items() if key not in keys}


COUNT = {**STATE, "bn1.bias": STATE["bn1.bias"].astype(np.int32)}
HUGE = {**STATE, "fc.bias": np.full(10, 1e300)}
NEGATIVE = {**STATE, "layer2.0.bn1.running_var": np.full(32, -1e-3, np.float32)}
NAN = {**STATE, "layer2.0.bn1.weight": np.full(32, np.nan, np.float32)}


@pytest.mark.parametrize(
    ("state", "arch", "options", "says"),
    [
        (without("fc.bias"), "resnet20", {}, ["1 missing: fc.bias", "closest: resnet20 (100%"]),
        ({**STATE, "extra.weight": STATE["fc.bias"]}, "resnet20", {}, ["1 unused: extra.weight"]),
        ({**STATE, "bn1.weight": np.ones(8, np.float32)}, "resnet20", {}, ["bn1.weight is (8,), not (16,)"]),
        (STATE, "resnet32", {}, ["not the weights of resnet32", "missing", "and", "more", "closest: resnet20 (100%"]),
        (STATE, "resnet18", {}, ["unused", "closest: resnet20"]),
        ({}, "resnet18", {}, ["no tensor in it (it is empty)"]),
        ({"a": STATE["fc.bias"]}, "resnet18", {}, ["missing: net.0.0.bias", "no known architecture is close"]),
        ({**STATE, "conv1.weight": STATE["bn1.bias"]}, "resnet20", {}, ["conv1.weight is (16,), not (16, 3, 3, 3)"]),
        ({**STATE, "fc.weight": STATE["bn1.bias"]}, "resnet20", {}, ["fc.weight is (16,), not (1000, 64)"]),
        (COUNT, "resnet20", {}, ["bn1.bias is int32", "save them as float32"]),
        ({**STATE, "fc.bias": STATE["fc.bias"].astype(np.complex64)}, "resnet20", {}, ["fc.bias is complex64"]),
        ({"model": 3}, "resnet20", {}, ["no tensor in it (model)", "state_dict()"]),
        ([], "resnet20", {}, ["a list is not a state dict", "state_dict()"]),
        (HUGE, "resnet20", {}, ["NaN or infinite numbers in fc.bias", "allow_nan"]),
        (NAN, "resnet20", {}, ["NaN", "layer2.0.bn1.weight", "allow_nan=True"]),
        (STATE, "resnet20", {"num_classes": 100}, ["num_classes 100", "10 classes", "reset"]),
        (STATE, "resnet20", {"in_channels": 2}, ["in_channels 2", "3 channels"]),
        (STATE, "resnet20", {"head": "rest"}, ["'rest'", "did you mean reset"]),
        (STATE, "resnet20", {"head": "reset", "num_classes": 0}, ["num_classes 0"]),
        (STATE, "resnet20", {"head": "reset", "num_classes": "3"}, ["num_classes 3: give a whole number"]),
        (STATE, "resnet20", {"in_channels": True}, ["in_channels True: give a whole number"]),
        (STATE, "resnet20", {"in_channels": -1}, ["in_channels -1 must be at least 1"]),
        (STATE, "resnet20", {"width": "2"}, ["width 2: give a number"]),
        (STATE, "resnet20", {"allow_nan": "no"}, ["allow_nan no: give True or False"]),
        (STATE, "resnet20", {"seed": None}, ["seed None: give a whole number"]),
        (STATE, None, {}, ["arch None: give the name of an architecture"]),
        (NEGATIVE, "resnet20", {"allow_nan": True}, ["negative variances in layer2.0.bn1.running_var"]),
        (STATE, "resnet200", {}, ["'resnet200'", "did you mean resnet20"]),
        (STATE, "resnet20", {"squeeze_excitation": True}, ["missing: layer1.0.se.fc1.bias"]),
    ],
)  # fmt: skip
def test_errors_are_one_line(state, arch, options, says):
    with pytest.raises(UserError) as error:
        from_torch(state, arch, **options)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in says), message


def test_nan_is_accepted_on_request():
    assert np.isnan(from_torch(NAN, "resnet20", allow_nan=True)["params"]["stage2"]["block1"]["bn1"]["scale"]).all()


def test_only_five_names_are_listed():
    with pytest.raises(InteropError) as error:
        from_torch(STATE, "resnet110")
    assert "and 445 more; closest" in str(error.value)  # 45 blocks of 10 tensors are missing


def test_variables_of_another_network_are_refused():
    held = variables("resnet20")
    with pytest.raises(InteropError, match=r"not the variables of resnet32: \d+ missing: batch_stats/stage1/block4"):
        to_torch(held, "resnet32")
    with pytest.raises(InteropError, match="no stem/conv/kernel or head/kernel"):
        to_torch({"params": {"conv": {"kernel": np.zeros(3)}}, "batch_stats": {}}, "resnet20")


def test_torch_loads_the_result_of_to_torch():
    """This test needs torch."""
    torch = pytest.importorskip("torch")
    linear, state = torch.nn.Linear(64, 10), {key: torch.from_numpy(value) for key, value in STATE.items()}
    linear.load_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]}, strict=True)
    norm = torch.nn.BatchNorm2d(16)
    leaves = {key.removeprefix("bn1."): value for key, value in state.items() if key.startswith("bn1.")}
    norm.load_state_dict(leaves, strict=True)  # without num_batches_tracked
    same(from_torch(state, "resnet20"), from_torch(STATE, "resnet20"))
