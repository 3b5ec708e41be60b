"""Plans one run in a process of its own: its configuration on the standard input, the largest micro-batch printed."""

import json
import sys

from accelerate import PartialState

from trainer.planning.plan import plan_memory
from trainer.planning.rehearsals import RUN_CONFIGS
from trainer.runs.configuration import typed

told = json.load(sys.stdin)
PartialState(cpu=True)
config = typed(RUN_CONFIGS[told["config"]], told["values"], "train.find_micro_batch=true")
largest = plan_memory(config, told["room"], told["processes"]).largest
print(largest.images if largest else 0)
