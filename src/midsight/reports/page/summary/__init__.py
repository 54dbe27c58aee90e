"""From a run to the summary."""
