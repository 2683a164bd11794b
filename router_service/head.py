"""The head: features to logits and a distance, in onnxruntime. Knows no expert's name, no rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnxruntime

from router_service.core import Features, HeadOutput, Vector
from router_service.errors import BundleError, Internal
from router_service.manifest import Manifest
from router_service.onnx_file import holds_external_data

_FLOAT32 = "tensor(float)"
# Errors come back as exceptions; what onnxruntime would print besides is no JSON log line.
_LOG_FATAL_ONLY = 4
_UNUSABLE = "The router's head gave values that cannot be used."


class Head:
    """An onnxruntime session that fits its manifest. One thread at a time may call it.

    Inputs `text` [n, text_dim] and `vision` [n, vision_dim]; outputs `logits` [n, K] and, where the
    bundle abstains, `distance` [n]; all float32.

    Args:
        model: The bytes of `router.onnx`.
        manifest: What the bundle states about them.

    Raises:
        BundleError: The model cannot be loaded, keeps values in another file, or has other inputs
            or outputs.
    """

    def __init__(self, model: bytes, manifest: Manifest) -> None:
        self._dims = {
            "text": manifest.feature_spec.text_dim,
            "vision": manifest.feature_spec.vision_dim,
        }
        self._experts = len(manifest.experts)
        self._session = _open(model)
        self._check_inputs()
        self._outputs = self._check_outputs()
        if manifest.abstention is not None and "distance" not in self._outputs:
            raise BundleError(
                "router.json states an abstention, and router.onnx gives no `distance`; "
                "export the bundle again"
            )
        self._check_probe()

    @property
    def measures_distance(self) -> bool:
        """Whether `judge` gives distances."""
        return "distance" in self._outputs

    def judge(self, batch: Sequence[Features]) -> list[HeadOutput | Internal]:
        """Run the head once for the features of several requests.

        Args:
            batch: What the executor extracted for each of them.

        Returns:
            One for each, in order: what the head says, or the error of this request alone.
            BAD_FEATURES is a vector of another length or with a value that is not finite, which
            is never filled in; BAD_LOGITS an output that is not finite.
        """
        judged: list[HeadOutput | Internal | None] = [self._problem(each) for each in batch]
        rows = [row for row, problem in enumerate(judged) if problem is None]
        if rows:
            text = np.stack([batch[row].text for row in rows])
            vision = np.stack([batch[row].vision for row in rows])
            for row, output in zip(rows, self._run(text, vision), strict=True):
                judged[row] = output
        return [each for each in judged if each is not None]

    def _problem(self, features: Features) -> Internal | None:
        for name, dim in self._dims.items():
            vector: Vector = getattr(features, name)
            if vector.shape != (dim,) or not np.isfinite(vector).all():
                return Internal(
                    "BAD_FEATURES",
                    "The executor's features have another size or are not finite.",
                    input=name,
                )
        return None

    def _run(self, text: Vector, vision: Vector) -> list[HeadOutput | Internal]:
        outputs = self._session.run(self._outputs, {"text": text, "vision": vision})
        logits: Vector = outputs[0]  # [n, K]
        distances: Vector | None = outputs[1] if len(outputs) > 1 else None  # [n]
        if logits.shape != (len(text), self._experts) or not (
            distances is None or distances.shape == (len(text),)
        ):
            raise Internal("BAD_LOGITS", _UNUSABLE)
        return [
            _checked(HeadOutput(logits[row], None if distances is None else float(distances[row])))
            for row in range(len(text))
        ]

    def _check_inputs(self) -> None:
        inputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_inputs()}
        if inputs != {name: (_FLOAT32, [dim]) for name, dim in self._dims.items()}:
            raise BundleError(
                f"router.onnx takes {inputs}, and router.json says float32 inputs "
                f"[n, D] with D = {self._dims}; export the bundle again"
            )

    def _check_outputs(self) -> list[str]:
        """The names to ask for: `logits`, and `distance` if there is one."""
        outputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_outputs()}
        expected = {"logits": (_FLOAT32, [self._experts]), "distance": (_FLOAT32, [])}
        if "logits" not in outputs or any(expected.get(k) != v for k, v in outputs.items()):
            raise BundleError(
                f"router.onnx gives {outputs}, and router.json names {self._experts} experts: "
                "one float32 output `logits` [n, K] is needed, and `distance` [n] is known; "
                "export the bundle again"
            )
        return [name for name in expected if name in outputs]

    def _check_probe(self) -> None:
        """What the graph declares is only a claim: run it once, on two rows."""
        zeros = {name: np.zeros((2, dim), np.float32) for name, dim in self._dims.items()}
        try:
            for output in self._run(zeros["text"], zeros["vision"]):
                if isinstance(output, Internal):
                    raise output
        except Exception as error:
            raise BundleError(
                "router.onnx cannot be run on two rows of zeros; export the bundle again"
            ) from error


def _checked(output: HeadOutput) -> HeadOutput | Internal:
    usable = np.isfinite(output.logits).all() and math.isfinite(output.distance or 0.0)
    return output if usable else Internal("BAD_LOGITS", _UNUSABLE)


def _open(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # The head is small: a second thread costs more than it saves, and spins while idle.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL_ONLY
    try:
        if holds_external_data(model):
            raise BundleError(
                "router.onnx keeps values in another file; export it with external_data=False"
            )
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except BundleError:
        raise
    except Exception as error:  # onnxruntime's own classes have no base class but this
        raise BundleError(
            "router.onnx is not a model that onnxruntime can load; export the bundle again"
        ) from error
