"""Object stores: `s3://`, `gs://` and `az://` addresses. Nothing here is about runs or data."""
