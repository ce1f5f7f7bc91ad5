"""Compile the train step for 8 TPU v5e chips and for 8 H100s without having them, and analyse the compiled programs.

    python benchmarks/ahead_of_time.py [tpu|gpu|all] [--arch NAME...] [--json FILE]

prints a table and writes the same facts as JSON. It needs no accelerator. It needs the compilers of the extra
`accelerators`: libtpu, and the CUDA plugin without CUDA itself. `make accelerators` installs them and runs this file.
The program is the train step of `fit`, for Fashion-MNIST resized to 96x96. It is compiled but never run, so no figure
here is a time on a chip. The convolution algorithms are not tuned.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental import topologies

from resnet_jax.data.augment import Preprocess
from resnet_jax.models import create_model
from resnet_jax.runs import OptimConfig
from resnet_jax.runs.build import make_optimizer, make_schedule
from resnet_jax.training.parallel import AXIS, Device
from resnet_jax.training.state import create_state
from resnet_jax.training.step import Dataset, make_train_steps

ROOT = Path(__file__).resolve().parent.parent
ARCHS = ("resnet18", "resnext18")
IMAGE_SIZE, NUM_IMAGES, IMAGES_A_CHIP, NUM_CHIPS = 96, 60_000, 128, 8
STEPS_AN_EPOCH = NUM_IMAGES // (IMAGES_A_CHIP * NUM_CHIPS)
SCAN = 8  # steps per call of the programs that scan

# XLA's description of an H100, as the driver of a machine with one reports it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Set before the process imports jax. The backend stays the CPU; only the compilers of the chips are used.
ENVIRONMENT = {
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "XLA_FLAGS": "",
    },
    "gpu": {"XLA_FLAGS": "--xla_gpu_autotune_level=0"},  # autotuning needs the chip
}
Facts = dict[str, Any]  # the facts of one program, as JSON values; see facts_of


class Program(NamedTuple):
    """One form of the train step. steps: train steps per call. sync: batch statistics over all chips."""

    arch: str
    dtype: str
    steps: int
    sync: bool


def programs(archs: tuple[str, ...]) -> list[Program]:
    """Return the programs to compile for each kind of chip."""
    forms = [(dtype, steps, True) for dtype in ("float32", "bfloat16") for steps in (1, SCAN)]
    return [Program(arch, *form) for arch in archs for form in [*forms, ("bfloat16", 1, False)]]


# --- Compilation, in one process per kind of chip and network


def chips(platform: str) -> list[Device]:
    """Return the descriptions of eight chips. The machine does not need to have them."""
    if platform == "tpu":
        return list(topologies.get_topology_desc("v5e:2x4", "tpu").devices)
    one_host = {"target_config": H100, "topology": "1x1x8"}  # partitions x hosts x chips
    return list(topologies.get_topology_desc("h100", "cuda", **one_host).devices)


def step_of(program: Program, devices: Sequence[Device]) -> tuple[Any, tuple]:
    """Return the step that `fit` makes on these devices, and its arguments as shapes; the first is the state."""
    config = OptimConfig()
    optimizer = make_optimizer(config, make_schedule(config, 10, STEPS_AN_EPOCH))
    model = create_model(program.arch, dtype=jnp.dtype(program.dtype), axis_name=AXIS if program.sync else None)
    state = jax.eval_shape(lambda: create_state(model, optimizer, (IMAGE_SIZE, IMAGE_SIZE, 1)))
    shape = jax.ShapeDtypeStruct
    data = Dataset(shape((NUM_IMAGES, 28 * 28), np.uint8), shape((NUM_IMAGES,), np.int32), (28, 28, 1))
    rows = shape((len(devices), STEPS_AN_EPOCH, IMAGES_A_CHIP), np.int32)
    step = make_train_steps(Preprocess((IMAGE_SIZE, IMAGE_SIZE)), devices)(program.steps)
    return step, (state, data, rows, shape((), np.int32))


def flop_as_written(program: Program) -> float:
    """Return the FLOP per step and chip before optimisation, of the program that accelerators compile."""
    step, arguments = step_of(program._replace(steps=1), jax.devices("cpu")[:1])
    cost = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",)).cost_analysis()
    assert isinstance(cost, dict)
    return cost["flops"]


def facts_of(program: Program, platform: str, devices: Sequence[Device]) -> Facts:
    """Compile one program and return its facts. FLOP and bytes are per step and chip; memory is per call.

    all_reduces: for each one, whether it is inside the scan's loop, and its elements by type. convolutions: the number
    for each "type of x, type of kernel". to_host: the operations that move data to the host.
    """
    step, arguments = step_of(program, devices)
    lowered = step.lower(*arguments)
    began = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - began
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}  # XLA has no cost analysis for GPUs
    assert text is not None
    assert memory is not None
    module = parse(text)
    return {
        "platform": platform,
        "device": devices[0].device_kind,
        **program._asdict(),
        "compile_seconds": round(seconds, 1),
        "flop": cost.get("flops") or flop_as_written(program),
        "flop_as_written": flop_as_written(program),
        "bytes_moved": cost.get("bytes accessed") or bytes_moved(module, program.steps),
        "counted_by": "compiler" if cost else "us",
        "temporary_bytes": memory.temp_size_in_bytes,
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[0])),
        "alias_bytes": memory.alias_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "all_reduces": all_reduces(module),
        "convolutions": Counter(convolutions(module)),
        "types": sorted(set(re.findall(r"\b([a-z]+\d+)\[", text))),
        "to_host": sorted(to_host(module)),
        "host_bytes": memory.host_temp_size_in_bytes
        + memory.host_argument_size_in_bytes
        + memory.host_output_size_in_bytes,
    }


# --- Analysis of a compiled program's text


class Instruction(NamedTuple):
    """A line of a computation: %name = type opcode(operands), attributes. attributes: the text after the opcode."""

    name: str
    type: str
    opcode: str
    operands: list[str]
    attributes: str

    @property
    def called(self) -> list[str]:
        """The names of the computations that it calls."""
        return re.findall(r"\b(?:calls|body|to_apply)=%?([\w.-]+)", self.attributes)


class Module(NamedTuple):
    """computations: maps a name to its instructions by name, in order. entry: the computation that runs first."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


