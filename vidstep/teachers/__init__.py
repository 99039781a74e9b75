"""Frozen networks: closed-form videos, and pretrained ones."""
