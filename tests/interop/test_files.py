"""Files of state dicts and folders of weights: round trips, and the messages for invalid files."""

import contextlib
import io
import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import flax_side
import numpy as np
import pytest
import safetensors.numpy
import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp

from resnet_jax import create_model, to_torch
from resnet_jax.errors import InteropError
from resnet_jax.interop import Weights, load_weights, read_state_dict, save_weights, write_state_dict
from resnet_jax.interop.pickled import Placeholder, read
from resnet_jax.interop.torch_file import Storage, Storages, Tensor, Unsupported, build, load_torch

FIXTURES = Path(__file__).parents[1] / "fixtures"
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


TYPES = {
    "BF16": (b"\x00\x40", jnp.bfloat16),  # 2.0
    "F16": (b"\x00\x40", np.float16),
    "F64": (struct.pack("<d", 2), np.float64),
    "I32": (struct.pack("<i", 2), np.int32),
    "U8": (b"\x02", np.uint8),
}


@pytest.mark.parametrize("name", TYPES)
def test_the_types_of_safetensors(name, tmp_path):
    """bfloat16 too, although numpy has no such type of its own."""
    number, dtype = TYPES[name]
    about = {"a": {"dtype": name, "shape": [2, 1], "data_offsets": [0, 2 * len(number)]}}
    (tmp_path / "a.safetensors").write_bytes(header(json.dumps(about).encode()) + 2 * number)
    array = read_state_dict(tmp_path / "a.safetensors")["a"]
    assert (array.shape, array.dtype) == ((2, 1), dtype)
    assert (array == 2).all()


