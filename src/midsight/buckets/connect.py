"""Clients of object stores; obstore is imported with the first one.

Credentials are the user's own, by obstore's default chain: environment variables, web identity, the machine's role;
for S3 also the profiles of `~/.aws`, if boto3 is installed. None of them is stored or shown.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import Any

from midsight.errors import MidsightError, first_line

REQUEST_S = 300.0
"""Maximum time of one request with its body, in seconds: 256 MB at 10 Mbit/s."""
CONNECT_S = 20.0
"""Maximum time to connect, in seconds."""
RETRIES = 6
"""How often a request is repeated that the network or the store failed."""
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Scheme -> variables with the address of another store than the provider's; it may be http:// where it says so."""
RETRY_S = 180.0
"""Time after which a request is not repeated any more, in seconds."""
_OF_AMAZON = re.compile(r"\.amazonaws\.com(\.cn)?/?$")


def import_obstore() -> Any:
    """The module obstore; raises MidsightError if it is missing."""
    try:
        import obstore
    except ImportError as error:
        raise MidsightError(
            "s3://, gs:// and az:// need obstore, which is not installed: pip install 'midsight[cloud]'."
        ) from error
    return obstore


@cache
def open_store(root: str, _process: int) -> Any:
    """The client of one bucket, like `s3://bucket`, for this process."""
    import_obstore()
    from obstore import store

    scheme, _, bucket = root.partition("://")
    options: dict[str, Any] = {
        "client_options": {"timeout": timedelta(seconds=REQUEST_S), "connect_timeout": timedelta(seconds=CONNECT_S)},
        "retry_config": {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)},
    }
    endpoint = next((found for name in _ENDPOINTS[scheme] if (found := os.environ.get(name))), "")
    if endpoint.startswith("http://"):
        options["client_options"]["allow_http"] = True
    if scheme == "gs":
        return store.GCSStore(bucket, **options)
    if scheme == "az":
        return store.AzureStore(bucket, **options)
    provider, endpoint_of_profile = _of_profile()
    if provider is not None:
        options["credential_provider"] = provider
    if endpoint := endpoint or endpoint_of_profile:
        options["endpoint"] = endpoint
        options["client_options"]["allow_http"] = endpoint.startswith("http://")
    return store.S3Store(bucket, **options)


def _of_profile() -> tuple[Any, str | None]:
    """Credentials and endpoint of the user's AWS profile, which obstore does not read; None where there are none.

    Raises MidsightError if the profile that the user names cannot be used.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ or not find_spec("boto3"):
        return None, None
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            return None, None
        endpoint = session.client("s3").meta.endpoint_url
    except (BotoCoreError, ValueError) as error:  # ValueError: of an endpoint that is no address
        raise MidsightError(
            f"the AWS profile cannot be used: {first_line(error)}; correct AWS_PROFILE or the files in ~/.aws."
        ) from error
    return Boto3CredentialProvider(session), None if _OF_AMAZON.search(endpoint) else endpoint
