"""The content of a run, summarised to plain data and then rendered."""