def test_a_type_that_numpy_lacks(tmp_path):
    about = {"a.weight": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    (tmp_path / "a.safetensors").write_bytes(header(json.dumps(about).encode()) + bytes(2))
    refused(lambda: read_state_dict(tmp_path / "a.safetensors"), "a.weight is F8_E4M3", "float32")


def zipped(*names: str) -> bytes:
    """A ZIP archive of empty files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return content.getvalue()


CONTENTS = {  # of files that are no weights -> what the message says
    b"": "is empty",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n": "git lfs pull",
    b"<!DOCTYPE html><html>Not found</html>": "a web page",
    b"\n <html><body>": "a web page",
    b'{"metadata": {"total_size": 1}}': "a JSON file",
    b"Not Found": "a text file ('Not Found')",
    b"\x89HDF\r\n\x1a\n" + bytes(64): "HDF5 file, such as Keras writes",
    b"GGUF" + bytes(64): "GGUF",
    b"\x93NUMPY\x01\x00" + bytes(64): "numpy.savez",
    b"\x08\x07\x12\x07pytorch" + bytes(64): "ONNX",
    b"\x1f\x8b\x08" + bytes(64): "unpack it",
    b"\x12\x01" + bytes(64): "MXNet",
    bytes(257) + b"ustar" + bytes(64): "unpack it",
    pickle.dumps({"a": 1}): "a pickle that torch.save did not write",
    pickle.dumps({"a": 1}, 2): "a pickle that torch.save did not write",
    b"PK\x03\x04" + bytes(64): "damaged or incomplete",
    zipped("m/code/a.py", "m/constants.pkl", "m/data.pkl"): "TorchScript",
    zipped("config.json", "model.weights.h5"): "Keras",
    zipped("notes.txt"): "a ZIP archive of notes.txt",
    bytes(64): "unknown file type, or damaged",
}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_the_content_tells_what_a_file_is(name, tmp_path):
    for content, says in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
        refused(lambda: read_state_dict(tmp_path / name), name, says)


@pytest.mark.parametrize("name", ["a", "a.pth", "a.pth.tar", "a.th", "a.ckpt", "a.params", "a.weights", "a.h5"])
def test_the_ending_tells_nothing(name, tmp_path):
    for content in (FIXTURES / "torch_new.pth", FIXTURES / "torch_old.pth"):
        (tmp_path / name).write_bytes(content.read_bytes())
        assert read_state_dict(tmp_path / name)["epoch"] == 3
    np.savez(tmp_path / "b.npz", a=np.arange(3))
    safetensors.numpy.save_file({"a": np.arange(3)}, tmp_path / "b.safetensors")
    for other in ("b.npz", "b.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / other).read_bytes())
        np.testing.assert_array_equal(read_state_dict(tmp_path / name)["a"], np.arange(3))


def test_a_header_may_have_any_length(tmp_path):
    """Also one whose first byte is another format's: {, < or a pickle's."""
    for length in (0x3C, 0x7B, 0x80, 0x108, 0x280):
        about = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(length)
        (tmp_path / "a").write_bytes(header(about) + b"\x07")
        assert read_state_dict(tmp_path / "a")["a"] == [7]


def test_counters_may_have_another_type(tmp_path):
    state = {**STATE, "bn1.num_batches_tracked": np.array(7)}
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    assert read_state_dict(tmp_path / "a.safetensors").keys() == state.keys()


def test_other_kinds_of_files_are_refused(tmp_path):
    refused(lambda: read_state_dict(tmp_path), "is a folder; give a .safetensors or .pth file")
    refused(lambda: read_state_dict(tmp_path / "none.pth"), "there is no such file")
    refused(lambda: write_state_dict(tmp_path / "a.onnx", STATE), "unknown file type")
    refused(lambda: write_state_dict(tmp_path / "none/a.safetensors", STATE), "cannot be written")
    refused(lambda: write_state_dict("/proc/a.safetensors", STATE), "cannot be written")


def test_without_torch_a_pth_file_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch raises ImportError
    refused(lambda: write_state_dict(tmp_path / "b.pth", STATE), "pip install torch")


class Tripwire:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_tripwire_works(tmp_path):
    pickle.loads(pickle.dumps(Tripwire(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["torch_new.pth", "torch_old.pth"])
def test_files_of_torch_save(name):
    """In both formats, without torch: the types, and tensors that are views of a storage."""
    held, numbers = read_state_dict(FIXTURES / name), np.arange(12, dtype=np.float32)
    state = held["state_dict"]
    expected = {
        "transposed": numbers.reshape(3, 4).T,
        "part": numbers[2:5],
        "parameter": numbers.astype(np.float64),
        "bfloat16": numbers.astype(jnp.bfloat16),
        "float16": numbers.astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "running_var": np.ones(2, np.float32),
    }
    for key, value in expected.items():
        np.testing.assert_array_equal(state[key], value)
        assert state[key].dtype == value.dtype
    assert (held["epoch"], state["num_batches_tracked"]) == (3, 0)
    assert isinstance(held["args"], Placeholder)


@pytest.mark.parametrize("name", ["torch_new.pth", "torch_old.pth"])
def test_damaged_files_of_torch_save(name, tmp_path):
    content = (FIXTURES / name).read_bytes()
    for length in (len(content) - 1, len(content) // 2, 300):
        (tmp_path / "a.pth").write_bytes(content[:length])
        refused(lambda: read_state_dict(tmp_path / "a.pth"), "a.pth", "damaged")
    for place in range(60, len(content) - 40, 97):  # a flipped byte: read, or refused in one line
        (tmp_path / "a.pth").write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with contextlib.suppress(InteropError):
            read_state_dict(tmp_path / "a.pth")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(PLAIN, st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_pickles_are_read_as_pickle_reads_them(held, protocol):
    held = {"a": held, "b": [held, held], "c": (held, "d", 3, 4), "e": bytearray(b"f")}
    if protocol < 5:  # bytes are a call before protocol 3, sets before 4 and byte arrays before 5
        del held["e"]
    assert read(io.BytesIO(pickle.dumps(held, protocol)), build, Storages().get) == held


def torch_file(path, held, magic=False):
    """Write an object in one of the formats of torch.save."""
    if magic:
        parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, held, [])]
        path.write_bytes(b"".join(parts))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(held, 2))


class Call:
    """A pickle of this calls a function with arguments."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("magic", [False, True])
def test_nothing_in_a_file_is_run(magic, tmp_path):
    for bad in (Tripwire(tmp_path / "ran"), Call(eval, ("open('ran', 'w')",)), Call(getattr, (Path, "touch"))):
        torch_file(tmp_path / "a.pth", {"a": bad, "b": Call(bad.__reduce__()[0], ()), "c": 1}, magic)
        held = read_state_dict(tmp_path / "a.pth")
        assert (type(held["a"]), type(held["b"]), held["c"]) == (Placeholder, Placeholder, 1)
    torch_file(tmp_path / "a.pth", Tripwire(tmp_path / "ran"), magic)
    refused(
        lambda: read_state_dict(tmp_path / "a.pth"), "a.pth: contains a ", "not a state dict; save model.state_dict()"
    )
    torch_file(tmp_path / "a.pth", [1, 2], magic)
    refused(lambda: read_state_dict(tmp_path / "a.pth"), "contains a list, not a state dict")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_tensor_stays_inside_its_storage():
    storage = Storage("<f4", 4)
    storage.content = np.arange(4, dtype=np.float32).tobytes()
    np.testing.assert_array_equal(Tensor(storage, 1, (2,), (2,)).array(), [1, 3])
    for view in ((0, (5,), (1,)), (1, (2,), (3,)), (-1, (2,), (1,)), (3, (2,), (-1,)), (5, (9,), (0,)), (0, (2,), ())):
        with pytest.raises(ValueError, match=r"storage|zip"):
            Tensor(storage, *view).array()
    with pytest.raises(Unsupported, match=r"a tensor of shape \(99,\) is expanded; save it with \.contiguous\(\)"):
        Tensor(storage, 0, (99,), (0,)).array()


class Named:
    """A pickle of this has the name of a class of torch."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return self.name

    def __call__(self):
        """A pickler wants it."""


class Persistent(pickle._Pickler):
    """Write storages as torch does: ("storage", class, key, device, count, view)."""

    def persistent_id(self, obj):
        return ("storage", *obj[1:]) if isinstance(obj, tuple) and obj[:1] == ("a storage",) else None

    def save_global(self, obj, name=None):
        self.write(f"c{obj.name.replace(':', chr(10))}\n".encode())  # pyright: ignore[reportAttributeAccessIssue]


def legacy_file(path, *storages, content=b""):
    """Write a legacy file of tensors with these (class, key, count, view)."""
    rebuild = Named("torch._utils:_rebuild_tensor_v2")
    stream = io.BytesIO()
    held = {
        f"t{i}": Call(rebuild, (("a storage", Named(f"torch:{name}"), key, "cpu", count, view), 0, (1,), (1,)))
        for i, (name, key, count, view) in enumerate(storages)
    }
    for part in (0x1950A86A20F9469CFC6C, 1001, {}, held, sorted({key for _, key, _, _ in storages})):
        Persistent(stream, 2).dump(part)
    path.write_bytes(stream.getvalue() + content)


ONE = struct.pack("<q", 1) + struct.pack("<f", 2.5)


@pytest.mark.parametrize(
    ("storages", "says"),
    [
        ([("QInt8Storage", "0", 1, None)], "a.pth: a tensor has the type QInt8Storage, which is not supported"),
        ([("FloatStorage", "0", 1, ("1", 0, 1))], "a.pth: a storage is a view of another one; save"),
        ([("FloatStorage", "0", 1, None), ("IntStorage", "0", 1, None)], "damaged"),
        ([("FloatStorage", "0", 1, None), ("FloatStorage", "0", 2, None)], "damaged"),
    ],
)
def test_storages_that_are_not_read(storages, says, tmp_path):
    legacy_file(tmp_path / "a.pth", *storages, content=ONE)
    refused(lambda: read_state_dict(tmp_path / "a.pth"), says)


def test_the_first_bytes_tell_the_format_of_torch_save(tmp_path):
    """A ZIP archive in the numbers of an old file does not."""
    legacy_file(tmp_path / "a.pth", ("FloatStorage", "0", 1, None), content=ONE + zipped("b/data.pkl"))
    np.testing.assert_array_equal(read_state_dict(tmp_path / "a.pth")["t0"], np.array([2.5], np.float32))


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth"])
def test_a_file_that_the_system_does_not_read_is_not_called_damaged(kind, tmp_path, monkeypatch):
    path = tmp_path / "a"
    {
        "safetensors": lambda: safetensors.numpy.save_file({"a": np.arange(3)}, path),
        "npz": lambda: (np.savez(tmp_path / "b.npz", a=np.arange(3)), (tmp_path / "b.npz").rename(path)),
        "pth": lambda: path.write_bytes((FIXTURES / "torch_old.pth").read_bytes()),
    }[kind]()
    errors = [OSError(5, "Input/output error"), MemoryError()]

    def fail(*args, **options):
        raise errors[0]

    place = {"safetensors": "safetensors.deserialize", "npz": "numpy.load"}.get(kind, f"{load_torch.__module__}.read")
    monkeypatch.setattr(place, fail)
    refused(lambda: read_state_dict(path), "a cannot be read: Input/output error")
    del errors[0]
    with pytest.raises(MemoryError):
        read_state_dict(path)


def test_with_torch_both_read_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    write_state_dict(tmp_path / "a.pth", STATE)
    held, ours = torch.load(tmp_path / "a.pth", weights_only=True), read_state_dict(tmp_path / "a.pth")
    assert all(np.array_equal(held[key].numpy(), ours[key]) for key in STATE)


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


def test_an_older_folder_without_preprocessing(tmp_path):
    save_weights(tmp_path / "w", Weights("resnet20", {}, VARIABLES, {"mean": [0.5], "std": [1.0]}, ("a", "b")))
    weights = load_weights(tmp_path / "w")
    assert (weights.preprocess, weights.class_names) == ({"mean": [0.5], "std": [1.0]}, ("a", "b"))
    about = json.loads((tmp_path / "w/weights.json").read_text())
    del about["preprocess"], about["class_names"], about["entries_sha256"]
    (tmp_path / "w/weights.json").write_text(json.dumps(about))
    weights = load_weights(tmp_path / "w")
    assert (weights.preprocess, weights.class_names) == ({}, ())


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


SMALL = Weights("resnet20", {}, {"params": {"a": np.ones(2, np.float32)}}, {"mean": [0.5], "std": [0.25]}, ("a", "b"))


def test_a_changed_entry_of_weights_json_is_refused(tmp_path):
    """A digit of the mean would change every prediction."""
    save_weights(tmp_path / "w", SMALL)
    about = tmp_path / "w/weights.json"
    text = about.read_text()
    for old, new in (("0.5", "0.4"), ("resnet20", "resnet32"), ('"b"', '"c"'), ("{}", '{"width": 2}')):
        about.write_text(text.replace(old, new))
        refused(lambda: load_weights(tmp_path / "w"), "weights.json is damaged (its SHA-256 differs", "convert again")
    about.write_text(json.dumps(json.loads(text), sort_keys=True))  # the same content
    assert load_weights(tmp_path / "w").preprocess == SMALL.preprocess


@pytest.mark.parametrize(
    "change",
    [
        *({"arch": 3}, {"options": []}, {"sha256": None}, {"class_names": "ab"}, {"class_names": [1]}),
        *({"preprocess": value} for value in ([], None, "x")),
        *({"preprocess": {"mean": value}} for value in (0.5, ["a"], [[1]], [float("nan")], [True])),
        *({"preprocess": {"std": value}} for value in ([0], [-1.0])),
        *({"preprocess": {"image_size": value}} for value in ("big", 32, [32], [0, 2], [2.5, 2])),
    ],
)
def test_entries_of_weights_json_of_another_type(change, tmp_path):
    """Also in a folder of an older version, which has no digest of its entries."""
    save_weights(tmp_path / "w", SMALL)
    about = json.loads((tmp_path / "w/weights.json").read_text())
    del about["entries_sha256"]
    (tmp_path / "w/weights.json").write_text(json.dumps(about | change))
    refused(lambda: load_weights(tmp_path / "w"), "weights.json is damaged (", "convert again")
