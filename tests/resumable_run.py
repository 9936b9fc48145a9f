"""A run for `test_training` to kill: trains with dropout, a schedule, checkpoints and a recorder; then writes weights.

python resumable_run.py FOLDER
"""

import sys
from pathlib import Path

import torch
from descent.capture import GradientRecorder, Recipe
from descent.records import write_atomic
from descent.seeding import deterministic
from descent.training import MiniBatches, Plan, cross_entropy, fit, newest_checkpoint
from descent.vectors import flatten
from torch import nn

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
with deterministic(1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 5))
    inputs, targets = torch.randn(400, 20), torch.arange(400) % 5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    first, _ = newest_checkpoint(folder / "checkpoints")
    plan = Plan(600, schedule, (), folder / "checkpoints", 10, "kill me")
    (folder / "started").touch()
    with GradientRecorder(model, optimizer, Recipe(range(0, 600, 3)), folder / "gradients", first):
        fit(model, cross_entropy, MiniBatches((inputs, targets), 32, 0), optimizer, plan)
    write_atomic(folder / "final.bin", flatten(dict(model.named_parameters())).detach().numpy().tobytes())
