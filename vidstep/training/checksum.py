"""Checksums of trees of arrays, the same whatever mesh they lie on."""

import math

import jax
import jax.numpy as jnp

FACTOR = 1000003  # between leaves


def checksum(parts):
  """One 32-bit number for each part: the sum mod 2^32 of `mix(word_i, i)` over its leaves' words.

  `mix` is the finalizer of MurmurHash3, so lost, zeroed, flipped and exchanged words all show.
  Integer sums have no rounding: the order in which devices add does not matter.

  Args:
    parts: name -> tree of arrays (PRNG keys allowed).

  Returns:
    name -> Python int.
  """
  return {name: int(value) for name, value in jax.device_get(_checksums(parts)).items()}


def checksum_of(tree) -> int:
  """`checksum` of one tree, leaf by leaf: takes the memory of one leaf beside them, not of all.

  A CPU's compiler writes out the words that are summed, up to twice the bytes of the weights.
  """
  total = 0
  for leaf in jax.tree.leaves(tree):
    total = (total * FACTOR + int(_leaf(leaf))) % 2**32
  return total


@jax.jit
def _checksums(parts):
  return {name: _tree(part) for name, part in parts.items()}


def _tree(tree):
  total = jnp.uint32(0)
  for leaf in jax.tree.leaves(tree):
    total = total * jnp.uint32(FACTOR) + _leaf(leaf)
  return total


@jax.jit
def _leaf(x):
  x = jnp.asarray(x)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  word = jnp.dtype(f"uint{min(x.dtype.itemsize * 8, 32)}")
  words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
  # The index of a word comes from its coordinates: nothing is reshaped, hence nothing moves
  # between devices.
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    stride = jnp.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
    index = index + stride * jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  return jnp.sum(_mix(words ^ (index * jnp.uint32(0x9E3779B9))), dtype=jnp.uint32)


def _mix(h):
  h = (h ^ (h >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
  return h ^ (h >> jnp.uint32(16))
