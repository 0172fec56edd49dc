"""Data files to rows: formats, encodings, and the schema of a row."""
