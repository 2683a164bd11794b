"""Stage 3: the experts learn too, slowly, beside the head; the base is frozen.

Knows what stage 3 trains and leaves behind; the loop and the loss are those of stage 2.
"""

from __future__ import annotations

from executor_service.model.experts import ExpertLocation
from executor_service.model.loading import load_expert
from training.joint import AnchoredRouter, Joint, Progress, head_group
from training.outcome import Outcome, features_for_bundle, finish, kept_apart
from training.run_bundle import EXPERTS_FOLDER
from training.run_config import RunConfig
from training.setting import prepare
from training.trainable_experts import TrainableExperts


def train_stage3(config: RunConfig, *, progress: Progress | None = None) -> Outcome:
    """Trains head and experts together, or goes on where a stopped run left off.

    Args:
        config: The run. Under torchrun every process is called with the same.
        progress: Called with (steps done, steps in all).

    Returns:
        What is in the run's folder: the head, and the experts as ordinary PEFT adapters.

    Raises:
        ValueError: Experts, records, head and features do not belong together, or the folder
            holds another run.
        GatesCollapsed: An expert gets next to no gates any more; nothing is written back.
    """
    setting = prepare(config)
    features = features_for_bundle(setting)
    setting = kept_apart(setting, features)
    router = AnchoredRouter(setting.head.head, setting.anchor)
    experts = TrainableExperts(setting.experts, setting.model)
    rates = setting.config.rates
    slow = {"params": list(experts.parameters()), "lr": rates.joint_expert}
    Joint(setting, experts, router, [head_group(router, setting), slow]).run(progress)
    if setting.accelerator.is_main_process:
        experts.write(setting.config.out / EXPERTS_FOLDER)
    setting.accelerator.wait_for_everyone()
    written = {name: setting.config.out / EXPERTS_FOLDER / name for name in experts.names}
    learnt = setting.model.expert_set(
        load_expert(setting.model, ExpertLocation(name, path)) for name, path in written.items()
    )
    return finish(setting, router, features, stage=3, experts=learnt, written=written)
