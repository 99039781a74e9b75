"""Where weights are looked for: folders, files, and the hub, of which a fake stands here."""

import json
import sys
import types

import pytest

from vidstep.io.files import find


def touch(path, text="{}"):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def test_the_original_release(tmp_path):
  touch(tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors")
  vae = touch(tmp_path / "Wan2.1_VAE.pth")
  text = touch(tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
  image = touch(tmp_path / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
  assert find(tmp_path, "transformer") == tmp_path
  assert find(tmp_path, "vae") == vae
  assert find(tmp_path, "text_encoder") == text
  assert find(tmp_path, "image_encoder") == image


@pytest.mark.parametrize("part, entry", [
  ("transformer", {"_class_name": "WanTransformer3DModel"}),
  ("vae", {"_class_name": "AutoencoderKLWan"}),
  ("text_encoder", {"architectures": ["UMT5EncoderModel"]}),
  ("image_encoder", {"architectures": ["CLIPVisionModel"]}),
])  # fmt: skip
def test_a_part_of_a_pipeline_alone_or_in_it(tmp_path, part, entry):
  touch(tmp_path / part / "config.json", json.dumps(entry))
  assert find(tmp_path, part) == tmp_path / part
  assert find(tmp_path / part, part) == tmp_path / part


def test_a_folder_with_one_student(tmp_path):
  student = touch(tmp_path / "self_forcing_dmd.pt")
  assert find(tmp_path, "transformer") == student
  touch(tmp_path / "another.pt")
  with pytest.raises(FileNotFoundError, match="holds no transformer"):
    find(tmp_path, "transformer")


def test_a_repository_is_fetched_and_only_what_is_asked_for(tmp_path, monkeypatch):
  asked = {}

  def snapshot_download(name, allow_patterns):
    asked.update(name=name, patterns=allow_patterns)
    touch(tmp_path / "vae" / "config.json")
    return str(tmp_path)

  fake = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
  assert find("owner/name", "vae") == tmp_path / "vae"
  assert asked["name"] == "owner/name" and "vae/*" in asked["patterns"]
  assert not any("transformer" in p or "t5" in p for p in asked["patterns"])


def test_a_repository_that_cannot_be_fetched_is_named(monkeypatch):
  def snapshot_download(name, allow_patterns):
    raise OSError("no route")

  fake = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
  with pytest.raises(
    FileNotFoundError,
    match=r"cannot fetch owner/name from the hub: no route\. Run `hf download owner/name",
  ):
    find("owner/name", "vae")
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(FileNotFoundError, match="`pip install huggingface_hub`"):
    find("owner/name", "vae")
