"""Engines against their peers: one module per family of models."""
