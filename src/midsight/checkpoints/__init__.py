"""Model folders: finding, reading and loading them."""
