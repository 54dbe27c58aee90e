"""Whether each answer of a run is right: by a judge, or by verdicts from outside."""
