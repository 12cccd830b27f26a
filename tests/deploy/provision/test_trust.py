"""Java from a wheel trusts what this machine trusts, an authority of the user's own included."""

import shlex
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

from core.clock import now
from deploy.provision.trust import options_of_java


def authority(name: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now()).not_valid_after(now() + timedelta(days=1))
    return builder.add_extension(x509.BasicConstraints(True, None), critical=True).sign(key, hashes.SHA256())


def test_an_authority_of_the_machine_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [authority("one"), authority("two")]
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in made))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    folder = tmp_path / "with space"
    folder.mkdir()
    options = dict(option.removeprefix("-D").split("=", 1) for option in shlex.split(options_of_java(folder)))
    stored = pkcs12.load_pkcs12(
        Path(options["javax.net.ssl.trustStore"]).read_bytes(),
        options["javax.net.ssl.trustStorePassword"].encode(),
    )
    assert {one.certificate for one in stored.additional_certs} == set(made)


def test_without_authorities_java_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(empty))
    assert options_of_java(tmp_path) == ""
    assert not (tmp_path / "authorities.p12").exists()
