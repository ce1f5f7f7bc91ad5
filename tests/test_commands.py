"""convert, export, grow and summary, as a person types them."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import made
import numpy as np
import pytest
import safetensors.numpy
from jax import export
from jax import numpy as jnp

from resnet_jax import create_model, layer_summary, load, multiply_adds, to_torch
from resnet_jax import fit as train
from resnet_jax.cli import command
from resnet_jax.cli.main import COMMANDS
from resnet_jax.data import builders
from resnet_jax.interop import load_weights

PROG = "python -m resnet_jax"


@pytest.fixture(autouse=True)
def _made(monkeypatch, tmp_path):
    made.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory) -> Path:
    """A run of one epoch; not to be changed."""
    folder = tmp_path_factory.mktemp("commands")
    builders.prepare(made.make_spec(), folder / "data", made.make_splits())
    with pytest.MonkeyPatch.context() as patch:
        made.install(patch)
        train(made.make_config(folder / "data", folder / "run", epochs=1, compile_cache=False))
    return folder / "run"


def says(argv: str, capsys) -> str:
    """What a command that succeeds prints."""
    assert command(argv.split(), PROG) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@cache
def random_state() -> dict[str, np.ndarray]:
    """A state dict of resnet20, for 10 classes."""
    model, rng = create_model("resnet20"), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return to_torch(jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes), "resnet20")


def write(name: str) -> dict[str, np.ndarray]:
    """A file of them, and its tensors."""
    safetensors.numpy.save_file(random_state(), name)
    return random_state()


def test_convert_there_and_back(capsys):
    state = write("a.safetensors")
    assert says("convert a.safetensors --arch resnet20 --out w", capsys).startswith("resnet20, 269,722 parameters: w;")
    assert (
        says("convert w --to-torch --out b.safetensors", capsys) == f"resnet20, {len(state)} tensors: b.safetensors\n"
    )
    back = safetensors.numpy.load_file("b.safetensors")
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)


def test_convert_to_another_head_and_one_channel(capsys):
    write("a.safetensors")
    out = says("convert a.safetensors --arch resnet20 --out w --head reset --num-classes 3 --in-channels 1", capsys)
    assert "the head is new and untrained (3 classes): train it before you use its predictions\n" in out
    params = load_weights("w").variables["params"]
    assert params["head"]["kernel"].shape == (64, 3)
    assert params["stem"]["conv"]["kernel"].shape == (3, 3, 1, 16)


def test_convert_a_run(run_dir, capsys):
    says(f"convert {run_dir} --to-torch --out a.safetensors", capsys)
    held = safetensors.numpy.load_file("a.safetensors")
    np.testing.assert_array_equal(held["net.last.2.weight"].T, load(run_dir).variables["params"]["head"]["kernel"])


def test_convert_reads_a_checkpoint_as_people_have_it(capsys):
    """Each thing that was understood is a line."""
    state = {f"module.{key}": value.astype(np.float16) for key, value in random_state().items()}
    safetensors.numpy.save_file(state, "a.ckpt")
    out = says("convert a.ckpt --arch resnet20 --out w", capsys).splitlines()
    assert out[0] == "weights read: prefix module. stripped"
    assert out[1] == "97 of 97 tensors are float16: widened to float32"
    assert out[2].startswith("resnet20, 269,722 parameters: w;")
    assert out[3] == (
        "load('w') predicts from images in [0, 1] (--mean and --std are unknown); "
        "class names: unknown (--class-names FILE)"
    )
    kernel = load_weights("w").variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(kernel.T, random_state()["fc.weight"].astype(np.float16))


def test_convert_keeps_what_load_needs(capsys):
    write("a.safetensors")
    Path("names").write_text("".join(f"name {number}\n" for number in range(10)))
    flags = "--class-names names --mean 0.5 0.25 0.5 --std 0.2 --image-size 24"
    out = says(f"convert a.safetensors --arch resnet20 --out w {flags}", capsys)
    assert "mean [0.5, 0.25, 0.5] and deviation [0.2]; class names: name 0 to name 9" in out
    predictor = load("w")
    assert (predictor.class_names[3], predictor.image_shape) == ("name 3", (24, 24, 3))
    image = np.full((1, 24, 24, 3), 51, np.uint8)
    seen = predictor.preprocess.evaluate(jnp.asarray(image))
    np.testing.assert_allclose(seen[0, 0, 0], [-1.5, -0.25, -1.5], rtol=1e-5)
    assert predictor(image).shape == (1, 10)
    assert says("convert w --out v --class-names names", capsys).endswith("class names: name 0 to name 9\n")
    assert load("v").preprocess == predictor.preprocess


def test_a_run_is_converted_and_a_converted_folder_exported(run_dir, capsys):
    says(f"convert {run_dir} --out w", capsys)
    says("export w", capsys)
    program = export.deserialize(bytearray(Path("w/predict.jax_export").read_bytes()))
    images = made.make_splits().test.images[:5]
    np.testing.assert_allclose(program.call(images), load(run_dir)(images), rtol=0, atol=1e-5)


RUN_ALONE = """
import sys, numpy, jax
from pathlib import Path
program = jax.export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
for name in sys.argv[2:]:
    numpy.save(name + ".out.npy", program.call(numpy.load(name)))
