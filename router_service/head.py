"""The head: features to logits, in onnxruntime. Knows no expert's name and no rule."""

from __future__ import annotations

import numpy as np
import onnxruntime

from router_service.core import Features, Manifest, Vector
from router_service.errors import BundleError, Internal
from router_service.onnx_file import holds_external_data

_FLOAT32 = "tensor(float)"
# Errors come back as exceptions; what onnxruntime would print besides is no JSON log line.
_LOG_FATAL_ONLY = 4


class Head:
    """An onnxruntime session that fits its manifest. One thread at a time may call it.

    Inputs `text` [n, text_dim] and `vision` [n, vision_dim], output `logits` [n, K], all float32.

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
        self._check_signature()
        self._check_probe()

    def logits(self, features: Features) -> Vector:
        """Run the head on one request's features.

        Args:
            features: What the executor extracted.

        Returns:
            [K] float32, finite, in the order of the bundle's experts.

        Raises:
            Internal: BAD_FEATURES, a vector of another length or with a value that is not finite,
                which is never filled in; or BAD_LOGITS.
        """
        for name, dim in self._dims.items():
            vector: Vector = getattr(features, name)
            if vector.shape != (dim,) or not np.isfinite(vector).all():
                raise Internal(
                    "BAD_FEATURES",
                    "The executor's features have another size or are not finite.",
                    input=name,
                )
        logits: Vector = self._run(features.text[np.newaxis], features.vision[np.newaxis])[0]
        return logits

    def _run(self, text: Vector, vision: Vector) -> Vector:
        outputs = self._session.run(["logits"], {"text": text, "vision": vision})
        logits = np.asarray(outputs[0], dtype=np.float32)  # [n, K]
        if logits.shape != (len(text), self._experts) or not np.isfinite(logits).all():
            raise Internal("BAD_LOGITS", "The router's head gave logits that cannot be used.")
        return logits

    def _check_signature(self) -> None:
        inputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_inputs()}
        if inputs != {name: (_FLOAT32, [dim]) for name, dim in self._dims.items()}:
            raise BundleError(
                f"router.onnx takes {inputs}, and router.json says float32 inputs "
                f"[n, D] with D = {self._dims}; export the bundle again"
            )
        outputs = {node.name: (node.type, node.shape[1:]) for node in self._session.get_outputs()}
        if outputs != {"logits": (_FLOAT32, [self._experts])}:
            raise BundleError(
                f"router.onnx gives {outputs}, and router.json names {self._experts} experts: "
                "one float32 output `logits` [n, K] is needed; export the bundle again"
            )

    def _check_probe(self) -> None:
        """What the graph declares is only a claim: run it once, on two rows."""
        zeros = {name: np.zeros((2, dim), np.float32) for name, dim in self._dims.items()}
        try:
            self._run(zeros["text"], zeros["vision"])
        except Exception as error:
            raise BundleError(
                "router.onnx cannot be run on two rows of zeros; export the bundle again"
            ) from error


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
