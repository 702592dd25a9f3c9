"""Good if an evaluation with one NaN batch reports NaN; bad if Trainer leaves that batch out of the mean."""

import math
import sys
import tempfile

import torch
from transformers import Trainer, TrainingArguments


class Model(torch.nn.Module):
    def forward(self, labels):
        return {"loss": labels.mean(), "logits": labels}


batches = [{"labels": torch.tensor([loss])} for loss in (1.0, math.nan, 3.0)]
arguments = TrainingArguments(tempfile.mkdtemp(), per_device_eval_batch_size=1, report_to=[], use_cpu=True)
eval_loss = Trainer(Model(), arguments, eval_dataset=batches).evaluate()["eval_loss"]
print("eval_loss", eval_loss)
sys.exit(0 if math.isnan(eval_loss) else 1)
