"""Reads a compiled program (optimised HLO text): what a device sends, and what memory it touches.

XLA's own cost analysis counts the body of a loop once; here every computation counts as often as it
runs: loops by their trip counts, nested ones by the product, of branches the dearest. Bytes are one
device's.
"""

import dataclasses
import functools
import math
import re

import numpy as np

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
  "ragged-all-to-all",
  "collective-broadcast",
)
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
# What costs no traffic of its own: names, tuples, and what is counted inside or at its start.
# fmt: off
_FREE = frozenset((
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
  "after-all", "iota", "partition-id", "replica-id", "opt-barrier", "async-start", "async-update",
  "add-dependency", "domain",
))
# fmt: on


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Of one device, in one run of a program.

  Attributes:
    sent: kind of collective -> bytes that it sends, by ring algorithms.
    far: of those, bytes that it sends to other nodes.
    counts: kind of collective -> how many run.
    memory: bytes read from and written to the device's main memory, each fused operation reading
      its inputs and writing its outputs once.
    notes: what had to be guessed.
  """

  sent: dict[str, float] = dataclasses.field(default_factory=dict)
  far: float = 0.0
  counts: dict[str, float] = dataclasses.field(default_factory=dict)
  memory: float = 0.0
  notes: frozenset[str] = frozenset()

  @property
  def total_sent(self) -> float:
    """Bytes sent, all kinds."""
    return sum(self.sent.values())

  def __add__(self, other: "Traffic") -> "Traffic":
    add = lambda a, b: {k: a.get(k, 0.0) + b.get(k, 0.0) for k in a | b}
    return Traffic(
      add(self.sent, other.sent),
      self.far + other.far,
      add(self.counts, other.counts),
      self.memory + other.memory,
      self.notes | other.notes,
    )

  def __mul__(self, times: float) -> "Traffic":
    scale = lambda a: {k: times * v for k, v in a.items()}
    far, memory = times * self.far, times * self.memory
    return Traffic(scale(self.sent), far, scale(self.counts), memory, self.notes)


def read_traffic(
  text: str, *, devices: int, node: int | None = None, loops: float = 1.0
) -> Traffic:
  """What one device sends and touches when the program runs once.

  A collective over n devices with b bytes on each sends, by the ring algorithm, (n - 1) b for an
  all-gather, (n - 1) / n b for a reduce-scatter or all-to-all, twice that for an all-reduce, and b
  for a permute. Where it spans m nodes, k = n / m devices of each share what leaves the node.

  Args:
    text: `compiled.as_text()`.
    devices: how many run the program.
    loops: how often loops run whose length the program does not say; noted.
    node: devices with numbers i .. i + node - 1 stand together; None: all do.

  Raises:
    ValueError: if the text holds no program.
  """
  computations, entry = parse(text)
  return _Reader(computations, devices, node or devices, loops).traffic(entry)


# --- text -> computations -------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `name = shape opcode(operands), attributes`."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  root: bool


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Computations by name, each its instructions by name, and the name of the one that is run."""
  computations, current, entry = {}, None, None
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
    if head:
      current = computations[head[2]] = {}
      entry = head[2] if head[1] else entry
    elif current is not None and (match := re.match(r"\s+(ROOT )?%([\w.\-]+) = (.*)", line)):
      shape, rest = _split(match[3])
      opcode, _, rest = rest.strip().partition("(")
      operands, attributes = _split("(" + rest)
      names = tuple(_NAME.findall(operands)) or (operands.strip("()"),)
      current[match[2]] = Instruction(match[2], shape, opcode, names, attributes, bool(match[1]))
  if entry is None:
    raise ValueError("This is no compiled program: give `compiled.as_text()`.")
  return computations, entry


def _split(text):
  """Cuts behind the first closed parenthesis, or at the first space where there is none."""
  if not text.startswith("("):
    first, _, rest = text.partition(" ")
    return first, rest
  depth = 0
  for i, character in enumerate(text):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      return text[: i + 1], text[i + 1 :]
  return text, ""


def shape_bytes(shape: str, *, main_memory: bool = False) -> float:
  """Bytes of a shape such as `bf16[8,128]{1,0}`, or of all parts of a tuple of them.

  Args:
    shape: as HLO writes it.
    main_memory: leave out parts that lie elsewhere, such as in a TPU's VMEM (`S(1)`).
  """
  total = 0.0
  for dtype, sizes, layout in _SHAPE.findall(shape):
    if main_memory and re.search(r"S\([1-9]", layout):
      continue
    bits = _BITS.get(dtype) or int((re.search(r"\d+", dtype) or [0])[0])
    total += bits / 8 * math.prod(int(n) for n in sizes.split(",") if n)
  return total


