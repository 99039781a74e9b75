"""Causal generation against diffusers' AnyFlow-FAR (arXiv 2605.13724, 2503.19325), random weights.

Its transformer is Wan's block under a chunk-causal mask, with a second time and a cache of keys; so
is our `VideoDiT`. Compared are the masked training forward over [noisy | clean] copies, the one of
diffusion forcing, and its whole pipeline: chunk after chunk behind its cache, with given first
frames, with guidance, few flow-map steps each.

Not compared: its compressed context, for which older chunks are cut into larger patches
(`full_chunk_limit` is set beyond the number of chunks, where there are none), and its image
embedding. Its cached forward attends to the zeros that it pads a chunk to 128 tokens with (the last
test shows it), so the pipeline runs with frames of exactly 128 tokens.
"""

import functools
import importlib

import jax
import numpy as np
import pytest

from vidstep.causal.cached import CachedNetwork
from vidstep.causal.kv_cache import CachePolicy
from vidstep.causal.rollout import rollout
from vidstep.io.wan import from_tensors
from vidstep.masks import CLEAN
from vidstep.models.cond import Cond
from vidstep.samplers import timesteps

torch = pytest.importorskip("torch")
far = pytest.importorskip("diffusers.models.transformers.transformer_anyflow_far")

pytestmark = pytest.mark.usefixtures("unoptimized")

# What torch warns of inside its own functions is not ours to mend.
pytestmark = pytest.mark.filterwarnings(
  "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


SOURCE = importlib.import_module("vidstep.models.velocity")
BATCH, TEXT, GATE = 2, 6, 0.25
PARTITION = [1, 2, 2, 1]  # a first chunk of its own length, and a remainder
CHUNK, FRAMES = (1, 2), sum(PARTITION)


@functools.cache
def build(deltatime="t-r"):
  """Their transformer, every parameter random; ours, and our parameters of the same function.

  They mix two embeddings, (1-g) e(t) + g d(t - r) or (1-g) e(t) + g d(r); we add ours.
  """
  torch.manual_seed(0)
  theirs = far.AnyFlowFARTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=TEXT,
    ffn_dim=48, num_layers=2, rope_max_seq_len=64, full_chunk_limit=len(PARTITION) + 1,
    deltatime_type=deltatime, gate_value=GATE,
  ).eval()  # fmt: skip
  with torch.no_grad():
    for name, p in theirs.named_parameters():
      if p.ndim == 1:
        p.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
      else:
        p.normal_(0.0, p[0].numel() ** -0.5)
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  delta = "condition_embedder.delta_embedder."
  wan = {k: v for k, v in state.items() if not k.startswith(("far_patch_embedding.", delta))}
  model, params = from_tensors(wan, config=theirs.config)
  embed = lambda i: {
    "kernel": state[f"{delta}linear_{i}.weight"].T, "bias": state[f"{delta}linear_{i}.bias"]
  }  # fmt: skip
  scaled = lambda weight, layers: {
    "in": layers["in"], "out": jax.tree.map(lambda a: np.float32(weight) * a, layers["out"])
  }  # fmt: skip
  params["time_embed"] = scaled(1 - GATE, params["time_embed"])
  params["second_time_embed"] = scaled(GATE, {"in": embed(1), "out": embed(2)})
  return theirs, model.clone(second_time=True), params


