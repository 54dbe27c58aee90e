"""Runs on the Hugging Face hub: upload with a dataset card, and download."""
