"""The small decoder against a plain NumPy one that walks frame by frame through TAEHV's layers."""

from functools import partial

import jax
import numpy as np
import pytest

from tests.io.wan_files import write
from tests.mutation import assert_caught
from vidstep.io import load_wan
from vidstep.models import vae as vaes
from vidstep.models.vae import TinyDecoder, tiny
from vidstep.models.vae.layers import DoubleSpace

WIDTHS, CHANNELS = (5, 4, 3, 3), 2
GROWS = (1, 2, 2)


def state(stored=GROWS):
  """A checkpoint under TAEHV's names, every weight random."""
  rng = np.random.default_rng(0)
  out = {"encoder.0.weight": np.zeros((3, 3), np.float32)}

  def conv(name, width, channels, side=3, bias=True):
    scale = (channels * side * side) ** -0.5 * 0.8
    kernel = scale * rng.standard_normal((width, channels, side, side))
    out[f"{name}.weight"] = kernel.astype(np.float32)
    if bias:
      out[f"{name}.bias"] = (0.2 * rng.standard_normal(width)).astype(np.float32)

  conv("decoder.1", WIDTHS[0], CHANNELS)
  for i in range(3):
    c, first = WIDTHS[i], 3 + 6 * i
    for j in range(3):
      for k, n in ((0, 2 * c), (2, c), (4, c)):
        conv(f"decoder.{first + j}.conv.{k}", c, n)
    conv(f"decoder.{first + 4}.conv", c * stored[i], c, 1, bias=False)
    conv(f"decoder.{first + 5}", WIDTHS[i + 1], c, bias=False)
  conv("decoder.22", 3, WIDTHS[3])
  out["decoder.22.bias"] += 0.5
  return out


def reference(weights, latents):
  """[F, C, h, w] -> [1 + 4 (F - 1), 3, H, W] in [0, 1], in float64."""
  weights = {n: a.astype(np.float64) for n, a in weights.items()}

  def conv(x, name):
    kernel = weights[f"{name}.weight"]
    pad = kernel.shape[-1] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[-2:], axis=(1, 2))
    y = np.einsum("chwij,ocij->ohw", windows, kernel)
    return y + weights.get(f"{name}.bias", np.zeros(len(y)))[:, None, None]

  relu = lambda x: np.maximum(x, 0)
  frames = [relu(conv(3 * np.tanh(z.astype(np.float64) / 3), "decoder.1")) for z in latents]
  for i, grow in enumerate(GROWS):
    first = 3 + 6 * i
    for j in range(first, first + 3):
      past = [np.zeros_like(frames[0]), *frames[:-1]]
      mixed = [np.concatenate(pair) for pair in zip(frames, past, strict=True)]
      for k in (0, 2, 4):
        mixed = [conv(x if k == 0 else relu(x), f"decoder.{j}.conv.{k}") for x in mixed]
      frames = [relu(m + x) for m, x in zip(mixed, frames, strict=True)]
    frames = [x.repeat(2, axis=1).repeat(2, axis=2) for x in frames]
    frames = [part for x in frames for part in np.split(conv(x, f"decoder.{first + 4}.conv"), grow)]
    frames = [conv(x, f"decoder.{first + 5}") for x in frames]
  return np.clip(np.stack([conv(relu(x), "decoder.22") for x in frames]), 0, 1)[3:]


def check(tmp_path, weights, oracle=None):
  path = write(tmp_path / "taew2_1.safetensors", weights)
  model, params = load_wan(path, "tiny_decoder", widths=WIDTHS)
  assert model == TinyDecoder(channels=CHANNELS, widths=WIDTHS)
  z = np.random.default_rng(1).standard_normal((2, 3, 2, 3, CHANNELS)).astype(np.float32)
  want = np.stack([reference(oracle or weights, a.transpose(0, 3, 1, 2)) for a in z])
  want = 2 * want.transpose(0, 1, 3, 4, 2) - 1
  assert want.shape == (2, 9, 16, 24, 3) and 0.1 < np.std(want) < 0.8
  got = jax.jit(partial(vaes.decode, model))(params, z)
  np.testing.assert_allclose(got, want, atol=1e-5)
  return model, params, z, got


def test_matches_numpy_and_streams(tmp_path):
  model, params, z, whole = check(tmp_path, state())
  run = jax.jit(partial(vaes.decode_chunk, model))
  parts, memory = [], None
  for i in range(3):
    video, memory = run(params, z[:, i : i + 1], memory)
    parts.append(video)
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
  assert [p.shape[1] for p in parts] == [1, 4, 4] and run._cache_size() == 2


def test_weights_for_frames_that_are_not_made_are_left_out(tmp_path):
  stored = state(stored=(2, 2, 2))
  plain = stored | {"decoder.7.conv.weight": stored["decoder.7.conv.weight"][WIDTHS[0] :]}
  check(tmp_path, stored, plain)


def test_another_file_is_named(tmp_path):
  path = write(tmp_path / "x.safetensors", {"a": np.zeros(2, np.float32)})
  with pytest.raises(ValueError, match="no decoder of TAEHV"):
    load_wan(path, "tiny_decoder")


def test_memory_of_the_wrong_frame_is_noticed(tmp_path, monkeypatch):
  backwards = lambda *a, **k: lambda x: DoubleSpace(*a, **k)(x[:, ::-1])
  monkeypatch.setattr(tiny, "DoubleSpace", backwards)
  assert_caught(check, tmp_path, state())
