"""Counts what the step of a compiled program does, from the text of its optimised HLO module.

A program of `training.steps` is a loop over steps, so that "the step" is the body of the largest loop that the entry
computation runs, or the entry itself if there is none.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

# Bits of an element; types that are not arrays (token, opaque) have none.
_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_SHAPE = re.compile(rf"\b({'|'.join(_BITS)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\d\-]*)\((.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply|branch_computations|called_computations)=\{?([^}\s]+)")
# Instructions that move no data.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
# Instructions that run those of other computations.
_CALLS = {"while", "call", "conditional", "async-start"}
_ALL_REDUCES = {"all-reduce", "all-reduce-start"}
_HOST = {"infeed", "outfeed", "send", "recv"}
_PRODUCTS = {"convolution", "dot"}
# Calls of NVIDIA's libraries, by the beginning of their target; these are products.
_LIBRARIES = ("__cudnn$conv", "__cublas$", "__cudnn$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation: its name, the type of its result, its operation, and the rest of its line."""

    name: str
    type: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        depth, end = 1, len(self.rest)
        for place, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if not depth:
                end = place
                break
        return re.findall(r"%([\w.\-]+)", self.rest[:end])

    @property
    def called(self) -> list[str]:
        """The names of the computations that it calls."""
        return [name.strip("%") for group in _CALLED.findall(self.rest) for name in group.split(",") if name]

    @property
    def bytes(self) -> int:
        """Size of its result, without padding."""
        return size_of(self.type)

    @property
    def largest(self) -> int:
        """The number of elements of its result's largest array."""
        return max((math.prod(shape) for _, shape in _shapes(self.type)), default=0)


Computations = dict[str, list[Instruction]]


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """What a device does in one step.

    Attributes:
      kernels: fusions, library calls and others that run one after the other, except operations on single numbers.
      transposes: changes of the order of axes, also inside fusions.
      copies: copies of arrays, also inside fusions, most of which change the layout; without a TPU's asynchronous ones,
        which fetch what the next kernels read.
      all_reduces: sums over devices.
      host_transfers: transfers to and from the host.
      loops: loops within the step.
      bytes: read and written by the kernels, each operand and each result once; of an array from which a kernel only
        gathers rows, these.
      products: convolutions and matrix products by the types of their operands and the precision asked for, e.g.
        {"f32": 60, "f32 highest": 2}.
    """

    kernels: int
    transposes: int
    copies: int
    all_reduces: int
    host_transfers: int
    loops: int
    bytes: int
    products: dict[str, int]


def count_step(text: str) -> StepCounts:
    """Counts the step of a compiled program, given `compiled.as_text()`."""
    computations, entry = parse(text)
    step = computations[_step_of(computations, entry)]
    running = list(_running(step, computations))
    inside = [instruction for name in _reached(step, computations) for instruction in computations[name]]
    everything = [*step, *inside]
    kernels = [one for one, _ in running if _is_kernel(one)]
    products = collections.Counter(_product(one, computations) for one in everything if _is_product(one))
    return StepCounts(
        kernels=len(kernels),
        transposes=sum(one.operation == "transpose" and _moves(one) for one in everything),
        copies=sum(one.operation == "copy" and one.largest > 1 for one in everything),
        all_reduces=sum(one.operation in _ALL_REDUCES for one in everything),
        host_transfers=sum(one.operation in _HOST for one in everything),
        loops=sum(one.operation == "while" for one in everything),
        bytes=sum(_traffic(one, scope, computations) for one, scope in running),
        products=dict(products.most_common()),
    )


def parse(text: str) -> tuple[Computations, str]:
    """Returns the computations of a module by name, and the name of the entry computation.

    Raises:
      ValueError: there is no entry computation, so that this is no HLO module.
    """
    computations: Computations = {}
    entry = current = None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif line and line[0] not in " }" and line.rstrip().endswith("{") and (header := _HEADER.match(line)):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(Instruction(*found.groups()))
    if entry is None:
        raise ValueError("the text contains no entry computation")
    return computations, entry


