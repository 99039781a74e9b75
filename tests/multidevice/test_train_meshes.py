"""The trainer on a mesh of all axes: the numbers of eight copies, pictures, and early refusals."""

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import synthetic_causal
from experiments import train
from vidstep.training.checkpoint import load_network
from vidstep.training.log import read_metrics

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("unoptimized")]


def run(workdir, sample_every=0, **mesh):
  """Teacher forcing behind a frame of context: three frames, so that these are shared by tokens."""
  config = synthetic_causal.get_config("tf,tiny")
  config.data.path = "synthetic:clips=16,frames=4,size=16"
  config.train.update(steps=2, save_every=2, sample_every=sample_every)
  config.eval.steps = 1
  config.mesh.update(mesh)
  return train.train(config, workdir)


def test_a_run_on_all_axes_is_that_of_copies(tmp_path):
  run(tmp_path / "copies")
  axes = {"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2, "rules": "fsdp_tensor"}
  state = run(tmp_path / "axes", sample_every=2, **axes)
  kernel = state.nets["model"].ema["blocks_0"]["ffn_in"]["kernel"]
  assert kernel.sharding.spec == P("fsdp", "tensor")
  rows = [read_metrics(tmp_path / name) for name in ("copies", "axes")]
  for before, after in zip(*rows, strict=True):
    for name in ("model/loss", "model/grad_norm"):
      np.testing.assert_allclose(after[name], before[name], rtol=1e-5)
  assert list((tmp_path / "axes" / "samples").glob("*.png"))
  assert load_network(f"{tmp_path / 'axes'}:model:ema")[1]["head"]["kernel"].shape == (32, 192)


@pytest.mark.parametrize(
  ("mesh", "message"),
  [
    ({"tensor": 4, "rules": "tensor"}, "mesh.tensor=4 does not divide model.heads=2"),
    ({"tensor": 2}, 'mesh.tensor=2 with mesh.rules="fsdp"'),
    ({"sequence": 8}, "mesh.sequence=8 divides neither the 1 . 3 latent frames"),
    ({"sequence": 2, "tensor": 2, "rules": "tensor", "sequence_method": "all_to_all"},
     "its share of 1 heads"),
  ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_traced(tmp_path, mesh, message):
  with pytest.raises(ValueError, match=message):
    run(tmp_path, **mesh)
