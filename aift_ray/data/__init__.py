"""From files to batches: sources, prompts, the token cache, packing, batches."""
