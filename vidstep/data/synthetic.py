"""A small world in pure JAX: coloured shapes on a striped floor, one of them steered by actions.

Everything is known about it (positions, velocities, what each action does), it needs no files, and
it is the same for the same seed: the fixture for whatever wants video with actions. Coordinates are
in units of the picture, x to the right and y down, in [0, 1].
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BUTTONS = ("LEFT", "RIGHT", "UP", "DOWN")
SHAPES = 3  # the first one is the player
RADIUS = 0.12
SPEED = 0.06  # of the player, per frame and button held
_PALETTE = ((0.95, 0.85, 0.2), (0.9, 0.25, 0.2), (0.2, 0.55, 0.95))


class WorldState(NamedTuple):
  """Ground truth of one moment: position and velocity [SHAPES, 2], colours [SHAPES, 3], floor [4].

  `floor` is the angle, frequency, phase and hue of the stripes, constant within an episode.
  """

  position: jax.Array
  velocity: jax.Array
  colour: jax.Array
  floor: jax.Array


def init(key: jax.Array) -> WorldState:
  """A random start."""
  k_position, k_velocity, k_colour, k_floor = jax.random.split(key, 4)
  angle = jax.random.uniform(k_velocity, (SHAPES,), maxval=2 * jnp.pi)
  velocity = 0.035 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  colour = jnp.asarray(_PALETTE) + jax.random.uniform(
    k_colour, (SHAPES, 3), minval=-0.1, maxval=0.1
  )
  return WorldState(
    position=jax.random.uniform(k_position, (SHAPES, 2), minval=RADIUS, maxval=1 - RADIUS),
    velocity=velocity.at[0].set(0.0),
    colour=jnp.clip(colour, 0.0, 1.0),
    floor=jax.random.uniform(k_floor, (4,)),
  )


def step(state: WorldState, action: jax.Array) -> WorldState:
  """One frame on: held buttons move the player, the others fly on and bounce off the walls.

  Args:
    state: where everything is.
    action: float32 [4] over `BUTTONS`, -1 up, +1 down; the null action moves nothing but the rest.
  """
  held = jnp.maximum(action, 0.0)
  push = SPEED * jnp.stack([held[1] - held[0], held[3] - held[2]])
  velocity = state.velocity.at[0].set(push)
  position = state.position + velocity
  low, high = RADIUS, 1 - RADIUS
  outside = (position < low) | (position > high)
  # A bounce is a reflection of position and velocity; the player just stops at the wall.
  reflected = jnp.where(position < low, 2 * low - position, position)
  reflected = jnp.where(reflected > high, 2 * high - reflected, reflected)
  reflected = reflected.at[0].set(jnp.clip(position[0], low, high))
  velocity = jnp.where(outside, -velocity, velocity).at[0].set(reflected[0] - state.position[0])
  return state._replace(position=reflected, velocity=velocity)


def render(state: WorldState, size: int) -> jax.Array:
  """The picture of a state, uint8 [size, size, 3], edges anti-aliased over about one pixel."""
  centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
  y, x = jnp.meshgrid(centres, centres, indexing="ij")
  angle, frequency, phase, hue = jnp.pi * state.floor
  wave = jnp.sin((4 + 4 * frequency) * (x * jnp.cos(angle) + y * jnp.sin(angle)) * 2 + 2 * phase)
  tint = 0.28 + 0.12 * jnp.cos(2 * hue + jnp.asarray([0.0, 2.1, 4.2]))
  image = tint[None, None] * (1 + 0.35 * wave[..., None])
  for i in reversed(range(SHAPES)):  # the player lies on top
    dx, dy = x - state.position[i, 0], y - state.position[i, 1]
    distance = (
      jnp.sqrt(dx**2 + dy**2),  # disc
      jnp.maximum(jnp.abs(dx), jnp.abs(dy)) / 0.85,  # square
      (jnp.abs(dx) + jnp.abs(dy)) / 1.2,  # diamond
    )[i]
    cover = jnp.clip((RADIUS - distance) * size + 0.5, 0.0, 1.0)[..., None]
    image = (1 - cover) * image + cover * state.colour[i][None, None]
  return jnp.round(255 * jnp.clip(image, 0.0, 1.0)).astype(jnp.uint8)


def rollout(key: jax.Array, actions: jax.Array, size: int) -> tuple[WorldState, jax.Array]:
  """Play `actions` [T, 4] from the start that `key` draws.

  actions[f] leads into frame f, so actions[0] is not played.

  Returns:
    (states with a leading axis T, video uint8 [T, size, size, 3]).
  """
  start = init(key)

  def advance(state, action):
    state = step(state, action)
    return state, state

  _, later = jax.lax.scan(advance, start, actions[1:])
  states = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, later)
  return states, jax.vmap(lambda state: render(state, size))(states)


def random_actions(key: jax.Array, frames: int, hold: int = 4) -> jax.Array:
  """Float32 [frames, 4]: buttons held for `hold` frames, the null action first."""
  blocks = -(-frames // hold)
  down = jax.random.bernoulli(key, 0.4, (blocks, len(BUTTONS))).repeat(hold, axis=0)[:frames]
  return jnp.where(down, 1.0, -1.0).astype(jnp.float32).at[0].set(0.0)


@partial(jax.jit, static_argnums=(2, 3))
def _clips(key: jax.Array, numbers: jax.Array, frames: int, size: int):
  """Videos, actions and positions of the clips of these numbers, stacked."""

  def clip(number):
    k_world, k_actions = jax.random.split(jax.random.fold_in(key, number))
    actions = random_actions(k_actions, frames)
    states, video = rollout(k_world, actions, size)
    return video, actions, states.position

  return jax.lax.map(clip, numbers)


class SyntheticClips:
  """Clips of the world by number, with the ground truth beside them.

  Clip i has video uint8 [T, size, size, 3], actions float32 [T, 4], position float32 [T, SHAPES, 2]
  (ground truth), episode = i, start = 0, seed. Clips of different splits have different keys.
  """

  def __init__(
    self,
    split: str = "train",
    *,
    clips: int = 256,
    frames: int = 16,
    size: int = 32,
    seed: int = 0,
  ):
    if split not in ("train", "test"):
      raise ValueError(f"The synthetic world has the splits train and test, not {split!r}.")
    self.info = {
      "source": "synthetic",
      "buttons": list(BUTTONS),
      "frame_rate": 10.0,
      "shape": [frames, size, size, 3],
    }
    self._seed = seed

    # All at once on the host: afterwards the source is plain NumPy, safe in any thread.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
      key = jax.random.fold_in(jax.random.key(seed), int(split == "test"))
      made = _clips(key, jnp.arange(clips), frames, size)
    self._video, self._actions, self._position = (np.asarray(a) for a in made)

  def __len__(self) -> int:
    return len(self._video)

  def __getitem__(self, index: int) -> dict:
    return {
      "video": self._video[index],
      "actions": self._actions[index],
      "position": self._position[index],
      "episode": index,
      "start": 0,
      "seed": self._seed,
    }


def synthetic_clips(spec: str, split: str) -> SyntheticClips:
  """Clips described by "synthetic" or "synthetic:clips=64,frames=16,size=32,seed=0".

  Raises:
    ValueError: an option that is none of these, or no whole number.
  """
  options = {}
  for part in filter(None, spec.partition(":")[2].split(",")):
    name, _, value = part.partition("=")
    if name not in ("clips", "frames", "size", "seed") or not value.isdigit():
      raise ValueError(f"{part!r} in {spec!r}: write clips=, frames=, size= or seed= and a number.")
    options[name] = int(value)
  return SyntheticClips(split, **options)
