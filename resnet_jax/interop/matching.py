"""Find a network's tensors in a state dict or checkpoint: below entries and prefixes, under other codebases' names."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from resnet_jax.errors import InteropError, listed, unknown
from resnet_jax.interop.names import COUNTER, Shape, head_keys, stem_key
from resnet_jax.interop.renamings import HEAD, WRAPPERS, Naming, namings
from resnet_jax.models import Arch

Tensors = dict[str, Any]
Shapes = Mapping[str, Shape]
Report = Callable[[str], object]
DEPTH = 3  # of entries in a checkpoint
TOP = "."  # how --entry names the checkpoint itself


class Entry(NamedTuple):
    """The tensors that a checkpoint holds directly below a dotted path, without counters. wrapped: had WRAPPERS."""

    path: str
    tensors: Tensors
    wrapped: bool


class Match(NamedTuple):
    """Tensors of an entry that have the network's names behind a prefix. keys: our key -> the entry's key."""

    entry: Entry
    prefix: str
    naming: Naming
    keys: dict[str, str]
    same_shape: int

    @property
    def path(self) -> str:
        """What --entry calls it."""
        return ".".join(part for part in (self.entry.path, self.prefix.rstrip(".")) if part) or TOP

    @property
    def rest(self) -> list[str]:
        """The entry's other keys."""
        used = set(self.keys.values())
        return [key for key in self.entry.tensors if key not in used]


def find(
    content: Mapping[str, Any], arch: Arch, wanted: Shapes, *, entry: str, reset: bool, report: Report
) -> tuple[Match, Tensors]:
    """Return where a network's tensors are, and the tensors under our keys.

    Tensors that do not belong to the network are returned too, under their own key without the prefix. Two tensors for
    the same key raise InteropError.
    wanted: the shapes by key. The number of channels and classes is free. entry: a dotted path, needed if several
    entries fit. reset: leave the head out. Raises InteropError if no entry has tensors, or the choice is not clear.
    """
    body = {key: shape for key, shape in wanted.items() if key not in head_keys(arch)}
    entry = entry.rstrip(".") or entry
    match = choose(matches(content, arch, body), body, arch, entry)
    head = find_head(match, arch, wanted)
    rest = [key for key in match.rest if key not in head.values()]
    if reset:
        dropped = [key for key in match.rest if below_head(match.prefix, key) or key in own_head(match, arch)]
        head, rest = {}, [key for key in rest if key not in dropped]
        if dropped:
            report(f"the head of the weights is left out: {listed(dropped)}")
    if entry == match.path and match.prefix:
        outside = [key for key in rest if not key.startswith(match.prefix)]
        rest = [key for key in rest if key.startswith(match.prefix)]
        if outside:
            report(f"--entry {entry}: {len(outside)} other tensors are left out: {listed(outside)}")
    names = {**match.keys, **head}
    for key in rest:
        if (other := names.setdefault(key.removeprefix(match.prefix), key)) != key:
            raise taken(match, key, other)
    return match, {name: match.entry.tensors[key] for name, key in names.items()}


def taken(match: Match, key: str, other: str) -> InteropError:
    """Return the error for two tensors of which only one can be the network's."""
    text = f"{' and '.join(sorted([key, other]))} are tensors for the same part of the network"
    if key.startswith(match.prefix) and other.startswith(match.prefix):
        return InteropError(f"{text}; save the weights with only one of them")
    return InteropError(
        f"{text}; convert --entry {match.path} takes the one behind the prefix {match.prefix} "
        f'(in Python entry="{match.path}"), or save the weights with only one of them'
    )


def entries(content: Any, path: str = "", depth: int = 0) -> Iterator[Entry]:
    """Yield the entries of a checkpoint that have tensors."""
    held = {str(key): value for key, value in content.items()}
    tensors = {key: value for key, value in held.items() if hasattr(value, "dtype") and not is_counter(key, value)}
    plain = {WRAPPERS.sub("", key): value for key, value in tensors.items()}
    if plain and len(plain) == len(tensors):
        yield Entry(path, plain, plain.keys() != tensors.keys())
    elif tensors:
        yield Entry(path, tensors, False)
    for key, value in held.items():
        if isinstance(value, Mapping) and depth < DEPTH:
            yield from entries(value, f"{path}.{key}" if path else key, depth + 1)


def is_counter(key: str, tensor: Any) -> bool:
    """Tell whether a tensor counts steps: a batch norm's, or a single integer or boolean, such as an average's."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return key.endswith(COUNTER) or (dtype.startswith(("int", "uint", "bool")) and math.prod(tensor.shape) == 1)


def matches(content: Mapping[str, Any], arch: Arch, body: Shapes) -> list[Match]:
    """Return where the checkpoint has tensors with a network's names; where no name fits, the whole of each entry."""
    found = list(entries(content))
    if not found:
        keys = listed(map(str, content)) or "it is empty"
        raise InteropError(f"not a state dict: no tensor in it ({keys}); give model.state_dict()")
    matched = [match for entry in found for match in matches_in(entry, arch, body)]
    return matched or [Match(entry, "", namings(arch)[0], {}, 0) for entry in found]


