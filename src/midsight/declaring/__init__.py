"""`midsight adapter`: a family of another type, filled from a model folder and proved on a small copy of the model."""
