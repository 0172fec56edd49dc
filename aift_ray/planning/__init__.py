"""Arithmetic of memory from numbers in a model's configuration; imports no torch."""
