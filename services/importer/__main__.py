"""`python -m sfumato.importer`, which `sfumato models import` runs: published checkpoints into a family."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sfumato.common.errors import SfumatoError

# Each command imports what it needs: --help is there at once.
app = typer.Typer(no_args_is_help=True, add_completion=False, help=(__doc__ or "").split(": ", 1)[1])

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What was published.")]
Family = Annotated[Path, typer.Argument(metavar="FAMILY", help="The family folder; made if there is none.")]


@app.command()
def checkpoint(
    file: File,
    family: Annotated[Path, typer.Argument(metavar="FAMILY", help="The folder to write; must not exist.")],
    config: Annotated[str, typer.Option(help="A family of the same architecture: folder or hub id.")],
) -> None:
    """A one-file Stable Diffusion 1, 2 or XL checkpoint (.safetensors) to a family.

    Example: sfumato models import checkpoint model.safetensors families/mine --config families/sd15
    """
    from sfumato.importer import single_file

    print(single_file.import_single_file(file, family, config))


@app.command()
def vqgan(file: File, family: Family) -> None:
    """A VQGAN of taming-transformers (.ckpt or .safetensors) to FAMILY/vqgan, for vqgan-clip.

    Example: sfumato models import vqgan vqgan_imagenet_f16_16384.ckpt families/mine
    """
    from sfumato.importer import parts

    print(parts.import_vqgan(file, family))


@app.command()
def stylegan2(
    file: File,
    family: Family,
    name: Annotated[str, typer.Option(help="Name of the generator in the family.")] = "faces",
) -> None:
    """A StyleGAN2 generator to FAMILY/stylegan2/NAME, for StyleCLIP: rosinality's .pt or NVIDIA's .pkl.

    No code of the file is run. Example: sfumato models import stylegan2 ffhq.pkl families/mine --name faces
    """
    from sfumato.importer import parts

    print(parts.import_stylegan2(file, family, name))


@app.command()
def identity(file: File, family: Family) -> None:
    """ArcFace's IR-SE50 (model_ir_se50.pth) to FAMILY/identity, for StyleCLIP's identity loss.

    Example: sfumato models import identity model_ir_se50.pth families/mine
    """
    from sfumato.importer import parts

    print(parts.import_identity(file, family))


@app.command()
def noised_clip(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="clip_image_enc.pt")],
    text: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="clip_text_enc.pt")],
    family: Family,
) -> None:
    """GLIDE's noised CLIP to FAMILY/clip_noised, for guidance of a family of 64-pixel RGB "latents".

    Example: sfumato models import noised-clip clip_image_enc.pt clip_text_enc.pt families/mine
    """
    from sfumato.importer import parts

    print(parts.import_noised_clip(image, text, family))


@app.command()
def fetch(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Of the hub.")],
    folder: Annotated[Path, typer.Argument(metavar="FAMILY", help="Folder to download to.")],
    revision: Annotated[str, typer.Option(help="Commit, tag or branch. A commit cannot change.")] = "main",
) -> None:
    """A family from the hub; its commit and the digest of each file are recorded in FAMILY/sfumato.json.

    Example: sfumato models import fetch OWNER/NAME families/mine --revision 0123abc...
    """
    from sfumato.importer import hub

    print(hub.fetch(repository, revision, folder))


def main() -> None:
    """Errors are one line, exit code 1."""
    try:
        app()
    except SfumatoError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
