"""Meshes, sharding rules, sharded attention."""
