"""Do frames obey the keys? A small network trained on real frames reads the action back off them.

An inverse-dynamics model (Baker et al. 2022, VPT; Matrix-Game and GameWorld score world models with
one) sees two neighbouring frames and says which buttons led from the first to the second. It learns
from real frames only; what it reads off generated ones is compared with what was asked for, beside
what it reads off real held-out frames (no model can be expected to do better) and chance.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vidstep.files import whole
from vidstep.metrics.clips import check_clips, in_batches, to_unit
from vidstep.metrics.resampling import bootstrap_rows

_BATCH = 256
_SIZE = 32  # larger frames are averaged down to about this: keys move things by whole pixels of it
_RARE = 0.005  # a button that is up, or down, in fewer frames than this says nothing


class _Reader(nn.Module):
  """Four strided convolutions and one hidden layer over (before, after, after - before)."""

  buttons: int

  @nn.compact
  def __call__(self, before, after):
    small = lambda x: _shrink(to_unit(x))
    before, after = small(before), small(after)
    x = jnp.concatenate([before, after, 4 * (after - before)], axis=-1)
    for width in (32, 64, 64):
      x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
    x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.buttons)(x)


def _shrink(x):
  """Box average of frames [N, H, W, 3] by a whole factor."""
  factor = max(1, min(x.shape[1:3]) // _SIZE)
  if factor == 1 or x.shape[1] % factor or x.shape[2] % factor:
    return x
  n, h, w, c = x.shape
  return x.reshape(n, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


class InverseDynamics(NamedTuple):
  """What reads actions off pairs of frames.

  Attributes:
    params: weights.
    names: of the A buttons.
    share: [A] share of the training frames in which each is down.
  """

  params: dict
  names: tuple
  share: np.ndarray

  def read(self, video):
    """Log-odds that each button led from a frame to the next.

    Args:
      video: [N, T >= 2, H, W, 3] uint8 or float in [-1, 1].

    Returns:
      float32 [N, T-1, A]; entry f-1 is about the action that leads INTO frame f.
    """
    video = check_clips(video, frames=2)
    pairs = [x.reshape(-1, *video.shape[2:]) for x in (video[:, :-1], video[:, 1:])]
    odds = in_batches(lambda a, b: _apply(len(self.names), self.params, a, b), pairs, _BATCH)
    return odds.reshape(video.shape[0], video.shape[1] - 1, -1)

  def save(self, path):
    """Writes it as one .npz, whole or not at all."""
    flat = {"|".join(k): v for k, v in _flatten(self.params)}
    with whole(path) as partial, open(partial, "wb") as file:
      np.savez(file, names=np.array(self.names), share=self.share, **flat)

  @classmethod
  def load(cls, path):
    """Reads what `save` wrote."""
    with np.load(path) as file:
      params = {}
      for key in set(file.files) - {"names", "share"}:
        layer, leaf = key.split("|")
        params.setdefault(layer, {})[leaf] = file[key]
      return cls(params, tuple(str(name) for name in file["names"]), file["share"])


def _flatten(params):
  return [((layer, leaf), np.asarray(v)) for layer, x in params.items() for leaf, v in x.items()]


@functools.partial(jax.jit, static_argnums=0)
def _apply(buttons, params, before, after):
  return _Reader(buttons).apply({"params": params}, before, after)


def fit_inverse_dynamics(
  video, actions, *, names, seed=0, steps=500, batch_size=128, lr=2e-3, progress=lambda n: None
):
  """Trains the reader on pairs of neighbouring frames, with the cross-entropy of every button.

  Args:
    video: uint8 [N, T >= 2, H, W, 3], real frames of the train split.
    actions: float32 [N, T, A] of buttons: +1 down, -1 up; actions[:, f] leads INTO frame f. Frames
      with the null action (all zero: unknown) are not learnt from.
    names: A button names.
    seed: of weights and batches; the same seed gives the same reader.
    steps: updates, with Adam at a rate that falls linearly to 0.
    batch_size: pairs in each.
    lr: the first rate.
    progress: called with 1 after every update.

  Returns:
    `InverseDynamics`.

  Raises:
    ValueError: if the actions are no buttons, do not fit the video, or there are none.
  """
  video = check_clips(video, frames=2)
  down, known = _buttons(video, actions, names)
  clip, frame = np.nonzero(known[:, 1:])
  if not len(clip):
    raise ValueError("No frame has a known action: an inverse-dynamics model needs actions.")
  model, rng = _Reader(len(names)), np.random.default_rng(seed)
  params = model.init(jax.random.key(seed), video[:1, 0], video[:1, 1])["params"]
  optimizer = optax.adam(optax.linear_schedule(lr, 0.0, steps))

  @jax.jit
  def update(params, state, before, after, target):
    def loss(params):
      odds = model.apply({"params": params}, before, after)
      return jnp.mean(optax.sigmoid_binary_cross_entropy(odds, target))

    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
      change, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, change), state

  state = optimizer.init(params)
  for _ in range(steps):
    row = rng.integers(len(clip), size=batch_size)
    n, f = clip[row], frame[row]
    params, state = update(
      params, state, video[n, f], video[n, f + 1], down[n, f + 1].astype(np.float32)
    )
    progress(1)
  params = jax.tree.map(np.asarray, params)
  return InverseDynamics(params, tuple(names), down[known].mean(axis=0))


def _buttons(video, actions, names):
  """(down [N, T, A] bool, known [N, T] bool), or a sentence about what does not fit."""
  actions = np.asarray(actions)
  if actions.shape != (*video.shape[:2], len(names)) or not len(names):
    raise ValueError(
      f"actions have shape {actions.shape}; for {len(names)} buttons and video {video.shape[:2]} "
      f"they must be [N, T, {len(names)}], with at least one button."
    )
  if not np.isin(actions, (-1, 0, 1)).all():
    raise ValueError(
      "Actions must be buttons or choices, -1 up and +1 down; an axis (any other number) has no "
      "balanced accuracy. Leave such columns out."
    )
  return actions > 0, (actions != 0).any(axis=-1)


def following(odds, actions, reader, *, buttons=None, seed=0, resamples=200, level=0.95):
  """How often what was read is what was asked for.

  A button counts as read where its log-odds pass those of its share in training: best for the
  balanced accuracy (mean of the shares of downs and of ups that are told), where guessing is worth
  1/2 however rare the button is. The exact match of all buttons takes the likelier answer of each;
  where exactly one is down at a time, that of the largest odds.

  Keys are held for several frames, so that both hardly tell an answer that comes a frame early or
  late. `changes` does: of the buttons just pressed or let go, the share that is read as it was in
  the frame before *and* as it is in this one; guessing gives 1/4, a frame too late or early 0.

  Args:
    odds: [N, T-1, A] from `InverseDynamics.read`.
    actions: [N, T, A] what was asked for; frames with the null action do not count.
    reader: the `InverseDynamics`.
    buttons: names over which `balanced` is the mean and `changes` is counted, of those that are
      both up and down here; None, or if none of them is: all.
    seed, resamples, level: of the bootstrap over clips.

  Returns:
    JSON-ready dict: balanced, exact and changes {value, low, high} (changes: None where nothing
    does), buttons {name: balanced accuracy, or None where a button is never up or never down},
    majority (exact match of always answering the most frequent action), frames.

  Raises:
    ValueError: if shapes do not fit, or no button can be judged.
  """
  actions = np.asarray(actions)
  if odds.shape != (actions.shape[0], actions.shape[1] - 1, actions.shape[2]):
    raise ValueError(f"odds {odds.shape} are not of the pairs of frames of {actions.shape}.")
  some = (actions[:, 1:] != 0).any(axis=(1, 2))  # clips of which nothing is known say nothing
  odds, actions = odds[some], actions[some]
  down, known = actions[:, 1:] > 0, (actions[:, 1:] != 0).any(axis=-1)
  share = np.clip(reader.share, 1e-6, 1 - 1e-6)
  read = odds > np.log(share / (1 - share))
  before = np.concatenate([actions[:, :1] > 0, down[:, :-1]], axis=1)
  both = known & (actions[:, :-1] != 0).any(axis=-1)
  choice = down.shape[-1] > 1 and (down[known].sum(axis=-1) == 1).all()
  likelier = odds == odds.max(axis=-1, keepdims=True) if choice else odds > 0
  count = lambda x: (x & known[..., None]).sum(axis=1)  # [N, A] per clip, for the bootstrap
  tally = {
    "hits": (count(read & down), count(down)),
    "rejections": (count(~read & ~down), count(~down)),
  }
  same = ((likelier == down).all(axis=-1) & known).sum(axis=1)

  def balanced(i):
    with np.errstate(invalid="ignore", divide="ignore"):
      hit, rejected = (right[i].sum(axis=0) / of[i].sum(axis=0) for right, of in tally.values())
    return (hit + rejected) / 2

  each = dict(zip(reader.names, balanced(np.arange(len(odds))), strict=True))
  rare = [min(of.sum(axis=0)[a] for _, of in tally.values()) for a in range(down.shape[-1])]
  fit = [n for n, few in zip(reader.names, rare, strict=True) if few > _RARE * known.sum()]
  wanted = [n for n in fit if buttons is None or n in buttons] or fit
  chosen = [reader.names.index(n) for n in wanted]
  if not chosen:
    raise ValueError("No button is both up and down in these clips: there is nothing to follow.")

  def mean(i):  # a resample may lack all downs of a rare button
    values = balanced(i)[chosen]
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else 0.5

  changed = ((down != before) & both[..., None])[..., chosen]
  right = read == down
  right[:, 1:] &= (read == down)[:, :-1]
  now = (changed & right[..., chosen]).sum(axis=(1, 2))
  of = changed.sum(axis=(1, 2))
  at_changes = lambda i: float(now[i].sum() / max(of[i].sum(), 1))
  options = {"seed": seed, "resamples": resamples, "level": level}
  interval = lambda at: bootstrap_rows(at, len(odds), **options)._asdict()
  frequent = np.unique(down[known], axis=0, return_counts=True)[1].max()
  return {
    "balanced": interval(mean),
    "exact": interval(lambda i: float(same[i].sum() / known[i].sum())),
    "changes": interval(at_changes) if of.any() else None,
    "buttons": {n: float(v) if n in fit else None for n, v in each.items()},
    "majority": float(frequent / known.sum()),
    "frames": int(known.sum()),
  }


def shifted(actions, by=1):
  """Every action comes `by` frames late; the first ones are the null action.

  Args:
    actions: [N, T, A].
    by: frames, at least 1.
  """
  actions = np.asarray(actions)
  return np.concatenate([np.zeros_like(actions[:, :by]), actions[:, :-by]], axis=1)


def shuffled(actions, seed=0):
  """The known actions dealt anew over clips and frames: what has nothing to do with the frames."""
  actions = np.array(actions)
  known = (actions != 0).any(axis=-1)
  actions[known] = np.random.default_rng(seed).permutation(actions[known])
  return actions
