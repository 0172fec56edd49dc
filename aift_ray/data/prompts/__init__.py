"""Rows to token ids through a chat template."""
