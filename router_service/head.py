"""The head: features to logits and a distance, in onnxruntime. Knows no expert's name, no rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
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
    bundle abstains, `distance` [n], and where it states layers, `layer_logits` [n, L, K]; all
    float32.

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
        experts = len(manifest.experts)
        # Without the rows. What is optional comes after what is not.
        self._shapes: dict[str, tuple[int, ...]] = {"logits": (experts,), "distance": ()}
        if manifest.layers:
            self._shapes["layer_logits"] = (manifest.layers, experts)
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
        shapes = [(dim,) for dim in self._dims.values()]
        rows = [n for n, each in enumerate(batch) if [each.text.shape, each.vision.shape] == shapes]
        judged: dict[int, HeadOutput | Internal] = {}
        if rows:
            text = np.stack([batch[row].text for row in rows])
            vision = np.stack([batch[row].vision for row in rows])
            finite = _finite_rows(text) & _finite_rows(vision)
            outputs = self._run(text, vision)
            judged = {row: outputs[n] for n, row in enumerate(rows) if finite[n]}
        return [judged.get(row) or self._bad_features(each) for row, each in enumerate(batch)]

    def _bad_features(self, features: Features) -> Internal:
        fits = features.text.shape == (self._dims["text"],) and np.isfinite(features.text).all()
        return Internal(
            "BAD_FEATURES",
            "The executor's features have another size or are not finite.",
            input="vision" if fits else "text",
        )

    def _run(self, text: Vector, vision: Vector) -> list[HeadOutput | Internal]:
        outputs: list[Vector] = self._session.run(self._outputs, {"text": text, "vision": vision})
        found, rows = dict(zip(self._outputs, outputs, strict=True)), len(text)
        if any(each.shape != (rows, *self._shapes[name]) for name, each in found.items()):
            raise Internal("BAD_LOGITS", _UNUSABLE)
        usable = np.min([_finite_rows(each) for each in outputs], axis=0)
        distances, layers = found.get("distance"), found.get("layer_logits")
        return [
            HeadOutput(
                found["logits"][row],
                None if distances is None else float(distances[row]),
                None if layers is None else layers[row],
            )
            if row_is_usable
            else Internal("BAD_LOGITS", _UNUSABLE)
            for row, row_is_usable in enumerate(usable.tolist())
        ]

    def _check_inputs(self) -> None:
        inputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_inputs()}
        if inputs != {name: (_FLOAT32, [dim]) for name, dim in self._dims.items()}:
            raise BundleError(
                f"router.onnx takes {inputs}, and router.json says float32 inputs "
                f"[n, D] with D = {self._dims}; export the bundle again"
            )

    def _check_outputs(self) -> list[str]:
        """The names to ask for: all that are known and there."""
        outputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_outputs()}
        expected = {name: (_FLOAT32, [*shape]) for name, shape in self._shapes.items()}
        missing = set(expected) - {"distance"} - set(outputs)
        if missing or any(expected.get(k) != v for k, v in outputs.items()):
            raise BundleError(
                f"router.onnx gives {outputs}, and router.json names {self._shapes['logits'][0]} "
                "experts: one float32 output `logits` [n, K] is needed, `distance` [n] is known, "
                "and `layer_logits` [n, L, K] where it states layers; export the bundle again"
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


def _finite_rows(values: Vector) -> npt.NDArray[np.bool_]:
    finite: npt.NDArray[np.bool_] = np.isfinite(values).reshape(len(values), -1).min(axis=1)
    return finite


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
