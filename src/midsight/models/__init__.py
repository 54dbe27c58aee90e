"""Model families: what each declares, and the plain functions that act on it."""
