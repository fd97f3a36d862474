"""Certificate authorities and certificates for loopback, made by the test that needs them."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A CA."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, name: str) -> Self:
        """A self-signed one."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        built = _builder(subject, subject, key).add_extension(x509.BasicConstraints(True, 0), critical=True)
        return cls(key, built.sign(key, hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, name: str, address: str = "127.0.0.1") -> tuple[bytes, bytes]:
        """Certificate and key, PEM, for the name, localhost and the address."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        numeric = x509.IPAddress(ipaddress.ip_address(address))
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost"), numeric])
        built = _builder(subject, self.certificate.subject, key).add_extension(names, critical=False)
        certificate = built.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )


@dataclass(frozen=True)
class Identity:
    """A certificate's files in a folder."""

    folder: Path

    def write(self, authority: Authority, name: str, trusted: bytes) -> None:
        """Writes or replaces cert.pem, key.pem and ca.pem, each whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        cert, key = authority.issue(name)
        for path, data in ((self.cert, cert), (self.key, key), (self.ca, trusted)):
            part = path.with_suffix(".part")
            part.write_bytes(data)
            part.replace(path)

    @property
    def cert(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"


def mutual_tls(folder: Path, authority: Authority) -> tuple[dict[str, Identity], dict[str, str]]:
    """An identity for each service, and the settings that make them use it."""
    identities, settings = {}, {}
    for name in ("gateway", "encoder", "decoder", "denoiser", "editor"):
        identities[name] = identity = Identity(folder / name)
        identity.write(authority, name, authority.pem)
        prefix = f"SFUMATO_{name.upper()}"
        settings |= {f"{prefix}_TLS_CERT": str(identity.cert), f"{prefix}_TLS_KEY": str(identity.key)}
        if name != "gateway":
            settings[f"{prefix}_TLS_CLIENT_CA"] = str(identity.ca)
    gateway = identities["gateway"]
    for part, path in (("CA", gateway.ca), ("CERT", gateway.cert), ("KEY", gateway.key)):
        settings[f"SFUMATO_GATEWAY_SERVICES_TLS_{part}"] = str(path)
    return identities, settings
