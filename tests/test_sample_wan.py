"""experiments.sample --model: files, settings and reports of a tiny Wan."""

import json
import pathlib

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_all
from PIL import Image

from experiments import sample_wan
from experiments.flags import load_config, parse_size, read_lines
from experiments.sample_files import plan_jobs, still_to_do
from experiments.sample_wan import Order, draw, setting_of, size_of
from tests.wan_release import CHANNELS, TEXT_DIM, make_release
from vidstep.masks import Window
from vidstep.releases import WAN
from vidstep.teachers.wan import Wan, open_wan

pytestmark = pytest.mark.usefixtures("unoptimized")
ROOT = pathlib.Path(__file__).parents[1]
SIZE, FRAMES = (16, 32), 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return make_release(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
  """Of image to video."""
  return make_release(tmp_path_factory.mktemp("wan") / "i2v", image=True)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
  """Of the shape of `folder`, with other weights."""
  return make_release(tmp_path_factory.mktemp("wan") / "student", seed=1)


def order(folder, out, prompts=("a cat",), **other):
  usual = {"size": SIZE, "frames": FRAMES, "steps": 2, "dtype": "float32"}
  return Order(model=str(folder), prompts=tuple(prompts), out=str(out), **usual | other)


def read(path):
  with av.open(str(path)) as video:
    return video.metadata["comment"], len(list(video.decode(video=0)))


def test_from_the_command_line(tmp_path):
  """Where everything meets: random weights, flags, networks, files, report."""
  folder, out, report = tmp_path / "tiny", tmp_path / "a" / "x.mp4", tmp_path / "report.json"
  commands = [
    ("wan_random", "--size=tiny", f"--out={folder}"),
    ("sample", f"--model={folder}", "--prompt=a cat", "--size=16x32", "--frames=5", "--steps=2",
     "--solver=unipc", "--shift=5", "--guidance=5", f"--out={out}", f"--report={report}"),
    ("sample", f"--model={folder}", "--prompt=a", "--size=20x32"),
  ]  # fmt: skip
  made, drawn, refused = run_all(commands)
  assert made[0] == 0 and "GB of random weights" in made[1], made[2][-2000:]
  assert drawn[0] == 0, drawn[2][-2000:]
  assert read(out) == ("AI-generated, made by vidstep with tiny", 5)
  for said in ("load ", "text ", "denoise ", "decode ", "write ", "peak memory: host "):
    assert said in drawn[1]
  told = json.loads(report.read_text())
  assert told["nfe"] == 4 and told["size"] == [16, 32] and told["files"] == [str(out)]
  assert set(told["seconds"]) == {"load", "text", "denoise", "compile", "decode", "write"}
  assert told["peak_memory"]["host"] > 1e7 and "cpu" in told["device"]
  assert told["command"].startswith("python -m experiments.sample --model=")
  assert refused[0] == 1 and "nearest is 16 x 32" in refused[2]


def test_vbench_layout_goes_on_where_it_was_cut_short(folder, tmp_path):
  prompts, out = ("A cat's 1st day.", "two dogs"), tmp_path / "videos"
  asked = order(folder, out, prompts, layout="vbench", videos=2, guidance=1.0)
  made = draw(asked)
  names = [f"{p}-{i}.mp4" for p in prompts for i in range(2)]
  assert sorted(p.name for p in out.iterdir()) == sorted(names)  # and nothing else
  files = {name: (out / name).read_bytes() for name in names}
  assert len(set(files.values())) == 4 and len(made["seconds"]["denoise"]) == 4
  (out / names[1]).unlink()
  again = draw(asked)
  assert again["files"] == [str(out / names[1])]
  # Alone it is what it was among others.
  assert {name: (out / name).read_bytes() for name in names} == files
  with pytest.raises(ValueError, match="made with another seed"):
    draw(order(folder, out, prompts, layout="vbench", videos=2, guidance=1.0, seed=1))


class FakeSampler:
  """Returns the noise; remembers what it was asked."""

  compile_seconds = 0.0
  asked = ()

  def __init__(self, wan, setting):
    self.setting = setting

  def __call__(self, noise, cond, null, key, progress):
    FakeSampler.asked += ((np.asarray(noise), cond, null, self.setting),)
    progress(1, 1)
    return noise


@pytest.fixture
def fake(monkeypatch):
  """No network is run and no latent decoded."""
  grey = lambda wan, latents: np.full((1, 4 * latents.shape[1] - 3, 16, 16, 3), 128, np.uint8)
  monkeypatch.setattr(sample_wan, "Sampler", FakeSampler)
  monkeypatch.setattr(FakeSampler, "asked", ())
  monkeypatch.setattr(Wan, "decode", grey)


def test_processes_share_the_videos(folder, tmp_path, monkeypatch, fake):
  monkeypatch.setattr(sample_wan.jax, "process_count", lambda: 2)
  monkeypatch.setattr(sample_wan.jax, "process_index", lambda: 1)
  (tmp_path / "v.json").write_text("{}")
  asked = order(folder, tmp_path / "v", ["a", "b", "c"], layout="vbench", videos=1)
  assert [pathlib.Path(p).name for p in draw(asked)["files"]] == ["b-0.mp4"]
  # The other is done with "a" before this one looks: "b" is still its own.
  (tmp_path / "v" / "a-0.mp4").touch()
  (tmp_path / "v" / "b-0.mp4").unlink()
  assert [pathlib.Path(p).name for p in draw(asked)["files"]] == ["b-0.mp4"]


def test_noise_is_of_seed_prompt_and_index_and_conditions_arrive(folder, tmp_path, fake):
  how = {"size": (16, 16), "frames": 1}
  draw(order(folder, tmp_path / "x.png", ["a", "b"], videos=2, negative="no", **how))
  draw(order(folder, tmp_path / "y.webp", ["b"], seed=3, **how))
  draw(order(folder, tmp_path / "z.gif", ["b"], **how))
  noises = [noise for noise, *_ in FakeSampler.asked]
  assert noises[0].shape == (1, 1, 2, 2, CHANNELS)
  assert len({noise.tobytes() for noise in noises}) == 5
  np.testing.assert_array_equal(noises[5], noises[2])
  assert [p.name for p in sorted((tmp_path / "x").iterdir())] == [
    "000-a-0.png", "000-a-1.png", "001-b-0.png", "001-b-1.png",
  ]  # fmt: skip
  with Image.open(tmp_path / "x" / "000-a-0.png") as image:
    assert image.size == (16, 16) and "AI-generated" in image.info["Description"]
  wan = open_wan(folder, dtype=jnp.float32)
  _, cond, null, _ = FakeSampler.asked[0]
  np.testing.assert_allclose(cond.text, wan.embed(["a"]), atol=1e-6)
  np.testing.assert_allclose(null.text, wan.embed(["no"]), atol=1e-6)
  default = FakeSampler.asked[5][2].text
  np.testing.assert_allclose(default, wan.embed([sample_wan.NEGATIVE]), atol=1e-6)
  assert default.shape[-1] == TEXT_DIM


def test_settings_are_asked_for_or_usual():
  release = WAN["wan2.1-i2v-14b-480p"]
  usual = setting_of(order("x", "y", steps=None), release)
  assert (len(usual.times), usual.solver, usual.guidance, usual.chunk) == (51, "unipc", 5.0, None)
  np.testing.assert_allclose(usual.times[0], 3 * 0.999 / (1 + 2 * 0.999), rtol=1e-6)
  few = setting_of(order("x", "y", steps=2, times="causal", chunk=3, window=9, sink=3), release)
  assert (few.times, few.solver, few.guidance) == ((1.0, 0.9375, 0.0), "consistency", 1.0)
  assert (few.chunk, few.mask) == (3, Window(9, 3))
  other = setting_of(
    order("x", "y", times=(0.5,), steps=None, solver="euler", guidance=2.0), release
  )
  assert (other.times, other.solver, other.guidance) == ((1.0, 0.5, 0.0), "euler", 2.0)
  with pytest.raises(ValueError, match="give its --chunk"):
    setting_of(order("x", "y", window=9), release)


def test_a_picture_gives_the_size(image_folder):
  wan = open_wan(image_folder, dtype=jnp.float32)
  ask = order("x", "y", size=None)
  assert size_of(ask, wan, None) == (480, 832)
  height, width = size_of(ask, wan, np.zeros((300, 100, 3), np.uint8))
  assert (height, width) == (1088, 352) and wan.latent_shape(height, width, 5)
  assert size_of(order("x", "y"), wan, np.zeros((9, 9, 3), np.uint8)) == SIZE


def test_image_to_video_and_a_causal_student(tmp_path, folder, image_folder, student, fake):
  Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "p.png")
  how = {"image": str(tmp_path / "p.png"), "guidance": 1.0, "steps": 1}
  assert draw(order(image_folder, tmp_path / "x.mp4", **how))["nfe"] == 1
  causal = {"chunk": 1, "times": "causal", "steps": 2}
  transformer = str(student / "transformer")
  made = draw(order(folder, tmp_path / "y.mp4", transformer=transformer, **causal))
  assert made["nfe"] == 6 and read(tmp_path / "y.mp4")[0].endswith("tiny, transformer")
  (_, image, _, _), (_, _, _, setting) = FakeSampler.asked
  assert image.image.shape == (1, 2, 2, 4, 4 + CHANNELS) and image.image_tokens is not None
  assert (setting.chunk, setting.times) == (1, (1.0, 0.9375, 0.0))
  with pytest.raises(ValueError, match="give --image"):
    draw(order(image_folder, tmp_path / "x.mp4"))
  with pytest.raises(ValueError, match="from text alone"):
    draw(order(folder, tmp_path / "x.mp4", **how))


