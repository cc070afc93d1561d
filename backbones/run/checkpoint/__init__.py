"""Checkpoints: a `TrainState`, the averaged weights if there are any, and a manifest, in orbax's open format.

arrays.py        TrainState <-> numpy arrays by path
orbax_state.py   these arrays <-> files of orbax
folder.py        one checkpoint on the disk, with a hash of all that is in it
find.py          which one is meant by `latest`, `best`, a step or a path
store.py         the checkpoints of a run: saving in the background, what is kept, going back
"""

from backbones.run.checkpoint.arrays import load_arrays, saved_weights, to_arrays, without_average
from backbones.run.checkpoint.find import (
    Which,
    best_step,
    find_checkpoint,
    join_steps,
    list_steps,
    parse_saved,
    parse_which,
    read_manifests,
    run_folder,
    run_of,
)
from backbones.run.checkpoint.folder import Checkpoint, CorruptCheckpoint, Manifest, read_checkpoint, read_manifest
from backbones.run.checkpoint.store import Checkpoints, SaveError