# --- computations -> traffic ----------------------------------------------------------------------
class _Reader:
  """Adds up computations, each read once."""

  def __init__(self, computations, devices, node, loops):
    self.computations, self.devices, self.node = computations, devices, node
    self.loops = loops
    self.traffic = functools.cache(self._traffic)

  def _traffic(self, name, fused=False):
    total = Traffic()
    body = self.computations[name]
    for instruction in body.values():
      total += self._one(instruction, body)
      if not fused:
        total += Traffic(memory=self._memory(instruction, body))
    return total

  def _one(self, at, body):
    """Collectives of an instruction, and everything of the computations that it runs."""
    called = lambda key: re.findall(rf"\b{key}=%?([\w.\-]+)", at.attributes)
    if at.opcode == "while":
      times = self._trips(at, body, called("condition")[0], called("body")[0])
      once = self.traffic(called("body")[0])
      if times is None:
        note = f"a loop of unknown length counts {self.loops:g} x"
        return once * self.loops + Traffic(notes=frozenset({note}))
      return once * times
    if at.opcode == "conditional":
      branches = called("(?:true|false)_computation")
      listed = re.search(r"branch_computations=\{([^}]*)\}", at.attributes)
      branches += _NAME.findall(listed[1]) if listed else []
      return max(map(self.traffic, branches), key=lambda t: t.total_sent + t.memory)
    if at.opcode == "call":
      return self.traffic(called("to_apply")[0])
    if at.opcode == "fusion":
      return self.traffic(called("calls")[0], True)
    if at.opcode == "async-start":
      return self.traffic(called("calls")[0])
    kind = at.opcode.removesuffix("-start")
    if kind == "all-reduce" and _scattered(at, body):
      kind = "reduce-scatter"
    return self._collective(kind, at, body) if kind in KINDS else Traffic()

  def _trips(self, at, outer, condition, body):
    """How often a loop runs: as the compiler noted it, or as it counts: start, step and bound.

    The step matters: loops that are unrolled twice count by two.
    """
    if known := re.search(r'"known_trip_count":\s*\{"n":\s*"(\d+)"', at.attributes):
      return int(known[1])
    condition, body = self.computations[condition], self.computations[body]
    bounds = [value for name in condition if (value := _constant(name, condition)) is not None]
    counters = [
      int(re.search(r"index=(\d+)", i.attributes)[1])
      for i in condition.values()
      if i.opcode == "get-tuple-element" and re.match(r"[su]32\[\]", i.shape)
    ]
    if len(bounds) != 1 or len(counters) != 1:
      return None
    element = lambda tuple_: tuple_.operands[counters[0]]
    root = next(i for i in body.values() if i.root)
    start = _constant(element(outer[at.operands[0]]), outer)
    step = self._step(body[element(root)], body) if root.opcode == "tuple" else None
    if start is None or not step:
      return None
    return max(-(-(bounds[0] - start) // step), 0)

  def _step(self, at, body):
    """What is added to a counter: by an addition, or by a fusion of one; None if it is not."""
    if at.opcode == "fusion":
      inner = self.computations[re.search(r"\bcalls=%?([\w.\-]+)", at.attributes)[1]]
      root = next(i for i in inner.values() if i.root)
      inside = [_constant(name, inner) for name in root.operands] if root.opcode == "add" else []
    elif at.opcode == "add":
      inside = []
    else:
      return None
    steps = [*inside, *(_constant(name, body) for name in at.operands)]
    steps = [step for step in steps if step is not None]
    return steps[0] if len(steps) == 1 else None

  def _collective(self, kind, at, body):
    size = sum(shape_bytes(body[name].shape) for name in at.operands if name in body)
    groups = self._groups(at.attributes)
    n = len(groups[0])
    nodes = max(len({device // self.node for device in group}) for group in groups)
    each = n / nodes  # devices that share what leaves a node
    share, leaves = (n - 1) / n, (nodes - 1) / nodes / each
    if kind == "all-gather":
      sent, far = size * n * share, size * n * leaves
    elif kind == "all-reduce":
      sent, far = 2 * size * share, 2 * size * leaves
    elif kind == "reduce-scatter":
      sent, far = size * share, size * leaves
    elif kind in ("all-to-all", "ragged-all-to-all"):
      sent, far = size * share, size * (n - each) / n
    else:
      sent, far = size, size * (nodes > 1)
    return Traffic({kind: float(sent)}, float(far), {kind: 1.0})

  def _groups(self, attributes):
    """The devices that meet: lists of their numbers; sender and receiver for a permute."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
      return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", attributes):
      return _along(mesh[1], mesh[2])
    if iota := re.search(
      r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
      shape, sizes, order = ([int(n) for n in (x or "").split(",") if n] for x in iota.groups())
      numbers = np.arange(math.prod(sizes)).reshape(sizes)
      return numbers.transpose(order or range(len(sizes))).reshape(shape).tolist()
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    groups = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    return [[int(n) for n in g.split(",")] for g in groups] or [list(range(self.devices))]

  def _memory(self, at, body):
    """Bytes that an instruction outside of fusions reads and writes."""
    if at.opcode in _FREE or at.opcode.endswith("-done"):
      return 0.0
    size = functools.partial(shape_bytes, main_memory=True)
    operands = [body[name].shape for name in at.operands if name in body]
    if at.opcode in ("dynamic-slice", "slice", "gather"):
      return 2 * size(at.shape)
    if at.opcode == "dynamic-update-slice":
      return 2 * size(operands[1])
    if at.opcode in ("fusion", "fusion-start"):
      inner = self.computations[re.search(r"\bcalls=%?([\w.\-]+)", at.attributes)[1]]
      if at.opcode == "fusion-start":  # its result names its operands again
        at = dataclasses.replace(at, shape=next(i.shape for i in inner.values() if i.root))
      return _written(at, inner) + _read(inner, operands)
    if at.opcode.endswith("-start"):  # its result is a tuple that names its operands again
      return 2 * sum(map(size, operands))
    return size(at.shape) + sum(map(size, operands))


def _constant(name, body):
  """The value of an integer constant, looking through copies; None if it is none."""
  at = body.get(name)
  while at is not None and at.opcode in ("copy", "bitcast"):
    at = body.get(at.operands[0])
  if at is None or at.opcode != "constant" or not re.match(r"[su]32\[\]", at.shape):
    return None
  return int(at.operands[0])


def _along(mesh, axes):
  """Groups along axes of a mesh, "'a'=2,'b'=4" and "'b'"; parts of an axis are "'b':(1)2".

  Numbers go through the mesh row by row. A part ":(m)n" of an axis is n of its devices, m x (n x
  rest) being how the axis is cut.
  """
  sizes, names = [], []
  chosen = {name: (m, n) for name, m, n in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
  for name, size in re.findall(r"'([^']+)'=(\d+)", mesh):
    before, part = chosen.get(name, ("", ""))
    if part:
      before, part = int(before), int(part)
      cut = [(before, False), (part, True), (int(size) // before // part, False)]
    else:
      cut = [(int(size), name in chosen)]
    sizes += [length for length, _ in cut]
    names += [taken for _, taken in cut]
  order = [i for i, taken in enumerate(names) if not taken]
  order += [i for i, taken in enumerate(names) if taken]
  length = math.prod(n for n, taken in zip(sizes, names, strict=True) if taken)
  numbers = np.arange(math.prod(sizes)).reshape(sizes).transpose(order)
  return numbers.reshape(-1, length).tolist()


def _scattered(at, body):
  """Whether all that is read of a sum is the device's own part: a reduce-scatter, as TPUs write it.

  There it is a fusion of its own, an all-reduce under a dynamic slice.
  """
  users = list(_users(at.name, body))
  return bool(users) and all(user.root and user.opcode == "dynamic-slice" for user in users)


def _read(inner, shapes):
  """Bytes that a fusion reads: of an array that it only cuts slices from, the slices."""
  total = 0.0
  for number, shape in enumerate(shapes):
    whole = shape_bytes(shape, main_memory=True)
    (name,) = [
      i.name for i in inner.values() if i.opcode == "parameter" and i.operands[0] == str(number)
    ]
    cuts = [_cut(user, name) for user in _users(name, inner)]
    total += whole if None in cuts else min(whole, sum(cuts))
  return total


def _users(name, inner):
  """Who reads a value, looking through bitcasts."""
  for user in inner.values():
    if name in user.operands:
      if user.opcode == "bitcast" and not user.root:
        yield from _users(user.name, inner)
      else:
        yield user


def _cut(user, name):
  """Bytes of its operand that an instruction touches; None: all."""
  if user.opcode in ("dynamic-slice", "slice", "gather"):
    return shape_bytes(user.shape)
  if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
    return 0.0  # updated in place
  return None


def _written(at, inner):
  """Bytes that a fusion writes: of arrays updated in place, the update."""
  root = next(i for i in inner.values() if i.root)
  parts = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
  whole = shape_bytes(at.shape, main_memory=True)
  for part in parts:
    while part.opcode == "bitcast":
      part = inner[part.operands[0]]
    if part.opcode == "dynamic-update-slice" and shape_bytes(at.shape, main_memory=True):
      whole -= shape_bytes(part.shape) - shape_bytes(inner[part.operands[1]].shape)
  return max(whole, 0.0)
