"""Networks of others in, ours out: public layouts of Wan, safetensors, PyTorch files, LoRA."""

from vidstep.io.export import save_wan
from vidstep.io.lora import load_lora, merge_lora, save_lora
from vidstep.io.wan import load_wan

__all__ = ["load_lora", "load_wan", "merge_lora", "save_lora", "save_wan"]
