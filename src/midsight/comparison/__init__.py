"""`midsight models`: models side by side, from their configs alone."""
