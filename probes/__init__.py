"""Probes: heads, and the training of many of them at once on tokens; README.md has a table of the heads.

This package is independent of stores, images, models and terminals.
"""

from .attention import AttentionStatistics, attention_mass, attention_statistics
from .banks.bank import AttentiveBank, Bank
from .banks.budget import MemoryPlan, Sizes, plan_memory, sizes_of
from .banks.linear_bank import LinearBank
from .banks.module_bank import ModuleBank
from .checkpoint import load_probe, save_probe
from .chosen import Choice, Refit, join_members, plan_choice, score_held_out, train_chosen
from .data.batches import BatchPlan, choose_batch_size, plan_batches
from .data.rows import ColumnBlock, Reading, columns_of
from .data.split import centre_rows, num_moved, split_rows
from .data.token_source import (
    ArraySource,
    BlockSource,
    GroupedSource,
    OrderedSource,
    StreamedSource,
    TokenSource,
    ValidatedSource,
    ViewedSource,
    concat_tokens,
    l2_normalize,
    l2_normalize_,
    read_batches,
    stack_tokens,
    training_rows,
)
from .ensemble import Ensemble, mean_of_members
from .errors import CheckpointError, CheckpointMissing, DataError, ProbeError, SettingError
from .evaluate import compute_logits
from .events import Progress
from .fit import BankRun, FitResult, fit_bank, fit_banks
from .heads import HEADS, Form, Head, HeadModule, HeadType, make_probe
from .heads.abmilp import AbmilpProbe
from .heads.aim import AimProbe
from .heads.alf_embed import AlfEmbedProbe
from .heads.attention import FusionHead
from .heads.attentive import AttentiveProbe
from .heads.cae import CaeProbe
from .heads.ep import EpProbe
from .heads.knn import KnnProbe
from .heads.linear import LinearProbe
from .heads.map import MapProbe
from .heads.scalar_mix import ScalarMixProbe
from .heads.simpool import SimPoolProbe
from .heads.vjepa import VJepaProbe
from .matmul import COMPUTES, fast_exact_matmul, resolve_compute
from .metrics import balanced_accuracy, top_k_accuracy
from .outcome import LearningCurves, Rung, SettingScore, SweepResult
from .plan import Candidate, GroupPlan, plan_group
from .protocol import (
    PAPER,
    QUICK,
    NeighborSetting,
    PenaltySetting,
    Setting,
    SolvedSetting,
    TrainingProtocol,
    first_duplicates,
)
from .select import BankKey, BankScores, Journal
from .solve import run_solver, run_solvers
from .sweep import run_sweep, run_sweeps
from .tasks import TASKS, Task, restore_task
from .tasks.multiclass import Multiclass
from .tasks.multilabel import Multilabel
from .tasks.ordinal import Ordinal
from .tasks.regression import Regression

__all__ = [
    # tokens
    "TokenSource",
    "OrderedSource",
    "StreamedSource",
    "ViewedSource",
    "GroupedSource",
    "BlockSource",
    "ColumnBlock",
    "Reading",
    "columns_of",
    "ArraySource",
    "read_batches",
    "l2_normalize",
    "l2_normalize_",
    "stack_tokens",
    "concat_tokens",
    # tasks
    "Task",
    "TASKS",
    "restore_task",
    "Multiclass",
    "Multilabel",
    "Ordinal",
    "Regression",
    # heads
    "AttentiveProbe",
    "LinearProbe",
    "KnnProbe",
    "make_probe",
    "HEADS",
    "HeadType",
    "HeadModule",
    "FusionHead",
    "Form",
    # heads of other studies
    "CaeProbe",
    "AlfEmbedProbe",
    "AimProbe",
    "EpProbe",
    "AbmilpProbe",
    "SimPoolProbe",
    "VJepaProbe",
    "MapProbe",
    "ScalarMixProbe",
    # many at once
    "Bank",
    "AttentiveBank",
    "LinearBank",
    "ModuleBank",
    # training
    "fit_bank",
    "fit_banks",
    "BankRun",
    "FitResult",
    "LearningCurves",
    "compute_logits",
    "BatchPlan",
    "plan_batches",
    "choose_batch_size",
    # the protocol
    "Head",
    "Setting",
    "SolvedSetting",
    "PenaltySetting",
    "NeighborSetting",
    "TrainingProtocol",
    "PAPER",
    "QUICK",
    "COMPUTES",
    "resolve_compute",
    "fast_exact_matmul",
    "num_moved",
    "split_rows",
    "training_rows",
    "ValidatedSource",
    "centre_rows",
    "run_sweep",
    "run_sweeps",
    "Candidate",
    "GroupPlan",
    "plan_group",
    "Journal",
    "BankKey",
    "BankScores",
    "run_solver",
    "run_solvers",
    "first_duplicates",
    "Choice",
    "plan_choice",
    "score_held_out",
    "train_chosen",
    "join_members",
    "Refit",
    "Ensemble",
    "mean_of_members",
    "Sizes",
    "sizes_of",
    "MemoryPlan",
    "plan_memory",
    "SweepResult",
    "SettingScore",
    "Rung",
    "Progress",
    # results
    "balanced_accuracy",
    "top_k_accuracy",
    "attention_mass",
    "attention_statistics",
    "AttentionStatistics",
    "save_probe",
    "load_probe",
    # errors
    "ProbeError",
    "SettingError",
    "DataError",
    "CheckpointError",
    "CheckpointMissing",
]
