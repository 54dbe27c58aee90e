"""Speed of midsight as a ratio to the procedure that people run today: `python -m benchmarks`."""
