"""Runs on Ray: preparation, workers, display. The only folder that imports ray."""
