"""The loop of stages 2 and 3: answers through the gated model, and penalties on its gates.

Knows a step, its state on disk and other processes; does not know which parameters learn.

Every random number and the order of records follow from seed, step and process alone, so a run
that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from executor_service.model.reference import MixedExperts, MixtureOutput, MultiLoRAWithRouter
from training.conversations import Conversation, rows_of_step, seed_of
from training.events import Events
from training.gating import TrainingPolicy, temperature_at
from training.head_file import SavedHead
from training.heads import LayeredHead, RouterHead
from training.losses import answer_loss, balance_loss, divergence, entropy_penalty, least_share
from training.marginals import GateMarginals
from training.setting import Setting

STATE_FILE = "state.pt"
LOG_FILE = "metrics.jsonl"
Progress = Callable[[int, int], None]
_TERMS = ("loss", "answer", "entropy", "kl", "balance", "own_gate", "gate_accuracy")
_LOSSES = _TERMS[:5]
# In the order of the parameter groups.
_RATES = ("router", "expert")


class AnchoredRouter(nn.Module):
    """A head that learns, and the one that it began as, which does not.

    Args:
        head: What is trained.
        anchor: What its probabilities are compared with; None for nothing.

    Attributes:
        anchor_probabilities: [rows, experts] of the last forward, or as the anchor emits them.
    """

    def __init__(self, head: RouterHead | LayeredHead, anchor: SavedHead | None) -> None:
        super().__init__()
        self.head = head
        self.anchor = anchor.head.requires_grad_(False) if anchor else None
        self._temperature = anchor.temperature if anchor else 1.0
        self.anchor_probabilities: torch.Tensor | None = None

    def train(self, mode: bool = True) -> AnchoredRouter:
        """The anchor has no dropout, ever."""
        super().train(mode)
        if self.anchor is not None:
            self.anchor.eval()
        return self

    def forward(self, text: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        """The head's logits, in float32 whatever the base computes in."""
        with torch.autocast(text.device.type, enabled=False):
            if self.anchor is not None:
                with torch.no_grad():
                    logits = self.anchor(text, vision) / self._temperature
                self.anchor_probabilities = logits.softmax(dim=-1)
            trained: torch.Tensor = self.head(text, vision)
        return trained


