"""Where a network's weights lie: in a release, a diffusers pipeline, a file, or on the hub."""

import pathlib
import re

from vidstep.io.configs import read_config

# Of each part: its files in the original release, its folder in a diffusers pipeline, and the class
# that the config.json of that folder names.
_PLACES = {
  "transformer": ("diffusion_pytorch_model*.safetensors*", "transformer", "WanTransformer3DModel"),
  "vae": ("Wan2.1_VAE.pth", "vae", "AutoencoderKLWan"),
  "text_encoder": ("models_t5_*.pth", "text_encoder", "UMT5EncoderModel"),
  "image_encoder": ("models_clip_*.pth", "image_encoder", "CLIPVisionModel"),
  "tiny_decoder": ("taew2_1.*", "tiny_decoder", None),
  "tokenizer": ("google/umt5-xxl/tokenizer.json", "tokenizer", None),
  "scheduler": ("scheduler_config.json", "scheduler", None),
}


def find(path, part: str) -> pathlib.Path:
  """The file or folder that holds the weights of one part.

  Args:
    path: that file or folder itself, a folder of the original release or of a diffusers pipeline,
      or "owner/name" of a repository on the Hugging Face hub, which is then downloaded.
    part: see `load_wan`.

  Raises:
    FileNotFoundError: saying what was looked for.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return path
  if not path.exists():
    path = _download(path, part)
  pattern, folder, kind = _PLACES[part]
  if (path / folder).is_dir():
    return path / folder
  config = read_config(path)
  if kind is not None and kind in (config.get("_class_name"), *config.get("architectures", ())):
    return path
  released = sorted(path.glob(pattern))
  if part == "transformer":
    if released:
      return path
    released = sorted(path.glob("*.pt"))  # students
  if len(released) == 1:
    return released[0]
  raise FileNotFoundError(
    f"{path} holds no {part}: there is neither a folder {folder}/, nor a file {pattern}."
  )


def _download(path, part):
  """Fetches the part of a repository that is asked for, and nothing else."""
  name = path.as_posix()
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
    raise FileNotFoundError(f"there is nothing at {path}.")
  command = f"`hf download {name} --local-dir FOLDER`"
  try:
    import huggingface_hub
  except ImportError as e:
    raise FileNotFoundError(
      f"there is nothing at {path}; to fetch the repository of that name from the hub, "
      f"`pip install huggingface_hub` and try again, or run {command} where there is a network, "
      "and give the folder."
    ) from e
  pattern, folder, _ = _PLACES[part]
  wanted = [f"{folder}/*", pattern, "config.json", "*.pt"]
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
  except Exception as e:
    why = (str(e).strip() or type(e).__name__).splitlines()[0].rstrip(".")
    raise FileNotFoundError(
      f"cannot fetch {name} from the hub: {why}. Run {command} where there is a network, and give "
      "the folder."
    ) from e
