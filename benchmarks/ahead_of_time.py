"""Compile the train step for 8 TPU v5e chips and for 8 H100s without having them, and analyse the compiled programs.

    python benchmarks/ahead_of_time.py [tpu|gpu|all] [--program PATTERN...] [--movers N] [--json FILE]
    python benchmarks/ahead_of_time.py tpu --program "resnet18-bfloat16-1-*" --movers 20

prints a table and writes the same facts as JSON. --movers lists the operations that move the most bytes. A program is
ARCH-DTYPE-STEPS-FORM, and PATTERN is a shell pattern for it. STEPS is the number of train steps per call. FORM is
`sync` (batch statistics over all chips), `local` (per chip) or `plain` (benchmarks/plain_flax.py, per chip).
A program takes minutes to compile, in a process of its own.

It needs no accelerator. It needs the compilers of the extra `accelerators`: libtpu, and the CUDA plugin without CUDA
itself. `make accelerators` installs them and runs this file.
The program is the train step of `fit`, for Fashion-MNIST resized to 96x96. It is compiled but never run, so no figure
here is a time on a chip. The convolution algorithms are not tuned.
"""

import argparse
import fnmatch
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
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
from resnet_jax.training.parallel import AXIS, Device, on_devices
from resnet_jax.training.state import create_state
from resnet_jax.training.step import Dataset, make_train_steps

ROOT = Path(__file__).resolve().parent.parent
ARCHS = ("resnet18", "resnext18")
IMAGE_SIZE, NUM_IMAGES, IMAGES_A_CHIP, NUM_CHIPS = 96, 60_000, 128, 8
STEPS_AN_EPOCH = NUM_IMAGES // (IMAGES_A_CHIP * NUM_CHIPS)
MOVERS = 100  # the number of operations whose bytes are kept
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
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another process may compile at the same time
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "XLA_FLAGS": "",
    },
    "gpu": {"XLA_FLAGS": "--xla_gpu_autotune_level=0"},  # autotuning needs the chip
}
PLATFORMS = tuple(ENVIRONMENT)
Facts = dict[str, Any]  # the facts of one program, as JSON values; see facts_of


class Program(NamedTuple):
    """One form of the train step. steps: train steps per call. form: "sync", "local" or "plain"; see above."""

    arch: str
    dtype: str
    steps: int
    form: str

    @property
    def name(self) -> str:
        """ARCH-DTYPE-STEPS-FORM."""
        return "-".join(map(str, self))


def programs(patterns: Sequence[str] = ("*",)) -> list[Program]:
    """Return the programs to compile for each kind of chip whose name fits one of the shell patterns."""
    forms = [(dtype, steps, "sync") for dtype in ("float32", "bfloat16") for steps in (1, SCAN)]
    ours = [Program(arch, *form) for arch in ARCHS for form in [*forms, ("bfloat16", 1, "local")]]
    plain = [Program("resnet18", "bfloat16", steps, "plain") for steps in (1, SCAN)]
    return [one for one in ours + plain if any(fnmatch.fnmatchcase(one.name, pattern) for pattern in patterns)]


# --- Compilation, in one process per program


def chips(platform: str) -> list[Device]:
    """Return the descriptions of eight chips. The machine does not need to have them."""
    if platform == "tpu":
        return list(topologies.get_topology_desc("v5e:2x4", "tpu").devices)
    one_host = {"target_config": H100, "topology": "1x1x8"}  # partitions x hosts x chips
    return list(topologies.get_topology_desc("h100", "cuda", **one_host).devices)


def step_of(program: Program, devices: Sequence[Device]) -> tuple[Any, tuple]:
    """Return the step on these devices, and its arguments as shapes; the first is the state."""
    return plain_step(program, devices) if program.form == "plain" else our_step(program, devices)


