"""The HDF5 parts of the HALP scripts (arXiv 2603.05465): runs are written as such parts, and parts become runs."""
