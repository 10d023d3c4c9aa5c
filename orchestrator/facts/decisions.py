"""What events say: the rules' own words about made-up runs."""

import math

from altgrad.training.callbacks import RankWatch
from altgrad.training.config import ModelConfig, RankConfig
from altgrad.training.shapes import matrix_names
from orchestrator.sweep.stopping import Asha, LanePolicy, LaneReport, LaneWatch, RankCheck, RankWarning


def examples() -> dict[str, str]:
    """A message of every kind of event that a rule decides on, by kind."""
    matrix, step = matrix_names(ModelConfig())[2], RankConfig().warmup_steps
    alarm = RankWatch(RankConfig()).check(step, {matrix: 40.0}, {matrix: 100.0})[0]
    policy, asha = LanePolicy(), Asha(min_step=100, eta=2, max_step=400)
    warned = RankCheck(step, (RankWarning(*alarm),))
    lost_runs = [
        [LaneReport(100, 2.5, 2.5, 0.1, (warned,) * policy.rank_collapse_patience)],
        [LaneReport(100 * i, 3.0, 3.0, 1.0) for i in range(1, policy.stall_patience + 1)],
        [LaneReport(100, math.nan, None, None)],
    ]
    ends = [asha.decide("sweep", f"pack {i}", 100, value) for i, value in enumerate((2.4, 2.5, 2.9))]
    for reports in lost_runs:
        watch = LaneWatch(policy)
        ends += [watch.observe(report) for report in reports]
    said = {"rank_warning": alarm.message} | {end.reason: end.message for end in ends if end is not None}
    return said | {"audited": f"asha: {said['asha']}"}
