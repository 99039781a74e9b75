"""Refuses wrong input to the video DiT with one clear sentence each."""

import jax.numpy as jnp

from vidstep.models.remat import POLICIES


def check_fields(model):
  """Raises ValueError if the fields of a `VideoDiT` contradict each other."""
  if model.dim % model.heads or (model.dim // model.heads) % 2:
    raise ValueError(
      f"dim={model.dim} must be heads={model.heads} times an even head size (RoPE turns pairs)."
    )
  if model.prediction not in ("v", "x0"):
    raise ValueError(f"prediction is 'v' or 'x0', not {model.prediction!r}.")
  if model.image_dim is not None and model.text_dim is None:
    raise ValueError("image_dim needs text_dim: image tokens are read beside those of a text.")
  if model.remat is not None and model.remat not in POLICIES:
    raise ValueError(f"remat={model.remat!r} is no policy: take None or one of {list(POLICIES)}.")
  if any(not 0 <= i < model.depth for i in model.features):
    raise ValueError(f"features={model.features} must number blocks 0 to {model.depth - 1}.")


def check_inputs(model, x, t, s, cond, layout, cache):
  """Raises ValueError or NotImplementedError if a `VideoDiT` cannot take these inputs."""
  if cond.shot is not None:
    raise NotImplementedError("shot conditioning is not supported yet; pass cond.shot=None.")
  _check_cache(model, cond, layout, cache)
  if cond.context is not None:
    raise ValueError("pack cond.context in front of x first (layout.pack, or use velocity_fn).")
  if cond.clean is not None:
    raise ValueError("pack cond.clean in front of x first (layout.teacher_forcing or velocity_fn).")
  if x.ndim != 5:
    raise ValueError(f"x must be [B, F, H, W, C], but has shape {x.shape}.")
  b, f, h, w, c = x.shape
  if any(n % p for n, p in zip((f, h, w), model.patch, strict=True)):
    raise ValueError(
      f"frames, height and width {(f, h, w)} must be divisible by patch={tuple(model.patch)}."
    )
  image = 0 if cond.image is None else cond.image.shape[-1]
  if c + image != model.in_channels:
    raise ValueError(
      f"the network takes in_channels={model.in_channels}, but x has {c} and cond.image {image}."
    )
  if c != model.out_channels:
    raise ValueError(f"x has {c} channels, but its velocity would have {model.out_channels}.")
  if cond.image is not None and cond.image.shape[:-1] != x.shape[:-1]:
    raise ValueError(f"cond.image {cond.image.shape} must match x {x.shape} in all but channels.")
  _check_time("t", t, b, f)
  if s is not None:
    if not model.second_time:
      raise ValueError("a second time s needs a network built with second_time=True.")
    _check_time("s", s, b, f)
  if layout is not None and layout.info.frame.shape[-1] != f:
    raise ValueError(f"layout describes {layout.info.frame.shape[-1]} frames, but x has {f}.")
  _check_actions(model, cond.actions, b, f)
  _check_text(model, cond, b)
  _check_image_tokens(model, cond, b, cache)


def _check_time(name, t, b, f):
  if t.dtype not in (jnp.float32, jnp.float64):
    raise ValueError(f"{name} must be float32, not {t.dtype}: bfloat16 would round 937.5 to 936.")
  if t.shape not in ((b,), (b, f)):
    raise ValueError(f"{name} must be [B]=({b},) or [B, F]=({b}, {f}), but has shape {t.shape}.")


def _check_actions(model, actions, b, f):
  if actions is None:
    return
  if not model.action_dim:
    raise ValueError("actions need a network built with action_dim > 0.")
  per, a = model.actions_per_frame, model.action_dim
  want = (b, f, a) if per == 1 and actions.ndim == 3 else (b, f, per, a)
  if actions.shape != want:
    raise ValueError(
      f"actions must have shape {want} (one entry for each of {f} frames), not {actions.shape}."
    )


def _check_image_tokens(model, cond, b, cache):
  if model.image_dim is None:
    if cond.image_tokens is not None:
      raise ValueError("image_tokens need a network built with image_dim.")
    return
  cached = cache is not None and cache.text is not None
  want = (b, model.image_tokens, model.image_dim)
  if not cached and (cond.image_tokens is None or cond.image_tokens.shape != want):
    got = None if cond.image_tokens is None else cond.image_tokens.shape
    raise ValueError(
      f"this network looks at an image: cond.image_tokens must be [B, M, Di] = {want}, not {got}."
    )


def _check_text(model, cond, b):
  if cond.text is None:
    if cond.text_mask is not None:
      raise ValueError("cond.text_mask is given without cond.text.")
    return
  if model.text_dim is None:
    raise ValueError("text needs a network built with text_dim.")
  if cond.text.ndim != 3 or cond.text.shape[::2] != (b, model.text_dim):
    raise ValueError(
      f"text must be [B={b}, L, text_dim={model.text_dim}], but has shape {cond.text.shape}."
    )
  if cond.text_mask is not None and cond.text_mask.shape != cond.text.shape[:2]:
    raise ValueError(
      f"text_mask must have shape {cond.text.shape[:2]}, not {cond.text_mask.shape}."
    )


def _check_cache(model, cond, layout, cache):
  patch, kind = tuple(model.patch), "absolute" if layout is None else layout.positions.kind
  if patch[0] > 1 and (cache is not None or kind == "capped"):
    raise NotImplementedError(
      f"a cache and capped positions count single frames: patch={patch} must begin with 1."
    )
  if cache is None:
    return
  if cache.layers is not None and layout is None:
    raise ValueError("frames behind a cache need a layout that numbers them; pass layout.")
  if cache.text is not None and cond.text is not None:
    raise ValueError("the cache holds the text already; pass cond.text=None.")
