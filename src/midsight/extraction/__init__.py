"""From samples to records: preparing, prefill, decode, and the loop of a run."""
