"""The documented trainers and the quantizer: thin fronts, one a file."""
