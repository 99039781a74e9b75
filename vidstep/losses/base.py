"""What an objective is: roles, one pure loss a role, and when each role is due."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Batch:
  """What an objective is given at a step.

  Attributes:
    x0: [B, F, H, W, C] clean video or latents (data prediction target, t = 0).
    cond: any pytree with leading axis B; only the velocity functions look inside. Teacher forcing
      puts the clean frames in here, so a causal objective is the same objective.
    path: [B, K, F, H, W, C] states of a teacher's ODE that ended in x0, at K times that its reader
      knows, path[:, 0] at t = 1 (`kd`); None where nobody reads it.
  """

  x0: jax.Array
  cond: Any = None
  path: jax.Array | None = None


# velocity(params, x [B, F, H, W, C], t [B] or [B, F] float32, cond) -> v, shaped like x.
Velocity = Callable[[Any, jax.Array, jax.Array, Any], jax.Array]
Loss = Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """An objective as data: who learns, from which loss, when.

  Every loss has one signature, is pure and is differentiable in its first argument only:

      loss[role](trainable, nets, aux, batch, key, step) -> (scalar, (metrics, aux))

  `trainable` is the role's parameters; `nets` maps names to parameters and holds every role, every
  role's moving average ("student.ema") and the frozen networks; `aux` is what the method carries
  from step to step (histograms, curricula, error buffers); `metrics` maps names to scalars. So
  `jax.value_and_grad(objective.loss[role], has_aux=True)` is all that a notebook needs.

  Attributes:
    roles: names of the networks that learn.
    loss: one loss for each role.
    due: step (a Python int) -> the roles that are updated at it. None: all of them, every step.
    init_aux: () -> first value of aux, a pytree of arrays. By default an empty dict.
    frozen: names of the networks that are read and never updated, such as "teacher".

  Raises:
    ValueError: if a role has no loss, a loss no role, a name is both role and frozen, or `due`
      names an unknown role (at construction for step 0, later when asked).
  """

  roles: tuple[str, ...]
  loss: Mapping[str, Loss]
  due: Callable[[int], tuple[str, ...]] | None = None
  init_aux: Callable[[], Any] = dict
  frozen: tuple[str, ...] = ()

  def __post_init__(self):
    for name in ("roles", "frozen"):
      if isinstance(getattr(self, name), str):
        raise ValueError(f'{name} is a tuple of names: write ("{getattr(self, name)}",).')
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if not self.roles:
      raise ValueError("An objective needs at least one role; roles is empty.")
    without = [role for role in self.roles if role not in self.loss]
    if without:
      raise ValueError(f"No loss for role {_names(without)}: add it to `loss` or drop the role.")
    unknown = [name for name in self.loss if name not in self.roles]
    if unknown:
      raise ValueError(f"A loss for {_names(unknown)}, but roles are {_names(self.roles)}.")
    both = [name for name in self.frozen if name in self.roles]
    if both:
      raise ValueError(f"{_names(both)} cannot both learn (roles) and stay frozen.")
    object.__setattr__(self, "due", _checked(self.due or (lambda step: self.roles), self.roles))
    self.due(0)


def network(nets, name):
  """The parameters of network `name`, or a ValueError that says which networks there are."""
  if name not in nets:
    raise ValueError(
      f"The objective needs the network {name!r}, but nets holds {_names(nets) or 'none'}; "
      f"pass nets={{{name!r}: params, ...}} (in a config: nets.{name})."
    )
  return nets[name]


def _checked(due, roles):
  def checked(step):
    now = due(step)
    if isinstance(now, str) or not set(now) <= set(roles):
      raise ValueError(
        f"due({step}) returned {now!r}; it must return a tuple of roles out of {_names(roles)}."
      )
    return tuple(now)

  return checked


def _names(names):
  return ", ".join(repr(name) for name in names)