def draw(height, width, seed=1):
  """x, clean [B, F, H, W, 4], text [B, 7, 6]; times t > r [B, F] that 1000 multiplies exactly."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  video = lambda: normal(BATCH, FRAMES, height, width, 4)
  t = rng.integers(33, 65, (BATCH, FRAMES)).astype(np.float32) / 64
  r = rng.integers(0, 33, (BATCH, FRAMES)).astype(np.float32) / 64
  return video(), video(), normal(BATCH, 7, TEXT), t, r


def channels_second(x):
  """Their layout of a video: [B, F, C, H, W]."""
  return torch.from_numpy(np.array(x)).permute(0, 1, 4, 2, 3)


# ------------------------------------------------------------------------------------------------
# Masked
# ------------------------------------------------------------------------------------------------


def masked(forced, deltatime="t-r"):
  """(ours, theirs): the training forward, behind clean copies or over noisy frames alone."""
  theirs, model, params = build(deltatime)
  x, clean, text, t, r = draw(6, 4)
  past = {"clean_hidden_states": channels_second(clean), "clean_timestep": torch.zeros(t.shape)}
  with torch.no_grad():
    want = theirs(
      channels_second(x), *(1000 * torch.from_numpy(a) for a in (t, r)), torch.from_numpy(text),
      PARTITION, return_dict=False, **(past if forced else {}),
    )[0]  # fmt: skip
  s = r if deltatime == "t-r" else t - r  # d(r): where our t - s is r
  cond = Cond(text=text, clean=clean if forced else None)
  got = jax.jit(SOURCE.velocity_fn(model, chunk=CHUNK))(params, x, t, cond, s=s)
  return np.asarray(got), want.permute(0, 1, 3, 4, 2).numpy()


@pytest.mark.parametrize("deltatime", ["t-r", "r"])
@pytest.mark.parametrize("forced", [True, False])
def test_the_masked_forward_is_theirs(forced, deltatime):
  got, want = masked(forced, deltatime)
  assert np.std(want) > 0.1
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


class SeesItself(SOURCE.TeacherForcing):
  """A noisy chunk reads the clean copy of itself."""

  def __call__(self, q, k):
    return super().__call__(q, k) | (k.role == CLEAN) & (k.chunk == q.chunk)


def shifted(*args, **kw):
  """Clean frames one position late."""
  x, t, cond, layout = _teacher_forcing(*args, **kw)
  frame = layout.info.frame + (layout.info.role == CLEAN)
  return x, t, cond, layout.replace(info=layout.info._replace(frame=frame.astype(np.int32)))


_teacher_forcing, _pack_time = SOURCE.teacher_forcing, SOURCE.pack_time
MUTANTS = {
  "one entry of the mask": (SOURCE, "TeacherForcing", SeesItself),
  "one position of RoPE": (SOURCE, "teacher_forcing", shifted),
  "no second time": (SOURCE, "pack_time", lambda s, layout: 0 * _pack_time(s, layout)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_notices(monkeypatch, mutant):
  monkeypatch.setattr(*MUTANTS[mutant])
  got, want = masked(forced=True)
  assert np.abs(got - want).max() > 1e-3


# ------------------------------------------------------------------------------------------------
# Cached, chunk by chunk
# ------------------------------------------------------------------------------------------------


def pipeline(theirs, x, text, steps, context, guidance, negative):
  """Latents of their pipeline from noise x, its first frames given."""
  from diffusers import AnyFlowFARPipeline, FlowMapEulerDiscreteScheduler

  run = AnyFlowFARPipeline(None, None, theirs, None, FlowMapEulerDiscreteScheduler(shift=SHIFT))
  run.set_progress_bar_config(disable=True)
  prompts = {"prompt_embeds": torch.from_numpy(text)}
  if guidance > 1:
    prompts["negative_prompt_embeds"] = torch.from_numpy(negative)
  out = run(
    latents=torch.from_numpy(x).permute(0, 4, 1, 2, 3),
    video_latents=None if context is None else channels_second(context),
    num_inference_steps=steps, guidance_scale=guidance, output_type="latent",
    chunk_partition=PARTITION, return_dict=False, **prompts,
  )[0]  # fmt: skip
  return out.permute(0, 2, 3, 4, 1).numpy()


SHIFT = 5.0
# steps of each chunk, given frames, guidance
RUNS = {"one step": (1, 0, 1.0), "four steps, given frames, guided": (4, 1, 3.0)}


@pytest.mark.parametrize("name", RUNS)
def test_the_cached_rollout_is_their_pipeline(name):
  steps, given, guidance = RUNS[name]
  theirs, model, params = build()
  x, clean, text, *_ = draw(16, 32)
  negative = -text[:, ::-1].copy()
  context = clean[:, :given] if given else None
  want = pipeline(theirs, x, text, steps, context, guidance, negative)

  network = CachedNetwork(model, CachePolicy(window=FRAMES))
  got, _ = jax.jit(
    lambda noise, cond: rollout(
      network, params, noise, cond, jax.random.key(0),
      chunk=2 if given else CHUNK,
      times=np.asarray(timesteps(steps, shift=SHIFT))[:-1],
      solver="flow_map",
      guidance=guidance,
      unconditional=lambda cond: cond if cond.text is None else cond.replace(text=negative),
    )
  )(x[:, given:], Cond(text=text, context=context))  # fmt: skip
  np.testing.assert_array_equal(want[:, :given], clean[:, :given])
  assert np.abs(want - x)[:, given:].max() > 0.1
  np.testing.assert_allclose(got, want[:, given:], atol=2e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (4, 4)])
def test_their_cached_forward_reads_its_padding(height, width):
  """The first chunk has no past, so their two forwards should agree; 128 tokens need no padding."""
  theirs, model, params = build()
  x, _, text, t, r = (a[:, :1] if a.ndim != 3 else a for a in draw(height, width))
  cache = lambda: torch.zeros(2, BATCH, 2, 0, 16)
  call = lambda **past: theirs(
    channels_second(x), *(1000 * torch.from_numpy(a) for a in (t, r)), torch.from_numpy(text), [1],
    return_dict=False, **past,
  )[0].permute(0, 1, 3, 4, 2).numpy()  # fmt: skip
  empty = {i: {"full_cache": cache(), "compressed_cache": cache()} for i in range(2)}
  flag = {"num_cached_chunks": 0, "is_cache_step": False}
  with torch.no_grad():
    masked, cached = call(), call(kv_cache=empty, kv_cache_flag=flag)
  assert (np.abs(cached - masked).max() > 1e-2) == (height * width // 4 % 128 != 0)

  @jax.jit
  def ours(params, x, t, r, text):
    network = CachedNetwork(model, CachePolicy(window=1))
    return network.read(params, x, t, Cond(), network.start(params, x, Cond(text=text)), s=r)

  np.testing.assert_allclose(ours(params, x, t, r, text), masked, atol=1e-5, rtol=1e-5)
