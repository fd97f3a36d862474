"""The one folder that families are loaded from, each by its own folder's name."""

import re
from pathlib import Path

from sfumato.common.errors import FailedPrecondition, InvalidArgument, NotFound

INDEX = "model_index.json"
_NAME = re.compile(r"families/[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_name(name: str) -> None:
    """Raises InvalidArgument where it is no resource name of a family, "families/{id}"."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument("family", "families/ and 1 to 63 of [A-Za-z0-9._-]", name)


class FamilyFolder:
    """Its families; a request gives a name and never a path."""

    def __init__(self, root: Path | None, variable: str) -> None:
        """root: None where none is set; variable: of the environment, that would set it."""
        self._root, self._variable = root, variable

    def names(self) -> list[str]:
        """Resource names of the families that it has now."""
        if self._root is None or not self._root.is_dir():
            return []
        folders = sorted(path.parent.name for path in self._root.glob(f"*/{INDEX}"))
        return [name for name in (f"families/{folder}" for folder in folders) if _NAME.fullmatch(name)]

    def path(self, name: str) -> Path:
        """The folder of that family.

        Raises:
            FailedPrecondition: no folder of families is set. NotFound: it has no such family.
            InvalidArgument: the name is none.
        """
        check_name(name)
        if self._root is None:
            raise FailedPrecondition(
                f"there is no folder of families to load {name} from: set {self._variable}",
                field="family", limit="a family in that folder", value=name,
            )  # fmt: skip
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise NotFound(f"there is no {name} to load; there are {known}", field="family",
                           limit=known, value=name)  # fmt: skip
        return self._root / name.removeprefix("families/")