@dataclass
class Joint:
    """A run; goes on from the state in its folder if there is one.

    Args:
        setting: Its parts.
        experts: What is mixed: the setting's, or parameters.
        groups: Parameter groups of AdamW, each with its `lr` after warming up; see `head_group`.
        router: What is trained of the setting's head.
        step: Steps that are done.
    """

    setting: Setting
    experts: MixedExperts
    router: AnchoredRouter
    groups: Sequence[Mapping[str, Any]]
    step: int = 0
    _log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        setting, accelerator = self.setting, self.setting.accelerator
        rates = setting.config.rates
        self._policy = TrainingPolicy(setting.config.gates)
        self._mixture = MultiLoRAWithRouter(
            setting.model, self.experts, setting.spec, self.router, self._policy
        ).to(accelerator.device)
        optimiser = torch.optim.AdamW(
            [dict(group) for group in self.groups], weight_decay=rates.weight_decay
        )
        self._marginals = GateMarginals(
            setting.rows.marginals().to(accelerator.device), setting.config.batch_rows
        )
        state = self._load()
        if state:
            self._mixture.load_state_dict(state["trained"], strict=False)
            optimiser.load_state_dict(state["optimiser"])
            self._marginals.load_state_dict(state["marginals"])
        self._forward, self._optimiser = accelerator.prepare(self._mixture, optimiser)
        if state and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])

    def run(self, progress: Progress | None = None) -> None:
        """Trains to the end of the run.

        Args:
            progress: Called with (steps done, steps in all).

        Raises:
            GatesCollapsed: What was learnt since the last state is not kept.
            ArithmeticError: The loss is not finite; the same.
        """
        config = self.setting.config
        out = self._folder if self.setting.accelerator.is_main_process else None
        self._mixture.train()
        with Events(out, self.step) as events:
            while self.step < config.steps:
                report = self._one_step()
                self._log.append(json.dumps(report))
                events.add(self.step, self._told(report))
                self._marginals.check(config.guard, self.setting.experts.names, self.step)
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self._save()
                if progress is not None:
                    progress(self.step, config.steps)
        self._mixture.eval()

    def _one_step(self) -> dict[str, Any]:
        config, accelerator = self.setting.config, self.setting.accelerator
        self._begin()
        rows = rows_of_step(
            len(self.setting.rows), self.step, config.batch_rows, seed_of(config.seed, 0)
        )
        own = rows[accelerator.process_index :: accelerator.num_processes]
        size = config.rows_per_forward
        parts = [own[at : at + size] for at in range(0, len(own), size)]
        done: list[tuple[torch.Tensor, torch.Tensor]] = []
        for part in parts:
            batch = [self.setting.rows[at] for at in part]
            with ExitStack() as stack:
                if part is not parts[-1]:
                    stack.enter_context(accelerator.no_sync(self._forward))
                # Layers that run again during backward need the gates that they ran with.
                stack.enter_context(self._mixture.keeping_gates())
                terms, marginals = self._terms(batch)
                accelerator.backward(terms[0] / len(parts))
            done.append((terms.detach(), marginals))
        accelerator.clip_grad_norm_(self._mixture.parameters(), config.rates.clip_norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._marginals.update(torch.stack([marginals for _, marginals in done]).mean(dim=0))
        self.step += 1
        terms = torch.stack([terms for terms, _ in done]).mean(dim=0)
        return self._report(accelerator.reduce(terms, "mean"))

    def _begin(self) -> None:
        """Sets everything that follows from the step."""
        config, step = self.setting.config, self.step
        process = self.setting.accelerator.process_index
        torch.manual_seed(seed_of(config.seed, 1, step, process))
        self._policy.temperature = temperature_at(config.gates, step, config.steps)
        self._policy.noise.manual_seed(seed_of(config.seed, 2, step, process))
        warm = min((step + 1) / max(config.rates.warmup_steps, 1), 1.0)
        for given, group in zip(self.groups, self._optimiser.param_groups, strict=True):
            group["lr"] = given["lr"] * warm

    def _terms(self, batch: Sequence[Conversation]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and its parts in the order of `_TERMS`, and the mean gates everywhere [K]."""
        weights = self.setting.config.weights
        output: MixtureOutput = self._forward(
            [row.instruction for row in batch], [row.screen for row in batch]
        )
        # [rows, K] or [rows, L, K]
        gates = output.gate_probabilities
        answer = answer_loss(output.logits, [row.answer for row in batch])
        entropy = entropy_penalty(gates)
        kl = self._divergence(gates)
        here = gates.flatten(0, -2).mean(dim=0)
        everywhere = self.setting.accelerator.reduce(here.detach().clone(), "mean")
        marginals, labels = self._marginals.with_batch(everywhere, here), self._marginals.labels
        collapsing = least_share(marginals.detach(), labels) < weights.balance_below
        balance = balance_loss(marginals, labels) * collapsing
        loss = answer + weights.entropy * entropy + weights.kl * kl + weights.balance * balance
        experts = torch.tensor([row.expert for row in batch], device=gates.device)
        own = gates.reshape(len(batch), -1, gates.shape[-1]).mean(dim=1)
        own_gate = own.gather(1, experts[:, None]).mean()
        right = (own.argmax(dim=1) == experts).float().mean()
        return torch.stack([loss, answer, entropy, kl, balance, own_gate, right]), everywhere

    def _divergence(self, gates: torch.Tensor) -> torch.Tensor:
        anchor = self.router.anchor_probabilities
        if anchor is None:
            return gates.new_zeros(())
        if anchor.ndim < gates.ndim:
            anchor = anchor[:, None].expand_as(gates)
        return divergence(anchor, gates)

    def _report(self, terms: torch.Tensor) -> dict[str, Any]:
        named = dict(zip(_TERMS, terms.tolist(), strict=True))
        if not torch.isfinite(terms).all():
            raise ArithmeticError(
                f"the loss is not finite in step {self.step}; lower the rates, or use bf16 "
                "in the place of fp16"
            )
        return {
            "step": self.step,
            "temperature": self._policy.temperature,
            **named,
            "marginals": self._marginals.running.tolist(),
        }

    def _told(self, report: Mapping[str, Any]) -> dict[str, float]:
        """A step's numbers by the names that TensorBoard groups them by."""
        marginals = zip(self.setting.experts.names, report["marginals"], strict=True)
        groups = zip(_RATES, self._optimiser.param_groups, strict=False)
        return {
            **{f"loss/{name}": report[name] for name in _LOSSES},
            "gates/own": report["own_gate"],
            "gates/accuracy": report["gate_accuracy"],
            "gates/temperature": report["temperature"],
            **{f"marginal/{name}": share for name, share in marginals},
            **{f"rate/{name}": group["lr"] for name, group in groups},
        }

    @property
    def _folder(self) -> Path:
        return self.setting.config.out

    def _load(self) -> dict[str, Any] | None:
        path = self._folder / STATE_FILE
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.step = state["step"]
        # Lines of steps that are done again go.
        lines = (self._folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
        self._log = lines[: self.step]
        return state

    def _save(self) -> None:
        """Writes state and log, each whole or not at all; the log first, which may be longer."""
        accelerator = self.setting.accelerator
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return
        learnt = {name for name, part in self._mixture.named_parameters() if part.requires_grad}
        held = self._mixture.state_dict()
        state = {
            "step": self.step,
            "trained": {name: held[name].cpu() for name in held if name in learnt},
            "optimiser": self._optimiser.state_dict(),
            "marginals": self._marginals.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }
        log, path = self._folder / LOG_FILE, self._folder / STATE_FILE
        partial = log.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in self._log), encoding="utf-8")
        partial.replace(log)
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)


def head_group(router: AnchoredRouter, setting: Setting) -> dict[str, Any]:
    """The head's parameters at the router's rate."""
    return {"params": list(router.head.parameters()), "lr": setting.config.router_rate}
