"""Checkpoints: a `TrainState`, and nothing else, in orbax's open format. The only importer of orbax.

arrays.py     TrainState <-> numpy arrays by path
folder.py     one checkpoint on the disk, with a hash of all that is in it
store.py      the checkpoints of a run: what is kept, which one is meant, saving in the background
__main__.py   `python -m backbones.checkpoint show | diff | verify | export`
"""

from backbones.checkpoint.arrays import fill as fill
from backbones.checkpoint.arrays import to_arrays as to_arrays
from backbones.checkpoint.folder import Checkpoint as Checkpoint
from backbones.checkpoint.folder import Damaged as Damaged
from backbones.checkpoint.folder import Manifest as Manifest
from backbones.checkpoint.folder import read_checkpoint as read_checkpoint
from backbones.checkpoint.folder import read_manifest as read_manifest
from backbones.checkpoint.folder import weights_of as weights_of
from backbones.checkpoint.store import Checkpoints as Checkpoints
from backbones.checkpoint.store import SaveError as SaveError
from backbones.checkpoint.store import best_step as best_step
from backbones.checkpoint.store import find_checkpoint as find_checkpoint
from backbones.checkpoint.store import is_path as is_path
from backbones.checkpoint.store import list_steps as list_steps
from backbones.checkpoint.store import read_weights as read_weights