def parse(text: str) -> Module:
    """Parse a module in XLA's text form."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := INSTRUCTION.match(line):
            name, type_, opcode, rest = found.groups()
            current[name] = Instruction(name, type_, opcode, re.findall(r"%([\w.-]+)", rest.split(")")[0]), rest)
    return Module(computations, entry)


def shapes(type_: str) -> list[tuple[str, int]]:
    """Return the element type and the number of elements of each array in a type."""
    return [(name, int(np.prod([int(d) for d in dims.split(",") if d]))) for name, dims in SHAPE.findall(type_)]


def size(type_: str) -> int:
    """Return the bytes of all arrays in a type."""
    bits = {name: 8 if name == "pred" else int(re.findall(r"\d+", name)[0]) for name, _ in shapes(type_)}
    return sum(count * bits[name] // 8 for name, count in shapes(type_))


def in_loops(module: Module) -> set[str]:
    """Return the names of all computations inside the bodies of loops."""
    instructions = [i for computation in module.computations.values() for i in computation.values()]
    reached: set[str] = set()
    ahead = [name for i in instructions if i.opcode == "while" for name in i.called]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += [called for i in module.computations[name].values() for called in i.called]
    return reached


def all_reduces(module: Module) -> list[Facts]:
    """Return in_loop and the elements by type for each all-reduce."""
    loops = in_loops(module)
    found = []
    for name, computation in module.computations.items():
        for instruction in computation.values():
            if instruction.opcode in ("all-reduce", "all-reduce-start"):
                elements: Counter[str] = Counter()
                for type_, count in shapes(instruction.type):
                    elements[type_] += count
                found.append({"in_loop": name in loops, "elements": elements})
    return found


def convolutions(module: Module) -> Iterator[str]:
    """Yield "type of x, type of kernel" for each convolution, whether it is compiled to a library call or not."""
    for computation in module.computations.values():
        for i in computation.values():
            library = re.search(r'custom_call_target="__cu(dnn|blas)', i.attributes)
            if (library or i.opcode in ("convolution", "dot")) and 'conv_general_dilated"' in i.attributes:
                yield ", ".join(shapes(computation[operand].type)[0][0] for operand in i.operands[:2])


def to_host(module: Module) -> Iterator[str]:
    """Yield the opcode or target of each operation that communicates with the host or uses its memory."""
    for computation in module.computations.values():
        for i in computation.values():
            target = re.search(r'custom_call_target="([^"]*)"', i.attributes)
            if i.opcode in ("infeed", "outfeed", "send", "recv"):
                yield i.opcode
            elif target and re.search("callback|host", target[1], re.IGNORECASE):
                yield target[1]
            elif "S(5)" in i.type:  # XLA's memory space 5 is the host's memory
                yield f"{i.opcode} in host memory"


NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all"}


def bytes_moved(module: Module, steps: int) -> float:
    """Return the bytes that the kernels read and write per step, counting each operand and result once."""
    total, ahead = 0.0, [(module.entry, 1 / steps)]
    while ahead:
        name, times = ahead.pop()
        computation = module.computations[name]
        for i in computation.values():
            if i.opcode == "while":  # the loop of the scan: its body runs once per step
                ahead += [(body, 1.0) for body in i.called]
            elif i.opcode not in NO_TRAFFIC and not i.opcode.endswith("-done"):
                read = sum(bytes_read(module, computation, i, n) for n in range(len(i.operands)))
                total += times * (size(i.type) + read)
    return total


def bytes_read(module: Module, computation: dict[str, Instruction], i: Instruction, n: int) -> int:
    """Return the bytes that an instruction reads of its n-th operand.

    If a fusion only slices or gathers the operand, only the slices count.
    """
    whole = size(computation[i.operands[n]].type)
    if i.opcode != "fusion":
        return whole
    inside = module.computations[i.called[0]].values()
    (parameter,) = (p.name for p in inside if p.opcode == "parameter" and p.attributes.startswith(f"{n})"))
    uses = [use for use in inside if parameter in use.operands]
    if all(use.opcode in ("slice", "dynamic-slice", "gather") and use.operands[0] == parameter for use in uses):
        return min(whole, sum(size(use.type) for use in uses))
    return whole


# --- The command


def compile_all(platforms: tuple[str, ...] = ("tpu", "gpu"), archs: tuple[str, ...] = ARCHS) -> list[Facts]:
    """Return the facts of all programs, compiled in subprocesses.

    Raises RuntimeError with the end of its stderr if a subprocess fails.
    """
    facts = []
    for platform in platforms:
        for arch in archs:
            command = [sys.executable, __file__, platform, "--arch", arch, "--here"]
            environment = os.environ | {"JAX_PLATFORMS": "cpu"} | ENVIRONMENT[platform]
            print(f"compiling {arch} for {platform}", file=sys.stderr, flush=True)
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
            facts += json.loads(done.stdout)
    return facts


def table(facts: list[Facts]) -> str:
    """Return a Markdown table with one row per program."""
    head = "chips | network | activations | steps per call | batch statistics | MFLOP | MB moved | MB temporary"
    lines = [f"{head} | all-reduces per step", " | ".join(["---"] * 9)]
    for f in facts:
        cells = [
            f"{NUM_CHIPS} x {f['device']}",
            f["arch"],
            f["dtype"],
            f["steps"],
            "over all chips" if f["sync"] else "per chip",
            *(f"{f[key] / IMAGES_A_CHIP / 1e6:,.2f}" for key in ("flop", "bytes_moved", "temporary_bytes")),
            len(f["all_reduces"]),
        ]
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines)


NOTES = f"""
FLOP, bytes moved and temporary memory are per image, at {IMAGES_A_CHIP} images per chip.
TPU: from the compiler's cost analysis. H100: the compiler has no cost analysis. FLOP are those of the program before
optimisation. Bytes are what each kernel of the compiled program reads and writes, without caches and scratch memory.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", nargs="?", choices=("tpu", "gpu", "all"), default="all")
    parser.add_argument("--arch", nargs="+", default=list(ARCHS), help="networks to compile (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "ahead_of_time.json", help="file to write")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the subprocesses get this flag
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    archs = tuple(arguments.arch)
    if arguments.here:
        devices = chips(arguments.platform)
        print(json.dumps([facts_of(program, arguments.platform, devices) for program in programs(archs)]))
        return
    facts = compile_all(("tpu", "gpu") if arguments.platform == "all" else (arguments.platform,), archs)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
    print(table(facts))
    print(NOTES)
    print(f"compiled in {sum(f['compile_seconds'] for f in facts):.0f} s;", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu", "jax-cuda12-plugin")))


if __name__ == "__main__":
    main()
