"""Datasets in: samples, the tables they come from, and their images."""
