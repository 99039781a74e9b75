"""Objectives: one file each, one signature."""
