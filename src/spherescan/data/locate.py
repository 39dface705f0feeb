"""From what a user wrote to a file: a path, or a sample that ships with the package."""

from importlib import resources
from pathlib import Path

from spherescan.errors import DataError
from spherescan.paths import user_path

_PREFIX = "sample:"


def locate(name: str) -> Path:
    """Return the path of a file or folder of data.

    Args:
        name: A path, or `sample:NAME` for a file that ships with the package.

    Raises:
        DataError: A sample that does not exist, or a path that nothing can have. Whether there is
            something is checked where it is read.

    Example:
        >>> locate("sample:JapaneseVowels_TRAIN.ts").name
        'JapaneseVowels_TRAIN.ts'
    """
    if not name.startswith(_PREFIX):
        return user_path(name, error=DataError)
    folder = Path(str(resources.files("spherescan.data"))) / "samples"
    known = sorted(path.name for path in folder.glob("*.ts"))
    wanted = name.removeprefix(_PREFIX)
    if wanted not in known:
        raise DataError(f"no sample {wanted!r} in the package; choose from {', '.join(known)}")
    return folder / wanted
