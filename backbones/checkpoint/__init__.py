"""Checkpoints: a `TrainState`, and nothing else, in orbax's open format. The only importer of orbax.

arrays.py     TrainState <-> numpy arrays by path
folder.py     one checkpoint on the disk, with a hash of all that is in it
find.py       which one is meant by `latest`, `best`, a step or a path
weights.py    the weights in it that are evaluated
store.py      the checkpoints of a run: saving in the background, what is kept, going back
__main__.py   `python -m backbones.checkpoint show | diff | verify | export`
"""

from backbones.checkpoint.arrays import fill as fill
from backbones.checkpoint.arrays import to_arrays as to_arrays
from backbones.checkpoint.find import best_step as best_step
from backbones.checkpoint.find import find_checkpoint as find_checkpoint
from backbones.checkpoint.find import is_path as is_path
from backbones.checkpoint.find import list_steps as list_steps
from backbones.checkpoint.folder import Checkpoint as Checkpoint
from backbones.checkpoint.folder import Damaged as Damaged
from backbones.checkpoint.folder import Manifest as Manifest
from backbones.checkpoint.folder import read_checkpoint as read_checkpoint
from backbones.checkpoint.folder import read_manifest as read_manifest
from backbones.checkpoint.store import Checkpoints as Checkpoints
from backbones.checkpoint.store import SaveError as SaveError
from backbones.checkpoint.weights import read_weights as read_weights
from backbones.checkpoint.weights import weights_of as weights_of
