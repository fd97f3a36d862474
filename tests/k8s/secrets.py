"""Stands in for cert-manager and the kubelet: Secrets of certificates as folders that change under pods."""

import itertools
import os
from pathlib import Path

from tests.certificates import Authority
from tests.k8s.network import VIRTUAL


class Secrets:
    """The Secret of each Certificate of the manifests."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        """names: of the Secrets, "{service}-tls"."""
        self.folder, self.names = folder, names
        self.ca = folder / "ca.crt"
        self._authority = Authority.new("sfumato-ca")
        self._versions = itertools.count()
        folder.mkdir(parents=True)
        self.ca.write_bytes(self._authority.pem)
        self.rotate()

    def rotate(self) -> None:
        """New certificates of the same CA; a Secret's files change at once, as a kubelet swaps them."""
        for name in self.names:
            secret = self.folder / name
            data = secret / f"..{next(self._versions)}"
            data.mkdir(parents=True)
            cert, key = self._authority.issue(name.removesuffix("-tls"), VIRTUAL)
            for file, content in (("tls.crt", cert), ("tls.key", key), ("ca.crt", self._authority.pem)):
                (data / file).write_bytes(content)
                if not (secret / file).is_symlink():
                    (secret / file).symlink_to(f"..data/{file}")
            (secret / "..new").symlink_to(data.name)
            os.replace(secret / "..new", secret / "..data")