def test_a_network_of_a_run_is_drawn_as_the_run_says(folder, student, tmp_path, monkeypatch, fake):
  config = load_config(ROOT / "configs/wan/tf_dcm.py:tiny").to_dict()
  params = jax.tree.map(np.asarray, open_wan(student).params)
  monkeypatch.setattr(sample_wan, "resolve_reference", lambda reference: reference)
  monkeypatch.setattr(sample_wan, "load_network", lambda reference: (config, params))
  said = {"transformer": "runs/x:student:ema", "steps": None}
  draw(order(folder, tmp_path / "x.png", **said))
  draw(order(folder, tmp_path / "x.png", **said | {"steps": 1, "guidance": 2.0, "chunk": 1}))
  (*_, own), (*_, asked) = FakeSampler.asked
  np.testing.assert_allclose(own.times, (1, 15 / 16, 5 / 6, 5 / 8, 0), rtol=1e-6)
  assert (own.solver, own.guidance, own.chunk) == ("consistency", 1.0, 3)
  assert (asked.times, asked.guidance, asked.chunk) == ((1.0, 0.0), 2.0, 1)
  wan, _ = sample_wan.open_network(order(folder, "y", **said))
  assert wan.params is params and wan.model.dtype == jnp.float32


def test_files_are_named_by_prompts_or_given_names(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_text("A  red ball!\n\n喵\n", encoding="utf-8")
  prompts = read_lines(path)
  assert prompts == ["A  red ball!", "喵"]
  plain = [str(j.path) for j in plan_jobs(prompts, "o.webp")]
  assert plain == ["o/000-a-red-ball-0.webp", "o/001-喵-0.webp"]
  assert [str(j.path) for j in plan_jobs(["x"], "o")] == ["o.mp4"]
  vbench = plan_jobs(["long"], "o", layout="vbench", names=["short"])
  assert [j.path.name for j in vbench] == [f"short-{i}.mp4" for i in range(5)]
  assert vbench[0].prompt == "long"


@pytest.mark.parametrize(
  "call, said",
  [(lambda t: read_lines(t / "none"), "no file of prompts"),
   (lambda t: parse_size("480"), "HEIGHTxWIDTH"),
   (lambda t: plan_jobs(["a/b"], "o", layout="vbench"), "cannot be a file name"),
   (lambda t: plan_jobs(["a"], "o", names=["b", "c"]), "one for each"),
   (lambda t: sample_wan.read_picture(t / "none.png"), "no picture")],
)  # fmt: skip
def test_bad_requests_are_refused_with_a_sentence(call, said, tmp_path):
  with pytest.raises((ValueError, FileNotFoundError), match=said):
    call(tmp_path)


def test_other_settings_are_noticed_only_if_there_are_videos(tmp_path):
  jobs = plan_jobs(["a"], tmp_path / "o", layout="vbench", videos=1)
  assert still_to_do(jobs, tmp_path / "o", {"seed": 0, "size": (1, 2)}) == jobs
  assert still_to_do(jobs, tmp_path / "o", {"seed": 1, "size": (1, 2)}) == jobs
