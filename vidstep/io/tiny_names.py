"""Names of TAEHV's decoder: the layers of one `nn.Sequential`, by their numbers."""

from collections.abc import Iterator, Mapping

from vidstep.io.rules import CONVOLUTION, Rule, layer, pointwise


def tiny_rules(model) -> Iterator[Rule]:
  """The rules of a `TinyDecoder` in the names of `taew2_1.pth`."""
  yield from layer("conv_in", "decoder.1", CONVOLUTION)
  for i, first in _levels(model):
    for j in range(model.depth):
      for k in range(3):
        ours, theirs = f"level{i}_block{j}/conv{k}", f"decoder.{first + j}.conv.{2 * k}"
        yield from layer(ours, theirs, CONVOLUTION)
    # Behind the blocks: doubling of space (without weights), of time, and a convolution.
    grow, space = first + model.depth + 1, first + model.depth + 2
    yield from layer(f"level{i}_time/linear", f"decoder.{grow}.conv", pointwise(2), bias=False)
    yield from layer(f"level{i}_space", f"decoder.{space}", CONVOLUTION, bias=False)
  last = 4 + (model.depth + 3) * len(model.temporal)
  yield from layer("conv_out", f"decoder.{last}", CONVOLUTION)


def tiny_tensors(tensors: Mapping, model) -> dict:
  """The tensors that `tiny_rules` asks for: those of the decoder.

  A level that does not double time may be stored with the weights for two frames, of which the
  second is the one to keep.

  Args:
    tensors: name to array, of the whole autoencoder or its decoder alone.
    model: the `TinyDecoder`.

  Returns:
    Name to array, views of the given ones.
  """
  out = {name: a for name, a in tensors.items() if not name.startswith("encoder.")}
  for i, first in _levels(model):
    name = f"decoder.{first + model.depth + 1}.conv.weight"
    if name in out and not model.temporal[i]:
      out[name] = out[name][-out[name].shape[1] :]
  return out


def _levels(model):
  """(level, number of its first layer): clamp, convolution and ReLU come first."""
  return [(i, 3 + (model.depth + 3) * i) for i in range(len(model.temporal))]
