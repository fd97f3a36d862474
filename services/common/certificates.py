"""Certificate files, read together and checked."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from sfumato.common.watched import WatchedFiles


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: an own certificate chain with its key, and the CA of the other side; both may be absent."""

    cert: Path | None
    key: Path | None
    ca: Path | None

    def watched(self) -> "WatchedFiles[Pems]":
        """The files' contents, whenever asked.

        Raises:
            OSError, ValueError: a file is missing, is no PEM, or the key is of another certificate.
        """
        paths = (self.cert, self.key, self.ca)
        given = [path is not None for path in paths]

        def read(contents: list[bytes]) -> Pems:
            left = iter(contents)
            return checked(*(next(left) if present else None for present in given))

        return WatchedFiles([path for path in paths if path is not None], read)


@dataclass(frozen=True)
class Pems:
    """What the files hold."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


def checked(cert: bytes | None, key: bytes | None, ca: bytes | None) -> Pems:
    """The three, if they are whole.

    Raises:
        ValueError: one is no PEM, or the key is of another certificate.
    """
    if cert is not None and key is not None:
        public = load_pem_x509_certificates(cert)[0].public_key()
        if load_pem_private_key(key, None).public_key() != public:
            raise ValueError("the private key does not belong to the certificate")
    if ca is not None:
        load_pem_x509_certificates(ca)
    return Pems(cert, key, ca)
