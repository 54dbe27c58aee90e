"""From the summary to the page."""
