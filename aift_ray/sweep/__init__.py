"""Hyperparameter sweeps: search space, trials, search, results, plots."""
