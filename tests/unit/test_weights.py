"""Digests of weights tell files apart by name and bytes."""

from pathlib import Path

from sfumato.common.weights import weights_digest


def test_a_changed_byte_or_name_changes_the_digest_and_a_copy_does_not(tmp_path: Path) -> None:
    digests = []
    for family, name, data in (
        ("one", "a.safetensors", b"12"),
        ("copy", "a.safetensors", b"12"),
        ("other_bytes", "a.safetensors", b"13"),
        ("other_name", "b.safetensors", b"12"),
    ):
        (tmp_path / family / "unet").mkdir(parents=True)
        (tmp_path / family / "unet" / name).write_bytes(data)
        digests.append(weights_digest(tmp_path / family, "unet", "absent"))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_clip_from_elsewhere_counts(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "a.safetensors").write_bytes(b"1")
    others = ("", str(tmp_path / "clip"), "ViT-B-32/openai", "ViT-L-14/openai")
    digests = [weights_digest(tmp_path, "unet", other=other) for other in others]
    (tmp_path / "clip" / "a.safetensors").write_bytes(b"2")
    digests.append(weights_digest(tmp_path, "unet", other=others[1]))
    assert len(set(digests)) == len(digests)
