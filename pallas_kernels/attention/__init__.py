"""Attention kernels: forward, tangent and backward over a rule and a tile map."""
