"""One process's share of a run: build, loop, loss, optimizer, evaluation, checkpoint, metrics."""
