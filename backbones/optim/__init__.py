"""Optimizers as chains of gradient transforms: `(init, update)` pairs of pure functions, as in optax."""

from backbones.optim.adaptive import (
    scale_by_adafactor,
    scale_by_adam,
    scale_by_belief,
    scale_by_lion,
    scale_by_param_block_rms,
    scale_by_radam,
    scale_by_rms,
    scale_by_trust_ratio,
)
from backbones.optim.alias import (
    OPTIMIZERS,
    adabelief,
    adafactor,
    adam,
    adamw,
    lamb,
    lars,
    lion,
    muon,
    nadam,
    radam,
    rmsprop,
    sam_sgd,
    schedule_free_adamw,
    sgd,
    soap,
)
from backbones.optim.average import ema_params, evaluation_params, schedule_free, swa
from backbones.optim.base import (
    GradFn,
    GradientTransformation,
    apply_updates,
    cast_like,
    hyperparameter,
    identity,
    stateless,
    stateless_with_tree_map,
    with_grad_fn,
    zero_count,
)
from backbones.optim.clip import adaptive_clip, clip_by_block_rms, clip_by_global_norm, clip_by_value
from backbones.optim.combine import chain, masked, named_chain, partition, with_rates
from backbones.optim.hyperparams import current_learning_rate, hyperparams, inject_hyperparams, set_hyperparams
from backbones.optim.label import Mask, everything, hidden_matrices, is_matrix, matrices
from backbones.optim.orthogonalize import orthogonalize
from backbones.optim.schedule import SCHEDULES, Schedule
from backbones.optim.soap import scale_by_soap
from backbones.optim.transform import (
    add_decayed_weights,
    add_noise,
    centralize,
    ema,
    keep_norm,
    normalize_by_update_norm,
    sam,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
    scale_by_sign,
    trace,
    zero_nans,
)
from backbones.optim.wrap import apply_if_finite, lookahead, multi_steps
