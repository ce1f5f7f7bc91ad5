"""Read a pickle as data, without unpickling: nothing that the file names is imported or called.

A pickle is a program for a small stack machine. `pickletools.genops` reads its instructions, and `read` carries them
out for containers, text and numbers. Where the program would call a function, `build` of the caller decides.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple


class Global(NamedTuple):
    """A name of the file: a function or class."""

    module: str
    name: str


class Placeholder(NamedTuple):
    """An object that is not read: what a function or class of the file would have made."""

    made_by: Any


class Mark:
    """The place in the stack where a container's elements begin."""


Build = Callable[[Any, tuple[Any, ...]], Any]  # a Global or something else, and arguments -> an object
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
HEADERS = ("PROTO", "FRAME", "STOP")
LITERALS = ("INT", "LONG", "FLOAT", "STRING", "UNICODE", "BYTE", "BIN", "SHORT_BIN")  # first parts of names
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")


class Machine:
    """The stack and the memory. build: makes an object of a call. persistent: makes one of a persistent id."""

    def __init__(self, build: Build, persistent: Callable[[Any], Any]):
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.build, self.persistent = build, persistent

    def since_mark(self) -> list[Any]:
        """Remove and return what is above the last mark."""
        place = max(i for i, value in enumerate(self.stack) if isinstance(value, Mark))
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction. Raises ValueError, IndexError, KeyError or TypeError for an invalid one."""
        stack = self.stack
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in PUTS:
            self.memory[int(argument)] = stack[-1]
        elif name in GETS:
            stack.append(self.memory[int(argument)])
        elif name == "MEMOIZE":
            self.memory[len(self.memory)] = stack[-1]
        elif name == "MARK":
            stack.append(Mark())
        elif name == "GLOBAL":
            stack.append(Global(*argument.split(" ", 1)))
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP_MARK":
            self.since_mark()
        elif name == "PERSID":
            stack.append(self.persistent(argument))
        elif name not in HEADERS and not self.containers(name) and not self.calls(name, argument):
            self.literal(name, argument)

    def literal(self, name: str, argument: Any) -> None:
        """Push a number, a text or bytes."""
        if not name.startswith(LITERALS):
            raise ValueError(f"the pickle has the instruction {name}")
        self.stack.append(argument)

    def containers(self, name: str) -> bool:
        """Carry out an instruction of a list, tuple, dict or set; False for another one."""
        stack = self.stack
        if name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            values = self.since_mark()
            pairs = zip(values[::2], values[1::2], strict=True) if name == "DICT" else ()
            kinds = {"TUPLE": tuple, "LIST": list, "FROZENSET": frozenset}
            stack.append(dict(pairs) if name == "DICT" else kinds[name](values))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [stack.pop()] if name == "APPEND" else self.since_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(values)
            elif isinstance(stack[-1], set):
                stack[-1].update(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.since_mark()
            if isinstance(stack[-1], dict):
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
        else:
            return False
        return True

    def calls(self, name: str, argument: Any) -> bool:
        """Carry out an instruction that would call something; False for another one."""
        stack = self.stack
        if name in ("REDUCE", "NEWOBJ"):
            arguments, made_by = stack.pop(), stack.pop()
            stack.append(self.build(made_by, arguments))
        elif name == "NEWOBJ_EX":
            _, arguments, made_by = stack.pop(), stack.pop(), stack.pop()
            stack.append(self.build(made_by, arguments))
        elif name == "OBJ":
            made_by, *arguments = self.since_mark()
            stack.append(self.build(made_by, tuple(arguments)))
        elif name == "INST":
            stack.append(self.build(Global(*argument.split(" ", 1)), tuple(self.since_mark())))
        elif name == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(Global(str(module), str(name)))
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        elif name == "BUILD":
            stack.pop()  # the state of an object: attributes, which tensors and dicts do not need
        else:
            return False
        return True


def read(file: IO[bytes], build: Build, persistent: Callable[[Any], Any]) -> Any:
    """Return the object of the pickle that begins at the file's position. Raises ValueError if it is damaged."""
    machine = Machine(build, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        (held,) = machine.stack
    except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"damaged pickle: {error!r}") from None
    return held
