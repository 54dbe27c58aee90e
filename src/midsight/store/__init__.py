"""The run folder: its columns, its writer and its reader."""
