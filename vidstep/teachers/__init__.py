"""Frozen references: closed-form videos first."""
