"""The demo, which runs offline with a small model from the package."""
