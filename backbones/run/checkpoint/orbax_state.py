"""Arrays <-> the folder `state/` of a checkpoint, in orbax's format. The only importer of orbax.

Import it late: orbax brings jax, which takes more than a second.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from backbones.run.checkpoint.arrays import Arrays

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the GPU's memory belongs to torch
import orbax.checkpoint as ocp

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what orbax logs, it raises too


class PlainFileHandler(ocp.type_handlers.NumpyHandler):
    """Writes arrays in orbax's own format (zarr version 2), one after the other, by ordinary file operations.

    orbax starts all writes at once in tensorstore's threads and raises the first error while others still run; these
    then print tracebacks ("Event loop is closed") and go on creating files. Here a failing disk is one OSError.
    """

    async def serialize(
        self,
        values: Sequence[np.ndarray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list:
        """Write each array as one uncompressed chunk; nothing is left for the futures that orbax would wait for."""
        del args
        for array, info in zip(values, infos, strict=True):
            folder = Path(info.path)
            folder.mkdir(parents=True)
            is_bfloat16 = array.dtype.name == "bfloat16"  # which numpy has no letters for
            header = {
                "zarr_format": 2,
                "shape": array.shape,
                "chunks": array.shape,
                "dtype": "bfloat16" if is_bfloat16 else array.dtype.str,
                "order": "C",
                "compressor": None,
                "filters": None,
                "fill_value": None,
                "dimension_separator": ".",
            }
            (folder / ".zarray").write_text(json.dumps(header))
            (folder / (".".join("0" * array.ndim) or "0")).write_bytes(array.tobytes())
        return []


def write_state(path: Path, arrays: Arrays) -> None:
    """Write a new folder; raise OSError if the disk fails."""
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, PlainFileHandler()))
    # Without OCDBT each leaf has its own files, so that an error can name the corrupt one.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(arrays))


def read_state(path: Path) -> Arrays:
    """The arrays of a folder, which is intact."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore())
