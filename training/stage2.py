"""Stage 2: the head learns from the answers, through the gates; base and experts are frozen.

Knows what stage 2 trains and leaves behind; the loop is `joint`'s.

    loss = cross-entropy of the answers + entropy penalty + divergence from stage 1
           + balance towards the labels' marginals, while those of the gates are collapsing
"""

from __future__ import annotations

from training.joint import AnchoredRouter, Joint, Progress, head_group
from training.outcome import Outcome, features_for_bundle, finish, kept_apart
from training.run_config import RunConfig
from training.setting import prepare


def train_stage2(config: RunConfig, *, progress: Progress | None = None) -> Outcome:
    """Trains the head, or goes on where a stopped run left off.

    Args:
        config: The run. Under torchrun every process is called with the same.
        progress: Called with (steps done, steps in all).

    Raises:
        ValueError: Experts, records, head and features do not belong together, or the folder
            holds another run.
        GatesCollapsed: An expert gets next to no gates any more.
    """
    setting = prepare(config)
    features = features_for_bundle(setting)
    setting = kept_apart(setting, features)
    router = AnchoredRouter(setting.head.head, setting.anchor)
    Joint(setting, setting.experts, router, [head_group(router, setting)]).run(progress)
    return finish(setting, router, features, stage=2, experts=setting.experts, written={})
