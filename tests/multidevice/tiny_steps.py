"""One training step of a tiny Wan, by any objective on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from random_params import randomised

from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.rollout import self_rollout
from vidstep.losses import Batch, flow_matching, scm, self_forcing
from vidstep.masks import TeacherForcing
from vidstep.models.cond import Cond
from vidstep.models.dit import VideoDiT
from vidstep.models.velocity import velocity_fn
from vidstep.parallel.attention import sharded_attention
from vidstep.parallel.sharding import frame_shardings, replicated, state_sharding
from vidstep.training.optim import adamw, parse_ema
from vidstep.training.state import init_state
from vidstep.training.step import make_step

BATCH, FRAMES, CHUNK = 8, 8, 2
MODEL = VideoDiT(
  dim=32, heads=4, depth=2, ffn_dim=64, patch=(1, 2, 2), in_channels=2, out_channels=2, text_dim=5,
  time_scale=1.0, scan=True,
)  # fmt: skip


@functools.cache
def params():
  """Random weights, none zero, of a role and of a frozen network."""
  x, cond = jnp.zeros((1, FRAMES, 4, 4, 2)), Cond(text=jnp.zeros((1, 6, 5)))
  like = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), x, jnp.zeros(1), cond=cond))["params"]
  return [randomised(like, seed) for seed in range(3)]


def batch(forced):
  """Random videos with text; with their clean copies for teacher forcing."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  x0 = draw(BATCH, FRAMES, 4, 4, 2)
  mask = jnp.arange(6)[None] < jnp.arange(BATCH)[:, None] % 6 + 1
  return Batch(x0, Cond(text=draw(BATCH, 6, 5), text_mask=mask, clean=x0 if forced else None))


def objective(name, mesh, method):
  """Objective, weights of its roles, of its frozen networks."""
  model = MODEL.clone(attention=sharded_attention(mesh, method=method))
  shards = getattr(model.attention, "shards", 1)
  causal = velocity_fn(model, chunk=CHUNK, shards=shards)
  one, two, three = params()
  if name == "flow_matching":
    return flow_matching(causal), {"model": one}, {}
  if name == "scm":
    return scm(causal, causal, warmup=0), {"student": one}, {"teacher": two}
  network = CachedNetwork(model, CachePolicy(window=FRAMES), TeacherForcing())
  whole = velocity_fn(model)
  rollout = self_rollout(network, chunk=CHUNK)
  made = self_forcing(rollout, whole, whole, times=(1.0,), ratio=2)
  return made, {"student": one, "fake": two}, {"teacher": three}


def build(name, mesh, *, preset="fsdp", method="ring"):
  """The step to be compiled, and its arguments in their places."""
  made, roles, frozen = objective(name, mesh, method)
  # A large eps keeps Adam from blowing up the rounding of gradients near zero.
  optimizers = {role: adamw(1e-2, b1=0.9, eps=0.1) for role in roles}
  emas = {role: parse_ema("constant:0.5") for role in roles}
  state = init_state(roles, optimizers, emas, made.init_aux(), jax.random.key(1))
  videos = batch(forced=name != "self_forcing")
  args = (state, frozen, videos)
  spread = functools.partial(state_sharding, mesh=mesh, preset=preset)
  shardings = (spread(state), spread(frozen), frame_shardings(videos, mesh))
  step = jax.jit(
    make_step(made, optimizers, emas, made.roles),
    in_shardings=shardings,
    out_shardings=(shardings[0], replicated(mesh)),
  )
  return step, jax.device_put(args, shardings)
