"""From a name to a model: catalog, folders, tokenizers, adapters."""
