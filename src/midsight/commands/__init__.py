"""The commands of `midsight`: one file for each."""