assert not [name for name in sys.modules if name.split(".")[0] in ("resnet_jax", "flax")]
"""


def test_an_exported_run_runs_without_the_models_code(run_dir, capsys):
    """For any number of images, with the predictor's probabilities; for three kinds of devices, in one file."""
    out = says(f"export {run_dir} --out tiny.jax_export", capsys)
    assert "cpu, cuda, tpu" in out
    assert "(N, 8, 8, 1)" in out
    program = export.deserialize(bytearray(Path("tiny.jax_export").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    called = set(re.findall(r"custom_call @(\w+)", program.mlir_module()))
    assert called <= {"shape_assertion"}  # jax's own, of the number of images; no kernel of ours
    images = made.make_splits().test.images
    for count in (1, 5):
        np.save(f"{count}.npy", images[:count])
    script = Path("alone.py")
    script.write_text("import jax.export\n" + RUN_ALONE)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run([sys.executable, script, "tiny.jax_export", "1.npy", "5.npy"], check=True, env=environment)
    expected = load(run_dir)(images[:5])
    for count in (1, 5):
        np.testing.assert_allclose(np.load(f"{count}.npy.out.npy"), expected[:count], rtol=0, atol=1e-5)


def as_json(argv: str, capsys) -> dict:
    """What a command that succeeds prints with --json; other lines go to stderr."""
    assert command([*argv.split(), "--json"], PROG) == 0
    return json.loads(capsys.readouterr().out)


def test_export_and_grow_as_json(run_dir, capsys):
    """For scripts: what was made, and how it is used."""
    held = as_json(f"export {run_dir} --out a.jax_export", capsys)
    assert held.pop("bytes") == Path(held["out"]).stat().st_size
    names, platforms = list(load(run_dir).class_names), ["cpu", "cuda", "tpu"]
    expected = {"platforms": platforms, "step": 3, "image_shape": [8, 8, 1], "class_names": names}
    assert held == {"out": "a.jax_export"} | expected
    held = as_json(f"grow {run_dir} --stage 2 --epochs 4 --out grown", capsys)
    rates = {"learning_rate": pytest.approx(0.05), "learning_rate_of_old_run": pytest.approx(0.05)}
    assert held == {"out": "grown", "arch": "tiny-1-2", "step": 3, "epochs_done": 1, "epochs": 4} | rates
    assert load(held["out"]).arch.name == held["arch"]


@pytest.mark.thorough
def test_grow_and_go_on(run_dir, tmp_path, capsys):
    """The line that it prints is how to go on; what it made converts and exports as any run does."""
    out = says(f"grow {run_dir} --stage 2 --blocks 2 --out grown", capsys)
    assert out == ("tiny-1-3, at step 3, 1 of 1 epochs done: grown; train.py --resume --run-dir grown --epochs MORE\n")
    assert command(["--resume", "--run-dir", "grown", "--epochs", "2"], PROG) == 0
    assert "tiny-1-3 on cpu" in capsys.readouterr().out
    predictor = load("grown")
    assert says("convert grown --to-torch --out a.safetensors", capsys).startswith(f"{predictor.arch.name}, ")
    held = safetensors.numpy.load_file("a.safetensors")
    assert np.array_equal(
        held["net.b3.2.conv2.weight"].transpose(2, 3, 1, 0),
        predictor.variables["params"]["stage2"]["block3"]["conv2"]["kernel"],
    )
    says("export grown --out grown.jax_export", capsys)
    program = export.deserialize(bytearray(Path("grown.jax_export").read_bytes()))
    images = made.make_splits().test.images
    np.testing.assert_allclose(program.call(images), predictor(images), rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_a_finished_cosine_run_grows_with_more_epochs(run_dir, tmp_path, capsys):
    """Its rate has come to 0: it is laid out anew, and the jump is told."""
    train(made.make_config(run_dir.parent / "data", tmp_path / "run", epochs=1, schedule="cosine"))
    capsys.readouterr()
    assert command(["grow", "run", "--stage", "1", "--out", "a"], PROG) == 2
    assert "its cosine schedule ends there at a learning rate of 0; add --epochs MORE" in capsys.readouterr().err
    out = says("grow run --stage 1 --out b --epochs 3", capsys).splitlines()
    assert out[0] == "tiny-2-1, at step 3, 1 of 3 epochs done: b; train.py --resume --run-dir b"
    rate = 0.05 * (1 + np.cos(np.pi * (3 - 2) / (9 - 2))) / 2
    assert out[1] == f"its learning rate continues at {rate:.3g}; in run it would have been 0"
    assert not Path("a").exists()
    assert command(["--resume", "--run-dir", "b"], PROG) == 0
    rates = [row["learning_rate"] for row in made.read_rows(Path("b"))]
    cosine = (1 + np.cos(np.pi * (9 - 1 - 2) / (9 - 2))) / 2  # 9 steps, 2 of them warm-up: 1.5, rounded
    assert rates[-1] == pytest.approx(0.05 * cosine, rel=1e-5)


def test_summary(capsys):
    out = says("summary resnet18 --image-size 96 --in-channels 1 --num-classes 10", capsys)
    assert "11,178,378" in out
    model = create_model("resnet18", 10)
    assert str(layer_summary(model, (1, 96, 96, 1))) in out
    assert out.splitlines()[-1].endswith(f" {multiply_adds(model, (1, 96, 96, 1)):,}")


def test_the_first_word_says_what_to_do(capsys):
    assert command(["trian"], PROG) == 2
    assert capsys.readouterr().err == (
        "python -m resnet_jax: unknown command 'trian': did you mean train? "
        f"choose one of {', '.join(sorted(COMMANDS))}\n"
    )
    for argv in (["train", "--epochs", "-1"], ["--epochs", "-1"]):
        assert command(argv, PROG) == 2
        assert "--epochs -1 is out of range" in capsys.readouterr().err


BAD = {
    "convert": "SOURCE is needed: ",
    "convert a.safetensors": "--out is needed: ",
    "convert a.safetensors --out w": "--arch NAME is needed",
    "convert a.safetensors --arch resnet21 --out w": "unknown architecture 'resnet21': did you mean resnet",
    "convert a.safetensors --arch resnet32 --out w": "not the weights of resnet32: 60 missing: layer1.3.bn1.bias, ",
    "convert a.safetensors --arch resnet20 --out full": "--out full exists and is not an empty folder",
    "convert a.safetensors --arch resnet20 --out full/file": "full/file exists and is not an empty folder",
    "convert a.safetensors --arch resnet20 --out w --num-classes 3": "--head reset",
    "convert a.safetensors --arch resnet20 --out w --in-channels 4": "in_channels 4",
    "convert a.safetensors --arch resnet20 --out w --widht 2": "did you mean --width?",
    "convert full --arch resnet20 --out w": "full: there are no weights in this folder",
    "convert none --to-torch --out a.pth": "none: there is no such file or folder",
    "convert --to-torch --no_allow_nan none --out a.pth": "none: there is no such file or folder",
    "convert --out a.pth none --to-torch": "none: there is no such file or folder",
    "convert full --to-torch --out a.safetensors": "--out a.safetensors exists; give another file",
    "summary resnet18-2-2-3": "resnet18 has 4 stages; give that many numbers of blocks",
    "summary resnet18-2-2-3-0": "a stage has 1 to 999 blocks",
    "summary resnet18-2-2-3-1000": "a stage has 1 to 999 blocks",
    "summary resnet18-02-2-2-2": "unknown architecture",
    "summary resnet19-2-2-3-2": "unknown architecture 'resnet19-2-2-3-2': did you mean resnet",
    "convert none.safetensors --arch resnet20 --out w": "there is no such file",
    "convert bad.safetensors --arch resnet20 --out w": "bad.safetensors is a text file ('nonsense')",
    "convert nan.safetensors --arch resnet20 --out w": "NaN or infinite numbers in bn1.bias; allow_nan=True (--al",
    "convert full --to-torch --out a.pth": "full: there are no weights in this folder",
    "convert a.safetensors --to-torch --out a.pth": "a.safetensors is a file; --to-torch takes a run's folder",
    "convert a.safetensors --arch resnet20 --out w --entry ema": "--entry ema: the file has no entries; leave it out",
    "convert a.safetensors --arch resnet20 --out w --mean 0.5": "--mean and --std belong together",
    "convert a.safetensors --arch resnet20 --out w --mean 0.5 --std 0": "--std above 0",
    "convert a.safetensors --arch resnet20 --out w --mean 1 2 --std 1 1": "--mean has 2 numbers; give 1, or 3",
    "convert a.safetensors --arch resnet20 --out w --class-names none": "--class-names none cannot be read",
    "convert a.safetensors --arch resnet20 --out w --class-names full/file": "has 0 names; the weights have 10",
    "convert full --to-torch --out a.pth --head reset --num-classes 3": "--head, --num-classes: not with --to-torch",
    "convert a.safetensors --arch resnet20 --out link": "--out link: link is a link to nowhere, which does not exist",
    "convert a.safetensors --arch resnet20 --out=": "--out '' is empty; give a path",
    "convert a.safetensors --arch resnet20 --out w --class-names=": "--class-names '' is empty; give a path",
    "convert negative.safetensors --arch resnet20 --out w": "negative variances in bn1.running_var",
    "convert a.safetensors --arch resnet20 --out w --image-size 2": "image size 2x2 is too small",
    "convert a.safetensors --arch resnet20 --out w --image-size -1": "--image-size -1 must be 1 to 4096, or 0",
    "convert a.safetensors --arch resnet20 --out w --image-size 5000": "--image-size 5000 must be 1 to 4096, or 0",
    "convert full --to-torch --out none/a.safetensors": "none is not a writable folder",
    "convert . --arch resnet20 --out w": ". has several files of weights",
    "export full --out none/a": "none is not a writable folder",
    "export full --out full": "--out full is a folder; give the path of a file",
    "export full": "no run is kept there",
    "export": "RUN_DIR is needed: the run's folder, or a folder that convert made.",
    "grow full --stage 1 --out w": "full: no run is kept there",
    "grow full --stage 1": "--out",
    "grow full --stage x --out w": "--stage x: give a whole number",
    "grow full --stage 1 --out full": "--out full exists; give another folder",
    "grow full --stage 1 --out full/deeper": "--out full/deeper is inside full, which does not change",
    "grow full --stage 1 --out w/../full/deeper": "--out w/../full/deeper is inside full, which does not change",
    "grow full --stage 1 --out w --blocks -1": "--blocks -1 must be at least 1",
    "grow full --stage 1 --out w --postion 1": "did you mean --position?",
    "summary resnet5": "did you mean resnet5",
    "summary resnet18 --image-size 9": "image size 9x9 is too small",
    "summary resnet18 --image-size 0": "--image-size 0 must be at least 1",
    "summary resnet18 --stem smal": "'smal'",
}


@pytest.mark.parametrize("argv", BAD)
def test_what_cannot_be_is_one_line_and_writes_nothing(argv, capsys):
    state = write("a.safetensors")
    safetensors.numpy.save_file({**state, "bn1.bias": np.full(16, np.nan, np.float32)}, "nan.safetensors")
    negative = state["bn1.running_var"] - 9
    safetensors.numpy.save_file({**state, "bn1.running_var": negative}, "negative.safetensors")
    Path("link").symlink_to("nowhere")
    Path("bad.safetensors").write_bytes(b"nonsense")
    Path("full").mkdir()
    Path("full/file").touch()
    before = made.snapshot(Path())
    assert command(argv.split(), PROG) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m resnet_jax")
    assert BAD[argv].lower() in line.lower()
    assert made.snapshot(Path()) == before
