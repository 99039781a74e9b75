"""The op under every transformation against dense attention, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import Mask, chunked
from vidstep import masks
from vidstep.attention import attention, dispatch, merge

B, H, D, TOKENS = 2, 2, 8, 5
PACKED = masks.teacher_forcing_info(masks.chunk_index(4, 2, first=1)).tokens(TOKENS)
N = len(PACKED.frame)
RULE = masks.TeacherForcing() & masks.Window(1, 1)
SAVE_ALL = jax.checkpoint_policies.everything_saveable
stop = jax.lax.stop_gradient


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def inputs():
  return [normal(i, B, N, H, D) for i in range(6)]


def op(implementation, info=PACKED, rule=RULE, **options):
  return functools.partial(
    attention, mask=rule, q_info=info, implementation=implementation, **options
  )


def stack(tree):
  return jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree)


def loss(fn, *x):
  return (fn(*x) ** 2).sum()


def network(fn, weights):
  return lambda x: x + fn(x @ weights["q"], x @ weights["k"], x @ weights["v"])


def consistency(fn, x, dx, weights, wrap=lambda net: net):
  """The value and the tangent of the live network in one pass, as sCM and MeanFlow have it."""
  y, dy = jax.jvp(wrap(network(fn, weights)), (x,), (dx,))
  return ((y - stop(y + dy)) ** 2).sum()


def scanned(policy):
  def wrap(net):
    body = jax.checkpoint(lambda x, _: (net(x), None), policy=policy)
    return lambda x: jax.lax.scan(body, x, length=2)[0]

  return wrap


def cases(fn):
  q, k, v, dq, dk, dv = inputs()
  weights = {name: 0.3 * normal(i, D, D) for i, name in enumerate("qkv", 6)}
  step = lambda wrap: jax.grad(functools.partial(consistency, fn, q, dq, wrap=wrap))
  ck = lambda policy: lambda net: jax.checkpoint(net, policy=policy)
  both = lambda q: jax.jvp(lambda q: fn(q, k, v), (q,), (dq,))
  return {
    "jvp": lambda: jax.jvp(fn, (q, k, v), (dq, dk, dv)),
    "jvp of keys": lambda: jax.jvp(lambda k: fn(q, k, v), (k,), (dk,)),
    "grad": lambda: jax.grad(loss, (1, 2, 3))(fn, q, k, v),
    "grad of values": lambda: jax.grad(loss, 3)(fn, q, k, v),
    "linearize": lambda: jax.linearize(lambda q: fn(q, k, v), q)[1](dq),
    "grad of checkpoint": lambda: jax.grad(jax.checkpoint(functools.partial(loss, fn)))(q, k, v),
    "jvp of checkpoint": lambda: jax.jvp(jax.checkpoint(fn), (q, k, v), (dq, dk, dv)),
    "vmap of grad": lambda: jax.vmap(jax.grad(functools.partial(loss, fn)), (0, None, None))(
      stack(q), k, v
    ),
    "vmap of jvp": lambda: jax.vmap(both, 2, 1)(jnp.stack([q, k], 2)),
    "one-pass gradient": lambda: step(lambda net: net)(weights),
    "one-pass gradient, checkpoint": lambda: step(ck(None))(weights),
    "one-pass gradient, all saved": lambda: step(ck(SAVE_ALL))(weights),
    "one-pass gradient, scan": lambda: step(scanned(None))(weights),
    "one-pass gradient, scan, all saved": lambda: step(scanned(SAVE_ALL))(weights),
    "vmap of one-pass gradient": lambda: jax.vmap(step(scanned(None)))(stack(weights)),
    "jvp of one-pass gradient's loss": lambda: jax.jvp(
      functools.partial(consistency, fn, q, dq), (weights,), (weights,)
    ),
  }


def assert_close(a, b, atol=1e-10):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.shape == y.shape and x.dtype == y.dtype
    np.testing.assert_allclose(x, y, atol=atol, rtol=1e-10)


@pytest.mark.parametrize("case", cases(None))
def test_every_transformation_agrees_with_dense_attention(case):
  assert_close(jax.jit(cases(op(None))[case])(), jax.jit(cases(op("xla"))[case])())


@pytest.mark.parametrize("case", ["jvp", "vmap of grad", "one-pass gradient, scan"])
def test_so_it_does_with_traced_attributes(case):
  traced = jax.jit(lambda info: cases(op(None, info))[case]())(PACKED)
  assert_close(traced, jax.jit(cases(op("xla"))[case])())


def test_it_works_without_jit():
  for case in ("jvp", "grad", "one-pass gradient"):
    assert_close(cases(op(None))[case](), jax.jit(cases(op("xla"))[case])())


def test_gradients_and_tangents_of_lse():
  q, k, v, dq, dk, _ = inputs()

  def both(fn, q, k):
    (o, lse), (do, dlse) = jax.jvp(lambda q, k: fn(q, k, v), (q, k), (dq, dk))
    return (o * stop(do)).sum() + (lse**2 * stop(dlse)).sum()

  rule = masks.CausalFrames()  # no row is empty: lse is finite
  got, want = (op(name, rule=rule, return_lse=True) for name in (None, "xla"))
  gradient = lambda fn: jax.jit(jax.value_and_grad(functools.partial(both, fn), (0, 1)))(q, k)
  assert_close(gradient(got), gradient(want))


def count(fn):
  names = ("forward", "forward_tangent", "tangent", "backward", "second_order")
  jaxpr = str(jax.make_jaxpr(fn)())
  return {name: n for name in names if (n := jaxpr.count(f"attention_{name}["))}


def test_kernels_that_run():
  runs = {name: count(case) for name, case in cases(op(None)).items()}
  assert runs["jvp"] == {"forward_tangent": 1}
  assert runs["grad"] == {"forward": 1, "backward": 1}
  assert runs["one-pass gradient"] == {"forward_tangent": 1, "backward": 1}
  assert runs["one-pass gradient, all saved"] == {"forward_tangent": 1, "backward": 1}
  recomputed = {"forward": 1, "forward_tangent": 1, "backward": 1}
  assert runs["one-pass gradient, checkpoint"] == recomputed
  assert runs["one-pass gradient, scan"] == recomputed


def matmuls(fn, *args, **kwargs):
  return str(jax.make_jaxpr(functools.partial(fn, **kwargs))(*args)).count("dot_general[")


def test_dead_tangents_and_unwanted_gradients_cost_no_matmul():
  q, k, v, dq, dk, dv = inputs()
  o, row = q, q[..., 0].swapaxes(1, 2)
  call = {"mask": Mask(N, N), "scale": 1.0}
  tangent = lambda dq, dk, dv: matmuls(chunked.tangent, q, k, v, o, row, dq, dk, dv, **call)
  assert tangent(dq, dk, dv) == 5
  assert tangent(dq, None, None) == tangent(None, dk, None) == 3
  assert tangent(None, None, dv) == 2
  fused = lambda dq, dk, dv: matmuls(chunked.forward_tangent, q, k, v, dq, dk, dv, **call)
  assert fused(dq, dk, dv) == 6 and fused(dq, None, None) == 4
  back = lambda *w: matmuls(chunked.backward, q, k, v, row, o, row, wanted=w, **call)
  assert back(True, True, True) == 5
  assert back(True, False, False) == 3 and back(False, False, True) == 2


def test_a_cache_without_tangents_gets_none():
  q, k, v, dq, *_ = inputs()
  jaxpr = str(jax.make_jaxpr(lambda: jax.jvp(lambda q: op(None)(q, k, v), (q,), (dq,)))())
  assert "flags=(True, False, False)" in jaxpr


def test_differentiating_the_tangent_raises_and_dense_attention_can():
  q, k, v, dq, *_ = inputs()

  def gradient(name):
    attend = lambda q: op(name)(q, k, v)
    return jax.grad(lambda q: (jax.jvp(attend, (q,), (dq,))[1] ** 2).sum())(q)

  assert jnp.isfinite(gradient("xla")).all() and (gradient("xla") != 0).any()
  with pytest.raises(NotImplementedError, match="implementation='xla'"):
    gradient(None)
  with pytest.raises(NotImplementedError, match="implementation='xla'"):
    jax.grad(lambda q: (jax.grad(loss, 1)(op(None), q, k, v) ** 2).sum())(q)


def test_memory_of_65k_packed_tokens_is_linear():
  with jax.enable_x64(False):
    chunk = masks.chunk_index(21, 3)

    def peak(tokens):
      info = masks.teacher_forcing_info(chunk).tokens(tokens)
      attend = functools.partial(attention, mask=masks.TeacherForcing(), q_info=info)
      one_pass = lambda x, w: jax.grad(
        lambda w: consistency(attend, x, x, {"q": w, "k": w, "v": w})
      )(w)
      x = jax.ShapeDtypeStruct((1, len(info.frame), 1, 128), jnp.float32)
      w = jax.ShapeDtypeStruct((128, 128), jnp.float32)
      memory = jax.jit(one_pass).lower(x, w).compile().memory_analysis()
      return memory.temp_size_in_bytes + memory.argument_size_in_bytes

    full = peak(1560)
    assert full < 2e9
    assert full < 2.2 * peak(780)


@pytest.mark.parametrize("rule", [masks.CausalFrames(), masks.Valid()], ids=str)
def test_merged_halves_are_the_whole(rule):
  info = masks.token_info(np.arange(N) // TOKENS, valid=np.arange(N) != 3)
  half = N // 2
  halves = [masks.TokenInfo(*(f[s] for f in info)) for s in (slice(half), slice(half, None))]
  x = inputs()[:3]

  def merged(q, k, v):
    cut = lambda x: (x[:, :half], x[:, half:])
    attend = functools.partial(op(None, info, rule, return_lse=True), q)
    parts = zip(cut(k), cut(v), halves, strict=True)
    return merge([attend(k, v, k_info=i) for k, v, i in parts])  # early queries see no late key

  def whole(q, k, v):
    return op(None, info, rule, return_lse=True)(q, k, v)

  def readings(fn):
    total = lambda *x: (fn(*x)[0] ** 2).sum() + jnp.cos(fn(*x)[1][..., 5:]).sum()
    return fn(*x), jax.grad(total, (0, 1, 2))(*x), jax.jvp(fn, x, x)

  assert_close(jax.jit(lambda: readings(merged))(), jax.jit(lambda: readings(whole))())


@pytest.mark.parametrize("static", [True, False])
def test_vmap_over_samples_with_attributes_of_their_own(static):
  lengths = masks.token_info(np.zeros(N, int), valid=np.arange(N) < np.array([[N], [7]]))
  q, k, v, *_ = inputs()
  q3, k3, v3 = (jnp.stack([x, 2 * x, 3 * x], 1) for x in (q, k, v))
  rule = masks.CausalFrames() & masks.Valid()
  if static:  # the same two lengths for each of the three mapped calls
    mapped = jax.vmap(lambda q, k, v: op(None, lengths, rule)(q, k, v), 1, 1)(q3, k3, v3)
  else:  # one length for each mapped call, shared by its samples
    lengths = jax.tree.map(jnp.asarray, masks.TokenInfo(*(f[[0, 1, 1]] for f in lengths)))
    mapped = jax.vmap(lambda q, k, v, i: op(None, i, rule)(q, k, v), (1, 1, 1, 0), 1)(
      q3, k3, v3, lengths
    )
  for i in range(3):
    info = lengths if static else masks.TokenInfo(*(f[i] for f in lengths))
    assert_close(mapped[:, i], op("xla", info, rule)(q3[:, i], k3[:, i], v3[:, i]))


def test_bad_calls_raise_and_say_why():
  q, k, v, *_ = inputs()
  with pytest.raises(ValueError, match="B, Nq, heads, D"):
    attention(q[0], k, v)
  with pytest.raises(ValueError, match="head dim"):
    attention(q[..., :4], k, v)
  with pytest.raises(ValueError, match="float64, float64, float32"):
    attention(q, k, v.astype(jnp.float32))
  with pytest.raises(ValueError, match="needs q_info"):
    attention(q, k, v, RULE)
  with pytest.raises(ValueError, match="needs q_info, and k_info"):
    attention(q, k[:, :7], v[:, :7], RULE, q_info=PACKED)
  with pytest.raises(ValueError, match="k_info has fields"):
    attention(q, k[:, :7], v[:, :7], RULE, q_info=PACKED, k_info=PACKED)
  with pytest.raises(ValueError, match="choose from"):
    attention(q, k, v, implementation="flash")


def test_scale_and_a_function_as_implementation():
  q, k, v, *_ = inputs()
  assert_close(attention(q, k, v, scale=0.5), attention(q * 0.5 * D**0.5, k, v))
  calls = []
  attend = lambda *args, **options: calls.append(options) or attention(*args, **options)
  assert_close(attention(q, k, v, scale=0.5, implementation=attend), attention(q, k, v, scale=0.5))
  assert calls[0]["scale"] == 0.5


FAKE = dataclasses.replace(chunked.KERNELS[0], name="fake", platforms=("tpu",))


def spec(name=None):
  return dispatch.Spec(None, None, None, 1.0, name)


def test_the_best_kernel_of_a_platform_is_picked(monkeypatch):
  monkeypatch.setattr(dispatch, "KERNELS", (FAKE, *chunked.KERNELS))
  pick = functools.partial(dispatch.pick, "forward", spec=spec(), x=inputs()[:3])
  assert pick("tpu") is FAKE
  assert pick("cpu") is chunked.KERNELS[0] and pick("cuda") is chunked.KERNELS[1]


def test_an_experimental_kernel_runs_only_when_named(monkeypatch):
  fake = dataclasses.replace(FAKE, experimental=True)
  monkeypatch.setattr(dispatch, "KERNELS", (fake, *chunked.KERNELS))
  x = inputs()[:3]
  assert dispatch.pick("forward", "tpu", spec(), x) is chunked.KERNELS[1]
  assert dispatch.pick("forward", "tpu", spec("fake"), x) is fake


def test_a_name_never_falls_back_and_every_reason_is_given(monkeypatch):
  narrow = dataclasses.replace(
    FAKE, name="narrow", refuses=lambda mode, q, k, mask: f"no {mode} for head dim {q.shape[-1]}"
  )
  monkeypatch.setattr(dispatch, "KERNELS", (FAKE, narrow, dataclasses.replace(FAKE, name="new")))
  x = inputs()[:3]
  with pytest.raises(NotImplementedError, match="fake: it runs on tpu, not on cpu"):
    dispatch.pick("forward", "cpu", spec("fake"), x)
  with pytest.raises(NotImplementedError, match="narrow: no tangent for head dim 8"):
    dispatch.pick("tangent", None, spec("narrow"), x)
  with pytest.raises(NotImplementedError, match=r"fake: .*; narrow: .*; new: it runs on tpu"):
    dispatch.pick("forward", "cpu", spec(), x)
  with pytest.raises(NotImplementedError, match="not on cpu"):
    jax.jit(lambda q, k, v: attention(q, k, v, implementation="fake"))(*x)
