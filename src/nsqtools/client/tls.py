"""The client's TLS settings."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsqtools.client.options import ConnectionOptions

_TLS_VERSIONS = {
    "tls1.0": ssl.TLSVersion.TLSv1,
    "tls1.1": ssl.TLSVersion.TLSv1_1,
    "tls1.2": ssl.TLSVersion.TLSv1_2,
    "tls1.3": ssl.TLSVersion.TLSv1_3,
}


def tls_context(options: ConnectionOptions) -> ssl.SSLContext:
    """The client's TLS settings. Raises OSError when a file cannot be read."""
    context = ssl.create_default_context(cafile=options.tls_root_ca_file)
    context.minimum_version = _TLS_VERSIONS[options.tls_min_version]
    if options.tls_cert is not None and options.tls_key is not None:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    if options.tls_insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
