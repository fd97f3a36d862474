"""Which editing methods there are."""

from importlib.util import find_spec
from pathlib import Path

from sfumato.common.errors import NotFound, Unimplemented
from sfumato.common.family import family_name
from sfumato.editor import (
    atlas_render,
    deep_image_prior,
    layered_atlas,
    styleclip_direction,
    styleclip_mapper,
    styleclip_mapper_use,
    styleclip_optimization,
    text2live,
    text2live_video,
    vqgan_clip,
)
from sfumato.editor.method import Method

_MODULES = (
    vqgan_clip,
    deep_image_prior,
    text2live,
    styleclip_optimization,
    styleclip_mapper,
    styleclip_mapper_use,
    styleclip_direction,
    layered_atlas,
    atlas_render,
    text2live_video,
)
METHODS: dict[str, Method] = {module.METHOD.name: module.METHOD for module in _MODULES}


def offered(family: Path, clip: str = "") -> list[Method]:
    """The methods whose weights the family has, and whose packages are installed.

    Args:
        family: its folder.
        clip: of the settings: what takes the place of its clip/; "": nothing.
    """
    return [
        method
        for method in METHODS.values()
        if not missing(method, family, clip) and not not_installed(method)
    ]


def missing(method: Method, family: Path, clip: str = "") -> list[str]:
    """Folders of the family that the method needs and that are not there; clip: as offered has it."""
    given = {"clip"} if clip else set()
    return [part for part in method.parts if part not in given and not (family / part).is_dir()]


def not_installed(method: Method) -> list[str]:
    """Packages that the method needs and that are not there."""
    return [package for package in method.packages if find_spec(package) is None]


def method_of(name: str, family: Path, clip: str = "") -> Method:
    """The method of that name; clip: as offered has it.

    Raises:
        Unimplemented: there is no such method, or this installation lacks a package that it needs.
        NotFound: the family lacks its weights; the message says which.
    """
    method = METHODS.get(name)
    if method is None:
        raise Unimplemented(f"{name} is no method of this editor; {', '.join(METHODS)} are")
    if packages := not_installed(method):
        raise Unimplemented(f"{name} needs {', '.join(packages)} here: pip install sfumato[video]")
    if parts := missing(method, family, clip):
        raise NotFound(f"{name} needs {'/, '.join(parts)}/, which {family_name(family)} does not have")
    return method