def plain_step(program: Program, devices: Sequence[Device]) -> tuple[Any, tuple]:
    """Return the step of plain Flax. It does no data work: all steps take the same images, of the network's size."""
    import plain_flax  # beside this file; only the subprocesses import it

    dtype, shape = jnp.dtype(program.dtype), jax.ShapeDtypeStruct

    def steps(state, images, labels):
        def step(state, _):
            return plain_flax.train_step(state, images, labels, dtype=dtype, axis_name=AXIS)

        return step(state, None) if program.steps == 1 else jax.lax.scan(step, state, None, program.steps)

    state = jax.eval_shape(partial(plain_flax.init, IMAGE_SIZE, dtype))
    batch = (len(devices), IMAGES_A_CHIP)
    images, labels = shape((*batch, IMAGE_SIZE, IMAGE_SIZE, 1), np.float32), shape(batch, np.int32)
    return on_devices(steps, devices, in_axes=(None, 0, 0), donate=(0,)), (state, images, labels)


def our_step(program: Program, devices: Sequence[Device]) -> tuple[Any, tuple]:
    """Return the step that `fit` makes."""
    config = OptimConfig()
    optimizer = make_optimizer(config, make_schedule(config, 10, STEPS_AN_EPOCH))
    axis_name = AXIS if program.form == "sync" else None
    model = create_model(program.arch, dtype=jnp.dtype(program.dtype), axis_name=axis_name)
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
    found = list(kernels(module, program.steps))
    return {
        "platform": platform,
        "device": devices[0].device_kind,
        **program._asdict(),
        "compile_seconds": round(seconds, 1),
        "flop": cost.get("flops") or flop_as_written(program),
        "flop_as_written": flop_as_written(program),
        "bytes_moved": cost.get("bytes accessed"),
        "bytes_counted": sum(kernel.bytes for kernel in found),
        "hbm_bytes": sum(kernel.hbm_bytes for kernel in found),
        "movers": movers(found),
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
MOVES = {"copy-start": 0, "slice-start": 1}  # the place of the moved array among the arrays of the result


class Kernel(NamedTuple):
    """What runs on the chip. read, written: types of arrays and bytes. times: how often it runs per step."""

    instruction: Instruction
    read: list[tuple[str, int]]
    written: list[tuple[str, int]]
    times: float

    @property
    def bytes(self) -> float:
        """The bytes that it reads and writes per step, each operand and result once."""
        return self.times * sum(amount for _, amount in self.read + self.written)

    @property
    def hbm_bytes(self) -> float:
        """Those in the chip's main memory. S(1) is the memory inside a TPU's core, which a GPU does not have."""
        return self.times * sum(amount for type_, amount in self.read + self.written if "S(1)" not in type_)


def kernels(module: Module, steps: int) -> Iterator[Kernel]:
    """Yield the kernels of a program."""
    ahead = [(module.entry, 1 / steps)]
    while ahead:
        name, times = ahead.pop()
        computation = module.computations[name]
        for i in computation.values():
            if i.opcode == "while":  # the loop of the scan: its body runs once per step
                ahead += [(body, 1.0) for body in i.called]
            elif i.opcode in MOVES:
                moved = arrays(i.type)[MOVES[i.opcode]]
                yield Kernel(i, [(computation[i.operands[0]].type, size(moved))], [(moved, size(moved))], times)
            elif i.opcode not in NO_TRAFFIC and not i.opcode.endswith("-done") and "ConcatBitcast" not in i.attributes:
                read = [(computation[o].type, bytes_read(module, computation, i, n)) for n, o in enumerate(i.operands)]
                yield Kernel(i, read, [(one, size(one)) for one in arrays(i.type)], times)


def movers(found: list[Kernel]) -> list[Facts]:
    """Return the largest movers of bytes: bytes per step, what JAX calls the operation, and "operands -> result"."""
    rows = []
    for kernel in sorted(found, key=lambda kernel: -kernel.bytes)[:MOVERS]:
        i = kernel.instruction
        said = re.search(r'op_name="([^"]*)"', i.attributes)
        what = re.sub(r"^.*jvp\(|\)+", "", said[1]) if said else ""
        read, written = (", ".join(plain_type(type_) for type_, _ in side) for side in (kernel.read, kernel.written))
        rows.append({"bytes": kernel.bytes, "opcode": i.opcode, "what": what, "arrays": f"{read} -> {written}"})
    return rows


def arrays(type_: str) -> list[str]:
    """Return the type of each array of a tuple, with its layout."""
    return [found[0] for found in re.finditer(SHAPE.pattern + r"(\{[^{}]*\})?", type_)]


def plain_type(type_: str) -> str:
    """Return a type without layouts: bf16[128,48,48,64]."""
    return re.sub(r"\{[^{}]*\}", "", type_)


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


def compile_all(platforms: Sequence[str] = PLATFORMS, patterns: Sequence[str] = ("*",)) -> list[Facts]:
    """Return the facts of all programs that fit the patterns, compiled in subprocesses.

    Raises RuntimeError with the end of its stderr if a subprocess fails.
    """
    facts = []
    for platform, program in itertools.product(platforms, programs(patterns)):
        command = [sys.executable, __file__, platform, "--program", program.name, "--here"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"} | ENVIRONMENT[platform]
        print(f"compiling {program.name} for {platform}", file=sys.stderr, flush=True)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        facts += json.loads(done.stdout)
    return facts


def table(facts: list[Facts]) -> str:
    """Return a Markdown table with one row per program."""
    head = "chips | network | activations | steps per call | form | MFLOP | MB by the compiler | MB counted"
    lines = [f"{head} | of them in HBM | MB temporary | all-reduces per step", " | ".join(["---"] * 11)]
    for f in facts:
        cells = [
            f"{NUM_CHIPS} x {f['device']}",
            f["arch"],
            f["dtype"],
            f["steps"],
            f["form"],
            *(per_image(f[key]) for key in ("flop", "bytes_moved", "bytes_counted", "hbm_bytes", "temporary_bytes")),
            len(f["all_reduces"]),
        ]
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines)


def per_image(amount: float | None) -> str:
    """Return a number of bytes or FLOP per chip as millions per image; a dash if the compiler has none."""
    return "-" if amount is None else f"{amount / IMAGES_A_CHIP / 1e6:,.2f}"


def movers_table(fact: Facts, rows: int) -> str:
    """Return the largest movers of bytes of a program as a Markdown table."""
    lines = ["kB per image | operation | arrays", "--- | --- | ---"]
    for mover in fact["movers"][:rows]:
        cells = (f"{mover['bytes'] / IMAGES_A_CHIP / 1e3:,.0f}", f"{mover['opcode']}: {mover['what']}", mover["arrays"])
        lines.append(" | ".join(cells))
    name = Program(*(fact[field] for field in Program._fields)).name
    return "\n".join([f"\n{name} for {fact['device']}:\n", *(f"| {line} |" for line in lines)])


NOTES = f"""
FLOP, bytes and temporary memory are per image, at {IMAGES_A_CHIP} images per chip.
The compiler for TPUs has a cost analysis. The compiler for H100 has none: its FLOP are those of the program before
optimisation. Counted bytes are what each kernel of the compiled program reads and writes, without padding, caches and
scratch memory. Both include reads and writes of the memory inside a TPU's core, which holds most activations.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", nargs="?", choices=(*PLATFORMS, "all"), default="all")
    parser.add_argument("--program", nargs="+", default=["*"], metavar="PATTERN", help="programs to compile")
    parser.add_argument("--movers", type=int, default=0, metavar="N", help="list the N largest movers of bytes")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "ahead_of_time.json", help="file to write")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the subprocesses get this flag
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if not programs(arguments.program):
        sys.exit(f"--program {' '.join(arguments.program)} fits none of {', '.join(one.name for one in programs())}")
    if arguments.here:
        devices = chips(arguments.platform)
        print(json.dumps([facts_of(program, arguments.platform, devices) for program in programs(arguments.program)]))
        return
    facts = compile_all(PLATFORMS if arguments.platform == "all" else (arguments.platform,), arguments.program)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
    print(table(facts))
    for fact in facts if arguments.movers else []:
        print(movers_table(fact, arguments.movers))
    print(NOTES)
    print(f"compiled in {sum(f['compile_seconds'] for f in facts):.0f} s;", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu", "jax-cuda12-plugin")))


if __name__ == "__main__":
    main()
