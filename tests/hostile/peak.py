"""How much memory a reader process took at its worst."""

from pathlib import Path

from schemas.limits import Limits
from schemas.workload import Input
from transforms.cut import cut_batches
from transforms.files import describe_files
from transforms.input_files import Files
from transforms.input_schema import common_schema
from transforms.probe import Reader, ReaderError


def peak_of(reader: Reader, path: Path, settings: Input) -> int:
    """Let a reader read a file's footer and all batches until one fails; its peak in bytes so far."""
    try:
        reader.footer(str(path), path.stat().st_size, tuple(settings.needed_columns))
        (file,) = describe_files([str(path)], settings.needed_columns)
        if not isinstance(file, str):
            schema = common_schema(Files.of([file]), settings)
            for ref in cut_batches([file], Limits()):
                reader.rows(schema, ref.uri, ref.row_group, ref.first_row, ref.row_count)
    except ReaderError:
        assert reader.alive, "it should fail, not die"
    status = Path(f"/proc/{reader.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
