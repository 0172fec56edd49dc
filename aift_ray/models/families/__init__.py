"""Families of models: what is supported, and what some need beside a decoder."""
