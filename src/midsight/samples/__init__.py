"""Reads datasets: tables, folders and streams become samples with images."""
