"""Which methods an editor offers: those whose weights the family has."""

from pathlib import Path

import pytest

from sfumato.common.errors import NotFound, Unimplemented
from sfumato.editor.registry import method_of, offered


def test_methods_without_weights_are_not_offered_and_say_what_is_missing(tmp_path: Path) -> None:
    for part in ("clip", "vqgan"):
        (tmp_path / part).mkdir()
    expected = {"vqgan-clip", "deep-image-prior", "text2live"}
    of_video = {"layered-atlas", "atlas-render", "text2live-video"}
    assert {method.name for method in offered(tmp_path)} == expected | of_video
    with pytest.raises(NotFound, match="stylegan2/, identity/"):
        method_of("styleclip-optimization", tmp_path)
    with pytest.raises(Unimplemented, match="vqgan-clip"):
        method_of("magic", tmp_path)
