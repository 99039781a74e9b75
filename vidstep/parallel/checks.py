"""Refuses meshes on which a network cannot run, before anything is traced."""

import math

from vidstep.parallel.attention import ShardedAttention
from vidstep.parallel.sharding import rules_of


def check_network(name, model, *, frames, size, context=0, teacher_forced=False, chunks=()):
  """Refuses a `VideoDiT` whose heads, widths or frames do not divide among the devices of its mesh.

  Args:
    name: what to call it in the message, such as "student".
    model: the network; one that is not sharded passes.
    frames: latent frames F of a batch, after the context.
    size: (height, width) of a latent frame.
    context: clean latent frames before them.
    teacher_forced: whether it reads the clean copy of the frames as well.
    chunks: lengths in which it generates behind a cache; empty if it does not.

  Raises:
    ValueError: in one sentence that says what to change.
  """
  attend = model.attention
  if not isinstance(attend, ShardedAttention):
    return
  sequence, tensor = attend.shards, attend.mesh.shape[attend.heads] if attend.heads else 1
  for field, width in (("heads", model.heads), ("ffn_dim", model.ffn_dim or 4 * model.dim)):
    if width % tensor:
      raise ValueError(
        f"{name}: mesh.tensor={tensor} does not divide model.{field}={width}: choose one of "
        f"{_divisors(math.gcd(model.heads, width))}."
      )
  if attend.method == "all_to_all" and model.heads // tensor % sequence:
    raise ValueError(
      f"{name}: all_to_all gives every device its share of {model.heads // tensor} heads, which "
      f"mesh.sequence={sequence} does not divide: choose one of "
      f'{_divisors(model.heads // tensor)}, or mesh.sequence_method="ring".'
    )
  patch = model.patch[0]
  parts = (frames, context + frames) if teacher_forced else (context + frames,)
  tokens = size[0] // model.patch[1] * (size[1] // model.patch[2])
  if tokens % sequence and any(n % (sequence * patch) for n in parts):
    given = f"{context} + {frames}" if context else f"{frames}"
    near = [n for n in range(frames - sequence * patch, frames + sequence * patch + 1)]
    near = [n for n in near if n > 0 and not (n % (sequence * patch) or n == frames)]
    whole = math.gcd(*(n // patch for n in parts))
    fits = [d for d in range(1, 33) if not tokens % d or not whole % d]
    raise ValueError(
      f"{name}: mesh.sequence={sequence} divides neither the {given} latent frames of a video"
      f"{f' in patches of {patch}' if patch > 1 else ''} nor the {tokens} tokens of each: choose "
      + (f"data.frames={' or '.join(map(str, near))}, or " if not context else "")
      + f"mesh.sequence among {fits}."
    )
  for chunk in chunks:
    if chunk * tokens % sequence:
      raise ValueError(
        f"{name}: mesh.sequence={sequence} does not divide the {chunk * tokens} tokens that it "
        f"generates together: choose one of {_divisors(chunk * tokens)[:6]}."
      )


def check_rules(mesh, rules):
  """Refuses a preset that leaves every device of a `tensor` axis with whole matrices.

  Raises:
    ValueError: naming presets that cut them.
  """
  given = rules_of(rules) if isinstance(rules, str) else rules
  if mesh.shape["tensor"] > 1 and not any(cut.tensor for _, cut in given):
    raise ValueError(
      f'mesh.tensor={mesh.shape["tensor"]} with mesh.rules="{rules}", which cuts no matrix: '
      'choose "tensor", "fsdp_tensor" or "fsdp_sequence_tensor".'
    )


def _divisors(n):
  return [d for d in range(1, n + 1) if n % d == 0]
