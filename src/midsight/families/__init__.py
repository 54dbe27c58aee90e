"""Model families: what each declares, and the functions that act on it."""
