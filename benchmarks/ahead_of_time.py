"""Compile the train step for 8 TPU v5e chips and 8 H100s that are not here, and read what their compilers made of it.

    python benchmarks/ahead_of_time.py [tpu|gpu|all] [--arch NAME...] [--json FILE]

prints a table and writes the same facts as JSON. It needs no accelerator, only the compilers of the extra
`accelerators` (`make accelerators` installs them and runs this): libtpu, and the CUDA plugin without CUDA itself.
What is compiled is the step that `fit` runs, for Fashion-MNIST resized to 96x96. Compiled, not run: no figure here is
a time on a chip, and convolution algorithms are not tuned.
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
from resnet_jax.training.config import OptimConfig
from resnet_jax.training.optim import make_optimizer, make_schedule
from resnet_jax.training.state import Device, create_state
from resnet_jax.training.step import AXIS, Dataset, make_train_steps

ROOT = Path(__file__).resolve().parent.parent
ARCHS = ("resnet18", "resnext18")
IMAGE_SIZE, NUM_IMAGES, IMAGES_A_CHIP, NUM_CHIPS = 96, 60_000, 128, 8
STEPS_AN_EPOCH = NUM_IMAGES // (IMAGES_A_CHIP * NUM_CHIPS)
SCAN = 8  # steps of a call that scans

# XLA's description of the chip; what the driver of a machine that has one says of it.
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
# What a process must be told before it imports jax. The backend stays the CPU: only the compilers are asked.
ENVIRONMENT = {
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "XLA_FLAGS": "",
    },
    "gpu": {"XLA_FLAGS": "--xla_gpu_autotune_level=0"},  # tuning runs candidates on the chip
}
Facts = dict[str, Any]  # of one program, as JSON has them; see facts_of


class Program(NamedTuple):
    """One form of the train step. steps: in a call; sync: batch statistics over all chips."""

    arch: str
    dtype: str
    steps: int
    sync: bool


def programs(archs: tuple[str, ...]) -> list[Program]:
    """What is compiled for each kind of chip."""
    forms = [(dtype, steps, True) for dtype in ("float32", "bfloat16") for steps in (1, SCAN)]
    return [Program(arch, *form) for arch in archs for form in [*forms, ("bfloat16", 1, False)]]


# --- Compiling, in a process for each kind of chip


def chips(platform: str) -> list[Device]:
    """Eight chips of a kind that this machine does not have."""
    if platform == "tpu":
        return list(topologies.get_topology_desc("v5e:2x4", "tpu").devices)
    one_host = {"target_config": H100, "topology": "1x1x8"}  # partitions x hosts x chips
    return list(topologies.get_topology_desc("h100", "cuda", **one_host).devices)


def step_of(program: Program, devices: Sequence[Device]) -> tuple[Any, tuple]:
    """The step that `fit` would make on these devices, and the shapes of its arguments; the first is the state."""
    config = OptimConfig()
    optimizer = make_optimizer(config, make_schedule(config, 10, STEPS_AN_EPOCH))
    model = create_model(program.arch, dtype=jnp.dtype(program.dtype), axis_name=AXIS if program.sync else None)
    state = jax.eval_shape(lambda: create_state(model, optimizer, 0, (IMAGE_SIZE, IMAGE_SIZE, 1)))
    shape = jax.ShapeDtypeStruct
    data = Dataset(shape((NUM_IMAGES, 28, 28, 1), np.uint8), shape((NUM_IMAGES,), np.int32))
    rows = shape((len(devices), STEPS_AN_EPOCH, IMAGES_A_CHIP), np.int32)
    step = make_train_steps(model, optimizer, Preprocess(IMAGE_SIZE), 0, devices)(program.steps)
    return step, (state, data, rows, shape((), np.int32))


def flop_as_written(program: Program) -> float:
    """FLOP of a step and chip before optimisation: one device's share, in the form that accelerators get."""
    step, arguments = step_of(program._replace(steps=1), jax.devices("cpu")[:1])
    cost = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",)).cost_analysis()
    assert isinstance(cost, dict)
    return cost["flops"]


def facts_of(program: Program, platform: str, devices: Sequence[Device]) -> Facts:
    """Compile one program and say what it is. FLOP and bytes are those of one step and chip, memory that of a call.

    all_reduces: of each, whether it stands in the scan's loop and its elements by type. convolutions: how many there
    are of each "type of x, type of kernel". to_host: what moves data to the host.
    """
    step, arguments = step_of(program, devices)
    lowered = step.lower(*arguments)
    began = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - began
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}  # XLA gives none for GPUs
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


