"""What a run holds, summarised to plain data and then rendered."""
