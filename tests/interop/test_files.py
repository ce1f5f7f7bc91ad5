"""Files of state dicts and folders of weights: round trips, and the messages for invalid files."""

import json
import pickle
import struct
import sys
from pathlib import Path

import flax_side
import numpy as np
import pytest
import safetensors.numpy
import seeded

from resnet_jax import create_model, to_torch
from resnet_jax.errors import InteropError
from resnet_jax.interop import Weights, load_weights, read_state_dict, save_weights, write_state_dict

VARIABLES = flax_side.variables(create_model("resnet20"), (1, 32, 32, 3))
STATE = to_torch(VARIABLES, "resnet20")


def refused(call, *says):
    """Check that call raises InteropError with one line that contains every part."""
    with pytest.raises(InteropError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in says), message


def test_safetensors_round_trip_is_exact(tmp_path):
    write_state_dict(tmp_path / "a.safetensors", STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    held = read_state_dict(tmp_path / "a.safetensors")
    assert held.keys() == STATE.keys()
    for key, value in STATE.items():
        np.testing.assert_array_equal(held[key], value)


def test_the_round_trip_of_a_folder_of_weights_is_exact(tmp_path):
    save_weights(tmp_path / "w", Weights("resnet20", {"width": 1.0}, VARIABLES))
    weights = load_weights(tmp_path / "w")
    assert (weights.arch, weights.options) == ("resnet20", {"width": 1.0})
    for (path, a), (other, b) in zip(
        sorted(seeded.leaves(weights.variables)), sorted(seeded.leaves(VARIABLES)), strict=True
    ):
        assert path == other
        np.testing.assert_array_equal(a, b)


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


BAD_SAFETENSORS = {
    "empty": b"",
    "no header": b"not a safetensors file at all",
    "header too long": struct.pack("<Q", 2**40) + b"{}",
    "header not JSON": header(b"{nonsense"),
    "offsets past the end": header(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'),
    "unknown type": header(b'{"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}') + bytes(4),
}


@pytest.mark.parametrize("content", BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS.keys())
def test_a_bad_safetensors_file(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(lambda: read_state_dict(tmp_path / "a.safetensors"), "a.safetensors: damaged, or not a safetensors file")


def test_a_truncated_safetensors_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_state_dict(path, STATE)
    path.write_bytes(path.read_bytes()[:-100])
    refused(lambda: read_state_dict(path), "damaged")


@pytest.mark.parametrize(("dtype", "size"), [("BF16", 2), ("F16", 2), ("F64", 8), ("I32", 4)])
def test_only_float32_is_accepted(dtype, size, tmp_path):
    """bfloat16 is reported too, although numpy has no such type."""
    about = {"a.weight": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}
    (tmp_path / "a.safetensors").write_bytes(header(json.dumps(about).encode()) + bytes(2 * size))
    refused(lambda: read_state_dict(tmp_path / "a.safetensors"), f"a.weight is {dtype}", "only float32")


def test_counters_may_have_another_type(tmp_path):
    state = {**STATE, "bn1.num_batches_tracked": np.array(7)}
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    assert read_state_dict(tmp_path / "a.safetensors").keys() == state.keys()


def test_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"x")
    refused(lambda: read_state_dict(tmp_path), "is a folder; give a .safetensors or .pth file")
    refused(lambda: read_state_dict(tmp_path / "none.pth"), "there is no such file")
    refused(lambda: read_state_dict(tmp_path / "a.onnx"), "unknown file type", ".safetensors", ".pth")
    refused(lambda: write_state_dict(tmp_path / "a.onnx", STATE), "unknown file type")
    refused(lambda: write_state_dict(tmp_path / "none/a.safetensors", STATE), "cannot be written")
    refused(lambda: write_state_dict("/proc/a.safetensors", STATE), "cannot be written")


def test_without_torch_a_pth_file_is_not_opened(tmp_path, monkeypatch):
    """No other code unpickles it either."""
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Tripwire(tmp_path / "ran")))
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch raises ImportError
    refused(lambda: read_state_dict(tmp_path / "a.pth"), "pip install torch", "convert the file to .safetensors")
    refused(lambda: write_state_dict(tmp_path / "b.pth", STATE), "pip install torch")
    assert not (tmp_path / "ran").exists()


class Tripwire:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_tripwire_works(tmp_path):
    pickle.loads(pickle.dumps(Tripwire(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_with_torch_pth_files_are_read_and_nothing_in_them_is_run(tmp_path):
    torch = pytest.importorskip("torch")
    write_state_dict(tmp_path / "a.pth", STATE)
    held = read_state_dict(tmp_path / "a.pth")
    assert all(np.array_equal(held[key].numpy(), value) for key, value in STATE.items())
    torch.save({"state_dict": held, "epoch": 3}, tmp_path / "b.pth")
    assert read_state_dict(tmp_path / "b.pth").keys() == STATE.keys()
    (tmp_path / "c.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-1000])
    torch.save({"conv1.weight": Tripwire(tmp_path / "ran")}, tmp_path / "d.pth")
    (tmp_path / "e.pth").write_bytes(pickle.dumps(Tripwire(tmp_path / "ran")))
    for name in ("c", "d", "e"):  # the message leaves out torch's own, which recommends weights_only=False
        says = f"{name}.pth: damaged, or it contains objects other than tensors (none was run); save model.state_dict()"
        refused(lambda name=name: read_state_dict(tmp_path / f"{name}.pth"), says)
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], tmp_path / "f.pth")
    refused(lambda: read_state_dict(tmp_path / "f.pth"), "contains a list, not a state dict")


def test_files_are_written_atomically(tmp_path, monkeypatch):
    """A file has the umask's mode. After an error the old file is unchanged and no partial file remains."""
    write_state_dict(tmp_path / "a.safetensors", STATE)
    save_weights(tmp_path / "w", Weights("resnet20", {}, VARIABLES))
    (tmp_path / "plain").touch()
    for path in ("a.safetensors", "w/variables.safetensors"):
        assert (tmp_path / path).stat().st_mode == (tmp_path / "plain").stat().st_mode
    before = (tmp_path / "a.safetensors").read_bytes()

    def fail(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    refused(lambda: write_state_dict(tmp_path / "a.safetensors", STATE), "No space left on device")
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "plain", "w"]


def test_a_folder_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    weights = Weights("resnet20", {}, VARIABLES)
    refused(lambda: save_weights(tmp_path / "full", weights), "exists and is not empty")
    refused(lambda: save_weights(tmp_path / "full/file", weights), "is a file")
    refused(lambda: save_weights("/proc/weights", weights), "cannot be written")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_damaged_folders_of_weights(tmp_path):
    save_weights(tmp_path / "w", Weights("resnet20", {}, VARIABLES))
    variables, about = tmp_path / "w/variables.safetensors", tmp_path / "w/weights.json"
    content, text = variables.read_bytes(), about.read_text()
    variables.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one flipped bit, which safetensors does not detect
    refused(lambda: load_weights(tmp_path / "w"), "variables.safetensors is damaged (its SHA-256 differs)")
    variables.unlink()
    refused(lambda: load_weights(tmp_path / "w"), "there is no such file")
    for damage in ("{}", "nonsense", "[]", text[:-5]):
        about.write_text(damage)
        refused(lambda: load_weights(tmp_path / "w"), "weights.json is damaged")
    about.unlink()
    refused(lambda: load_weights(tmp_path / "w"), "there is no weights.json in it", "resnet_jax convert")
    refused(lambda: load_weights(tmp_path / "nowhere"), "there is no such folder")
