"""The demonstration that runs offline on what the package ships."""
