"""Generates `sfumato_protos` from the .proto files when the package is built."""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "sfumato_protos"
GOOGLEAPIS = HERE / "build" / "googleapis"


class GenerateThenBuild(build_py):
    """Runs protoc into sfumato_protos/v1, then the usual build."""

    def run(self) -> None:
        import grpc_tools
        from grpc_tools import protoc

        shutil.rmtree(GOOGLEAPIS, ignore_errors=True)
        copy_googleapis()
        well_known = str(Path(grpc_tools.__file__).parent / "_proto")
        arguments = [f"-I{HERE}", f"-I{GOOGLEAPIS}", f"-I{well_known}", f"--python_out={HERE / 'build'}"]
        arguments += [f"--grpc_python_out={HERE / 'build'}", f"--mypy_out={HERE / 'build'}"]
        arguments += [f"--mypy_grpc_out={HERE / 'build'}"]
        sources = [str(path) for path in sorted((HERE / "sfumato" / "v1").glob("*.proto"))]
        if protoc.main(["protoc", *arguments, *sources]) != 0:
            raise SystemExit("protoc failed")
        # The services' own package is called sfumato, so the generated code lives in another.
        for path in (HERE / "build" / "sfumato" / "v1").glob("*.py*"):
            # In a .py only the imports name it; the rest are wire names, which stay.
            imports = r"^(from|import) sfumato\.v1\b" if path.suffix == ".py" else r"()\bsfumato\.v1\b"
            changed = r"\1 sfumato_protos.v1" if path.suffix == ".py" else "sfumato_protos.v1"
            text = re.sub(imports, changed, path.read_text(), flags=re.MULTILINE)
            (PACKAGE / "v1" / path.name).write_text(text)
        super().run()


def copy_googleapis() -> None:
    """Google's protos from googleapis-common-protos, under their own names; protoc and buf import them."""
    from google.rpc import status_pb2

    installed = Path(status_pb2.__file__).parents[1]
    for package in ("api", "longrunning", "rpc"):
        shutil.copytree(
            installed / package, GOOGLEAPIS / "google" / package,
            ignore=lambda folder, names: [name for name in names if not name.endswith(".proto")],
        )  # fmt: skip
    # The package alone calls it so: there, a module operations_pb2 is in the way.
    folder = GOOGLEAPIS / "google" / "longrunning"
    (folder / "operations_proto.proto").rename(folder / "operations.proto")


# setuptools looks for the package before it builds it.
for folder in (HERE / "build", PACKAGE / "v1"):
    folder.mkdir(parents=True, exist_ok=True)
for folder in (PACKAGE, PACKAGE / "v1"):
    (folder / "__init__.py").touch()
    (folder / "py.typed").touch()
setup(cmdclass={"build_py": GenerateThenBuild})