# --- Reading a compiled program's text


class Instruction(NamedTuple):
    """A line of a computation: %name = type opcode(operands), attributes. attributes has all after the opcode."""

    name: str
    type: str
    opcode: str
    operands: list[str]
    attributes: str

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        return re.findall(r"\b(?:calls|body|to_apply)=%?([\w.-]+)", self.attributes)


class Module(NamedTuple):
    """computations: name -> its instructions by name, in order; entry: the name of the first to run."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


def parse(text: str) -> Module:
    """The computations of a module in XLA's text form."""
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
    """Element type and number of elements of each array in a type."""
    return [(name, int(np.prod([int(d) for d in dims.split(",") if d]))) for name, dims in SHAPE.findall(type_)]


def size(type_: str) -> int:
    """Bytes of all arrays in a type."""
    bits = {name: 8 if name == "pred" else int(re.findall(r"\d+", name)[0]) for name, _ in shapes(type_)}
    return sum(count * bits[name] // 8 for name, count in shapes(type_))


def in_loops(module: Module) -> set[str]:
    """The computations that a loop's body is made of."""
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
    """Each all-reduce: in_loop, and its elements by type."""
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
    """Of each convolution of the network, in whatever form it is compiled, "type of x, type of kernel"."""
    for computation in module.computations.values():
        for i in computation.values():
            library = re.search(r'custom_call_target="__cu(dnn|blas)', i.attributes)
            if (library or i.opcode in ("convolution", "dot")) and 'conv_general_dilated"' in i.attributes:
                yield ", ".join(shapes(computation[operand].type)[0][0] for operand in i.operands[:2])


def to_host(module: Module) -> Iterator[str]:
    """The opcode or target of everything that talks to the host, or puts an array into its memory."""
    for computation in module.computations.values():
        for i in computation.values():
            target = re.search(r'custom_call_target="([^"]*)"', i.attributes)
            if i.opcode in ("infeed", "outfeed", "send", "recv"):
                yield i.opcode
            elif target and re.search("callback|host", target[1], re.IGNORECASE):
                yield target[1]
            elif "S(5)" in i.type:  # XLA's number for the host's memory
                yield f"{i.opcode} in host memory"


NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all"}


def bytes_moved(module: Module, steps: int) -> float:
    """Bytes a step that the kernels of a program read and write, each operand and result once."""
    total, ahead = 0.0, [(module.entry, 1 / steps)]
    while ahead:
        name, times = ahead.pop()
        computation = module.computations[name]
        for i in computation.values():
            if i.opcode == "while":  # the scan's: its body runs once a step
                ahead += [(body, 1.0) for body in i.called]
            elif i.opcode not in NO_TRAFFIC and not i.opcode.endswith("-done"):
                read = sum(bytes_read(module, computation, i, n) for n in range(len(i.operands)))
                total += times * (size(i.type) + read)
    return total


def bytes_read(module: Module, computation: dict[str, Instruction], i: Instruction, n: int) -> int:
    """Bytes of its n-th operand that an instruction reads: of one that a fusion only slices or gathers, the slices."""
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
    """The facts of every program, each kind of chip in a process of its own. RuntimeError with its last words."""
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
    """Markdown: a row a program."""
    head = "chips | network | activations | steps a call | batch statistics | MFLOP | MB moved | MB temporary"
    lines = [f"{head} | all-reduces a step", " | ".join(["---"] * 9)]
    for f in facts:
        cells = [
            f"{NUM_CHIPS} x {f['device']}",
            f["arch"],
            f["dtype"],
            f["steps"],
            "of all chips" if f["sync"] else "of each chip",
            *(f"{f[key] / IMAGES_A_CHIP / 1e6:,.2f}" for key in ("flop", "bytes_moved", "temporary_bytes")),
            len(f["all_reduces"]),
        ]
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines)


NOTES = f"""
FLOP, bytes moved and temporary memory: of one image and chip, at {IMAGES_A_CHIP} images a chip.
TPU: the compiler's own cost analysis. H100: it gives none there, so FLOP are those of the program as written, and bytes
are what each kernel of the compiled program reads and writes (its caches and scratch memory left out).
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", nargs="?", choices=("tpu", "gpu", "all"), default="all")
    parser.add_argument("--arch", nargs="+", default=list(ARCHS), help="networks to compile (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "ahead_of_time.json", help="file to write")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the child's: compile in this process
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