def matches_in(entry: Entry, arch: Arch, body: Shapes) -> Iterator[Match]:
    """Yield the matches in an entry, one for each prefix. The first block's kernel shows the prefix."""
    anchor = next(key for key in body if key.startswith(("layer1.0.", "net.b2.0.")) and key.endswith("conv1.weight"))
    best: dict[str, Match] = {}
    for naming in namings(arch):
        theirs = {ours: naming.key(ours) for ours in body}
        end = theirs[anchor]
        for prefix in {key.removesuffix(end) for key in entry.tensors if key.endswith(end)}:
            keys = {ours: prefix + key for ours, key in theirs.items() if prefix + key in entry.tensors}
            same = sum(fits(ours, entry.tensors[key], body, arch) for ours, key in keys.items())
            if prefix and not prefix.endswith(".") and same < len(body):
                continue  # not a module: part of another name, such as the layer of layer1
            match = Match(entry, prefix, naming, keys, same)
            if prefix not in best or rank(match) > rank(best[prefix]):
                best[prefix] = match
    yield from best.values()


def rank(match: Match) -> tuple[int, int]:
    """Order matches: by the number of tensors that fit, then by the number of names."""
    return match.same_shape, len(match.keys)


def fits(ours: str, tensor: Any, body: Shapes, arch: Arch) -> bool:
    """Tell whether a tensor has a key's shape. The stem may have any number of image channels."""
    shape, wanted = tuple(tensor.shape), body[ours]
    if ours == stem_key(arch) and len(shape) == 4:
        wanted = (wanted[0], shape[1], *wanted[2:])
    return shape == wanted


def choose(found: list[Match], body: Shapes, arch: Arch, entry: str) -> Match:
    """Return the match that fits the network, or the closest one. Raises InteropError if several fit."""
    if entry:
        named = [match for match in found if entry in (match.path, match.entry.path)]
        if not named:
            paths = {match.path for match in found} - {TOP}
            raise InteropError(
                unknown("entry", entry, paths) if paths else f"--entry {entry}: the file has no entries; leave it out"
            )
        found = named
    whole = [match for match in found if match.same_shape == len(body)]
    exact = [match for match in whole if not inside(match)]
    if len(exact or whole) > 1:
        paths = ", ".join(sorted(match.path for match in exact or whole))
        raise InteropError(
            f'several entries fit {arch.name}: {paths}; choose one with convert --entry NAME (in Python entry="NAME")'
        )
    return max(exact or whole or found, key=lambda match: (*rank(match), len(match.entry.tensors)))


def inside(match: Match) -> list[str]:
    """Return the other keys behind the match's prefix that are not the head's: of a deeper network, perhaps."""
    return [key for key in match.rest if key.startswith(match.prefix) and not below_head(match.prefix, key)]


def below_head(prefix: str, key: str) -> bool:
    """Tell whether a key is a head's: behind the prefix, or behind a part of it, such as the head beside a backbone."""
    module = key.rpartition(".")[0]
    return any(module.startswith(part) and HEAD.fullmatch(module[len(part) :]) for part in parents(prefix))


def parents(prefix: str) -> list[str]:
    """Return a prefix, and what remains of it without its last modules: a.b. -> a.b., a., and the empty one."""
    modules = [module for module in prefix.split(".") if module]
    shorter = ["".join(f"{module}." for module in modules[:count]) for count in reversed(range(len(modules)))]
    return list(dict.fromkeys([prefix, *shorter, ""]))


def own_head(match: Match, arch: Arch) -> tuple[str, str]:
    """Return the keys that the head has in the match's naming: of its kernel and bias."""
    kernel, bias = (match.prefix + match.naming.key(key) for key in head_keys(arch))
    return kernel, bias


def find_head(match: Match, arch: Arch, wanted: Shapes) -> dict[str, str]:
    """Return the head's keys: our key -> the entry's. Empty if the head is missing or has several layers."""
    kernel, bias = head_keys(arch)
    inner = own_head(match, arch)
    own = inner[0].removesuffix(".weight")
    modules = {key.rpartition(".")[0] for key in match.rest if below_head(match.prefix, key) or key in inner}
    features = wanted[kernel][1]
    linear = [
        module
        for module in modules
        if (weight := match.entry.tensors.get(f"{module}.weight")) is not None
        and (module == own or tuple(weight.shape)[1:] == (features,))
    ]
    if len(linear) != 1 or (modules != set(linear) and own not in linear):
        return {}
    pair = {kernel: f"{linear[0]}.weight", bias: f"{linear[0]}.bias"}
    return {ours: key for ours, key in pair.items() if key in match.entry.tensors}


def report_match(match: Match, report: Report) -> None:
    """Report the entry, the prefix and the names that were understood; nothing if all are the network's own."""
    parts = [f"entry {match.entry.path}"] if match.entry.path else []
    if match.prefix:
        parts.append(f"prefix {match.prefix} stripped")
    if match.entry.wrapped:
        parts.append("names of torch.compile's and FSDP's wrappers stripped")
    if match.naming.rules and any(ours != key for ours, key in match.keys.items()):
        parts.append(f"names as in {match.naming.codebase}")
    if parts:
        report(f"weights read: {', '.join(parts)}")
