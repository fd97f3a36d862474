"""CLIP in open_clip: from a family's clip/, another folder, the hub, or open_clip's own tags."""

from pathlib import Path
from typing import Any

from sfumato.common.checked_weights import WeightsError
from sfumato.common.family_parts import check_part


def clip_source(family: Path, given: str) -> str | None:
    """What open_clip is asked for; None where there is no CLIP.

    Args:
        family: whose clip/ is the default.
        given: a folder, "hf-hub:OWNER/NAME", "MODEL/TAG" of open_clip's list, or "": the family's clip/.
    """
    if not given:
        return f"local-dir:{family / 'clip'}" if (family / "clip").is_dir() else None
    if Path(given).is_dir():
        return f"local-dir:{given}"
    return given


def load_clip(source: str) -> tuple[Any, Any, Any]:
    """Model (float32, on the CPU, in eval mode), preprocessing of images, and tokenizer.

    Raises:
        NotFound, WeightsError: a folder that does not hold what it should, checked before it is loaded; a tag
            or hub id that open_clip does not know or cannot fetch.
    """
    import open_clip

    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:"))
        check_part(folder.parent, folder.name, "clip")
        name, tag = source, None
    elif source.startswith("hf-hub:"):
        name, tag = source, None
    else:
        name, _, tag = source.partition("/")
    try:
        model, preprocess = open_clip.create_model_from_pretrained(name, tag, weights_only=True)
    except Exception as error:  # of open_clip, the hub, the network: they have no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"open_clip cannot load {source}: {reason}"[:300]) from error
    return model.eval(), preprocess, open_clip.get_tokenizer(name)