def size_of(type_text: str) -> int:
    """Returns the bytes of an HLO type, e.g. 6,291,456 for "f32[512,3072]{1,0}"; the sum for a tuple."""
    return sum(math.prod(shape) * _BITS[kind] // 8 for kind, shape in _shapes(type_text))


def _shapes(type_text: str) -> list[tuple[str, list[int]]]:
    return [(kind, [int(size) for size in sizes.split(",") if size]) for kind, sizes in _SHAPE.findall(type_text)]


def _step_of(computations: Computations, entry: str) -> str:
    loops = [one for one in computations[entry] if one.operation == "while"]
    bodies = [body for one in loops for body in re.findall(r"\bbody=%?([\w.\-]+)", one.rest)]
    return max(bodies, key=lambda body: len(computations[body]), default=entry)


def _running(
    body: list[Instruction], computations: Computations
) -> Iterator[tuple[Instruction, dict[str, Instruction]]]:
    """Yields what runs as a kernel of its own, with the instructions of its computation by name; enters loops once."""
    scope = {one.name: one for one in body}
    for one in body:
        yield one, scope
        if one.operation in _CALLS:
            for name in one.called:
                yield from _running(computations.get(name, []), computations)


def _reached(body: list[Instruction], computations: Computations) -> list[str]:
    """Returns the names of all computations that the instructions call, each once."""
    seen: dict[str, None] = {}
    waiting = [name for one in body for name in one.called]
    while waiting:
        name = waiting.pop()
        if name in computations and name not in seen:
            seen[name] = None
            waiting += [inner for one in computations[name] for inner in one.called]
    return list(seen)


def _traffic(one: Instruction, scope: dict[str, Instruction], computations: Computations) -> int:
    """Returns the bytes that a kernel reads and writes."""
    if one.operation in _FREE | _CALLS or one.operation.endswith("-done"):
        return 0
    fused = computations.get(one.called[0], []) if one.operation == "fusion" and one.called else []
    parameters = {inner.rest.partition(")")[0]: inner for inner in fused if inner.operation == "parameter"}
    total = one.bytes
    for place, name in enumerate(one.operands):
        whole = scope[name].bytes if name in scope else 0
        parameter = parameters.get(str(place))
        total += whole if parameter is None else min(whole, _read(parameter, fused, whole))
    return total


def _read(parameter: Instruction, fused: list[Instruction], whole: int) -> int:
    """Returns the bytes that a fusion reads of a parameter: only the rows, if all it does is to gather or slice."""
    users = [one for one in fused if parameter.name in one.operands]
    total = 0
    for user in users:
        if user.operation in ("bitcast", "reshape"):
            total += _read(user, fused, whole)
        elif user.operation in ("gather", "dynamic-slice", "slice") and user.operands[0] == parameter.name:
            total += user.bytes
        else:
            return whole
    return total


def _is_kernel(one: Instruction) -> bool:
    return one.operation not in _FREE | _CALLS and not one.operation.endswith("-done") and one.largest > 1


def _moves(one: Instruction) -> bool:
    """Returns whether a transpose changes the order of axes longer than 1."""
    order = [int(axis) for axis in re.findall(r"\d+", one.rest.partition("dimensions={")[2].partition("}")[0])]
    sizes = _shapes(one.type)[0][1]
    long = [axis for axis, size in zip(order, sizes, strict=True) if size > 1]
    return long != sorted(long)


def _is_product(one: Instruction) -> bool:
    return one.operation in _PRODUCTS or (
        one.operation == "custom-call" and any(f'custom_call_target="{name}' in one.rest for name in _LIBRARIES)
    )


def _product(one: Instruction, computations: Computations) -> str:
    """Describes a product: the type of its operands, and the precision that was asked for if it is not the default."""
    scope = next(({inner.name: inner for inner in body} for body in computations.values() if one in body), {})
    kinds = [_SHAPE.findall(scope[name].type)[0][0] for name in one.operands[:2] if name in scope]
    asked = re.search(r'operand_precision"?[=:][\[{]"?(\w+)', one.rest)
    level = asked[1].lower() if asked else "default"
    return " ".join([*dict.fromkeys(kinds), *([] if level == "default" else [level])])
