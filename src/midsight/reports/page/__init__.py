"""The report: a run summarised to plain data, and that data as one HTML file."""
