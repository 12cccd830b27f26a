"""The machine's certificate authorities for a Java that brings its own list.

A runtime from a wheel does not know an authority that was added to this machine, as behind a company's proxy.
"""

import shlex
import ssl
import warnings
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12Certificate, serialize_java_truststore
from cryptography.utils import CryptographyDeprecationWarning

_PASSWORD = "changeit"  # noqa: S105 public authorities are no secret, but the format wants one


def options_of_java(folder: Path) -> str:
    """`JDK_JAVA_OPTIONS` with which Java trusts what Python trusts; writes the trust store into `folder`.

    Empty where Python knows no authority: then Java's own list is the better one.
    """
    authorities = []
    for encoded in ssl.create_default_context().get_ca_certs(binary_form=True):
        # what breaks the rules of certificates is not trusted
        with warnings.catch_warnings(), suppress(ValueError, CryptographyDeprecationWarning):
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            authorities.append(PKCS12Certificate(x509.load_der_x509_certificate(encoded), None))
    if not authorities:
        return ""
    file = folder / "authorities.p12"
    file.write_bytes(serialize_java_truststore(authorities, BestAvailableEncryption(_PASSWORD.encode())))
    options = {"trustStore": str(file), "trustStoreType": "PKCS12", "trustStorePassword": _PASSWORD}
    return " ".join(shlex.quote(f"-Djavax.net.ssl.{name}={value}") for name, value in options.items())
