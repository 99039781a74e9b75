"""How keys and values are stored: as they are, in bfloat16, or in int8 with smoothed keys."""

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16", "int8")


def empty(dtype: str, shape, *, smooth: bool) -> dict[str, jax.Array]:
  """Storage for nothing yet: zeros.

  Args:
    dtype: one of `DTYPES`.
    shape: [..., S, heads, D] of the keys or values.
    smooth: whether a mean over the S tokens is taken off before rounding.

  Returns:
    {"x"} of that shape; for int8 also "scale" [..., S, heads] and, if smooth, "mean"
    [..., heads, D], float32.
  """
  if dtype != "int8":
    return {"x": jnp.zeros(shape, dtype)}
  *lead, s, heads, d = shape
  parts = {"x": jnp.zeros(shape, jnp.int8), "scale": jnp.zeros((*lead, s, heads), jnp.float32)}
  return parts | ({"mean": jnp.zeros((*lead, heads, d), jnp.float32)} if smooth else {})


def store(dtype: str, x: jax.Array, *, smooth: bool) -> dict[str, jax.Array]:
  """Keys or values [..., S, heads, D] as they are stored; the structure of `empty`.

  int8, for every token and head, with m the mean over the S tokens of a frame (0 unless smooth):

      scale = max|x - m| / 127,   q = round((x - m) / scale),   x_hat = q scale + m

  so |x_hat - x| <= scale / 2, and a logit q'k / sqrt(D) is wrong by |q|_2 max|k - m| / 254 at most,
  whatever RoPE does to the key. Keys share a large component over tokens, which the mean takes off
  (SageAttention2, 2411.10958, section 3.2). There it cancels in the softmax; here every frame has
  a mean of its own, which does not, so it is stored and added back. Keys are stored before RoPE:
  after it no component is shared.
  """
  if dtype != "int8":
    return {"x": x.astype(dtype)}
  x = x.astype(jnp.float32)
  mean = x.mean(-3) if smooth else None
  if smooth:
    x = x - mean[..., None, :, :]
  scale = jnp.abs(x).max(-1) / 127
  q = jnp.round(x / jnp.maximum(scale, 1e-30)[..., None]).astype(jnp.int8)
  return {"x": q, "scale": scale} | ({"mean": mean} if smooth else {})


def load(parts: dict[str, jax.Array]) -> jax.Array:
  """[..., S, heads, D] keys or values again from what `store` made of them."""
  x = parts["x"]
  if "scale" in parts:
    x = x.astype(jnp.float32) * parts["scale"][..., None]
  if "mean" in parts:
    x = x + parts["mean"][..., None, :, :]
  return x
