"""A run that was interrupted, or killed, goes on where it was, to the same bits: finished layers are in a folder."""

import copy
import logging
import tempfile

import torch
from torch import nn

from sisopt.adapters.torch import sparsify_model

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 5)).eval()
batches = torch.randn(4, 200, 30)


def interrupt(record):
    """Ctrl-C after the second layer, as if by hand: the log has a line for each."""
    print("finished", record.getMessage())
    if record.getMessage().startswith("2:"):
        raise KeyboardInterrupt
    return True


log = logging.getLogger("sisopt.network")
log.setLevel(logging.INFO)
log.addFilter(interrupt)
with tempfile.TemporaryDirectory() as folder:
    try:
        sparsify_model(copy.deepcopy(model), batches, sparsity=0.8, checkpoint=folder)
    except KeyboardInterrupt:
        print("interrupted")
    log.removeFilter(interrupt)
    resumed = sparsify_model(copy.deepcopy(model), batches, sparsity=0.8, checkpoint=folder)

whole = sparsify_model(model, batches, sparsity=0.8)
same = all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
print(resumed)
print("the same bits as without a break:", same)
