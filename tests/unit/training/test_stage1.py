"""Stage 1 on features whose answer is known, and its export."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from router_service.bundle import load_bundle
from router_service.core import ExpertEntry, Features, FeatureSpec, HeadOutput, Mode
from router_service.head import Head
from tests.support.events import read_scalars
from tests.support.feature_cache import write_shard
from training.calibration import expected_calibration_error, fit_temperature, log_loss
from training.export import Judge, export_bundle, to_onnx
from training.features import load_features
from training.heads import RouterHead
from training.known_screens import KnownScreens, known_looks, known_screens
from training.lessons import agent_rows, class_weights
from training.shown import ShownImages
from training.splitting import split_by_image
from training.stage1 import follow, head_logits, train_stage1
from training.stage1_config import Stage1Config

EXPERTS = tuple(ExpertEntry(name, name[0] * 64, label) for label, name in enumerate("abcd"))
SPEC = FeatureSpec(2, "mean", "tower", "mean", 24, 16, "b" * 64, "1")
FAST = Stage1Config(width=32, max_epochs=60, patience_epochs=15, learning_rate=3e-3)


def write_cache(
    directory: Path,
    *,
    images: int = 12,
    rows: int = 5,
    noise: float = 0.3,
    first_image: int = 0,
) -> Path:
    """Four experts: the text alone tells a|b from c|d, the vision alone a|c from b|d."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(4, 24, generator=generator), torch.randn(4, 16, generator=generator)
    columns: dict[str, list[torch.Tensor]] = {"text": [], "vision": []}
    labels, image_ids = [], []
    for label in range(4):
        for image in range(images):
            for _ in range(rows):
                for part, own, sign in (
                    ("text", directions[0][0], 1 - 2 * (label // 2)),
                    ("vision", directions[1][0], 1 - 2 * (label % 2)),
                ):
                    jitter = noise * torch.randn(len(own), generator=generator)
                    columns[part].append(sign * own + jitter)
                labels.append(label)
                image_ids.append(1000 * label + first_image + image)
    shard = {
        "text": torch.stack(columns["text"]),
        "vision": torch.stack(columns["vision"]),
        "label": torch.tensor(labels),
        "image": torch.tensor(image_ids),
        "source": torch.zeros(len(labels), dtype=torch.int64),
    }
    return write_shard(directory, shard, SPEC, EXPERTS, "d" * 64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def result(cache: Path):
    return train_stage1(cache, config=FAST, progress=False)


@pytest.fixture(scope="module")
def bundle(result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(result, tmp_path_factory.mktemp("router"))


def take_labels(
    cache: Path, out: Path, *, reliability: float, keep_images: int, hints: bool = True
) -> Path:
    """The cache with labels on the first images of each expert only; an agent names the others'.

    Its mistakes all go to the next expert. On what stays labelled it says something too.
    """
    table = load_features(cache)
    noise = torch.Generator().manual_seed(2)
    wrong = torch.rand(len(table), generator=noise) > reliability
    said = torch.where(wrong, (table.label + 1) % 4, table.label)
    kept = table.image % 1000 < keep_images
    shard = {
        "text": table.text,
        "vision": table.vision,
        "label": torch.where(kept, table.label, torch.tensor(-1)),
        "image": table.image,
        "source": table.source,
        "hinted": said if hints else torch.full_like(said, -1),
        "confidence": torch.full((len(table),), reliability),
    }
    return write_shard(out, shard, SPEC, EXPERTS, "d" * 64)


class TestAgentLabels:
    """Few labels, and an agent that is wrong about the other cases as often as not nearly."""

    def accuracy(self, result, cache: Path) -> float:
        table = load_features(cache)
        rows = (table.image % 1000 >= 4).nonzero().flatten()
        found = head_logits(result.head, table, rows).argmax(dim=1)
        return float((found == table.label[rows]).double().mean())

    def test_they_help_although_many_are_wrong(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path / "all", images=40, noise=3.0)
        found = {}
        for name, hints in (("without", False), ("with", True)):
            few = take_labels(cache, tmp_path / name, reliability=0.7, keep_images=4, hints=hints)
            found[name] = self.accuracy(train_stage1(few, config=FAST, progress=False), cache)
        assert found["with"] > found["without"] + 0.03

    def test_what_is_measured_on_is_labelled_by_people(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path / "all")
        few = load_features(take_labels(cache, tmp_path / "f", reliability=0.7, keep_images=4))
        splits = split_by_image(few, FAST)
        assert all((few.label[rows] >= 0).all() for rows in splits.values())
        said = agent_rows(few, splits)
        assert len(said) == 4 * 8 * 5
        assert (few.label[said] == -1).all()


class TestTraining:
    def test_what_can_be_told_apart_is_told_apart(self, result) -> None:
        assert result.accuracy["held_out"] == 1.0
        assert result.accuracy["validation"] == 1.0
        assert result.mode.value is Mode.TOP1
        assert "held-out" in result.mode.why

    def test_it_needs_both_inputs(self, cache: Path, result) -> None:
        table = load_features(cache)
        for blank in ("text", "vision"):
            parts = {"text": table.text, "vision": table.vision}
            parts[blank] = torch.zeros_like(parts[blank])
            with torch.inference_mode():
                predicted = result.head(**parts).argmax(dim=1)
            assert (predicted == table.label).double().mean() < 0.8

    def test_the_same_seed_gives_the_same_head(self, cache: Path, result) -> None:
        before = torch.random.get_rng_state()
        again = train_stage1(cache, config=FAST, progress=False)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert again.temperature == result.temperature
        for name, value in result.head.state_dict().items():
            assert torch.equal(again.head.state_dict()[name], value)

    def test_another_seed_gives_another(self, cache: Path, result) -> None:
        config = FAST.model_copy(update={"seed": 1, "max_epochs": 2})
        other = train_stage1(cache, config=config, progress=False)
        assert not torch.equal(
            other.head.state_dict()["text.1.weight"], result.head.state_dict()["text.1.weight"]
        )

    def test_tensorboard_is_told_every_epoch(self, cache: Path, tmp_path: Path) -> None:
        config = FAST.model_copy(update={"max_epochs": 3})
        train_stage1(cache, config=config, progress=False, events=tmp_path)
        told = read_scalars(tmp_path / "events")
        assert {name.split("/")[0] for name in told} == {"gates", "loss", "marginal", "rate"}
        assert all(list(steps) == [1, 2, 3] for steps in told.values())
        assert sum(told[f"marginal/{name}"][3] for name in "abcd") == pytest.approx(1, abs=1e-5)
        assert told["loss/train"][3] < told["loss/train"][1]
        assert told["rate/router"][1] == pytest.approx(3e-3)

    def test_features_without_the_answer_give_soft_gates(self, tmp_path: Path) -> None:
        noise = write_cache(tmp_path, noise=30.0)
        blind = train_stage1(noise, config=FAST, progress=False)
        assert blind.mode.value is Mode.SOFT
        assert blind.accuracy["held_out"] < 0.6


class TestAveraging:
    def test_by_hand(self) -> None:
        one, zero = torch.ones(1), torch.zeros(1)
        assert float(follow(0.9, one, zero, 1)) == pytest.approx(2 / 11)
        assert float(follow(0.9, one, zero, 1000)) == pytest.approx(0.9)
        assert float(follow(0.0, one, zero, 1000)) == 0.0

    def test_the_head_is_the_average_of_what_is_learnt(self, cache: Path) -> None:
        """After two steps: the first weights are taken as they are, the second follow."""
        config = FAST.model_copy(
            update={"batch_rows": 1000, "mixup": 0.0, "dropout": 0.0, "max_epochs": 2}
        )
        kept = "mix.5.weight"

        def trained(averaging: float, epochs: int) -> torch.Tensor:
            chosen = config.model_copy(update={"averaging": averaging, "max_epochs": epochs})
            return train_stage1(cache, config=chosen, progress=False).head.state_dict()[kept]

        first, second = trained(0.0, 1), trained(0.0, 2)
        assert torch.equal(trained(0.9, 1), first)
        expected = torch.lerp(first, second, 1 - 2 / 11)
        assert torch.allclose(trained(0.9, 2), expected, atol=1e-7)

    def test_features_that_are_no_numbers_give_no_head(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path)
        shard = load_file(cache / "shard-00000.safetensors")
        shard["text"][:] = math.nan
        write_shard(cache, shard, SPEC, EXPERTS, "d" * 64)
        with pytest.raises(ArithmeticError, match="no validation loss is a number"):
            train_stage1(cache, config=FAST, progress=False)


class TestKnownCache:
    """The looks that a router is to know may be fewer than those that its head learns from."""

    def test_what_is_known_is_the_cache_s_and_the_head_stays_the_same(
        self, cache: Path, result, tmp_path: Path
    ) -> None:
        looks = write_cache(tmp_path, images=4, noise=0.1, first_image=500)
        found = train_stage1(cache, config=FAST, known=looks, progress=False)
        table = load_features(looks)
        expected = known_screens(table, torch.arange(len(table)))
        assert torch.equal(found.known.mean, expected.mean)
        assert torch.equal(found.known.spread, expected.spread)
        assert not torch.equal(result.known.mean, expected.mean)
        assert (result.known_digest, found.known_digest) == ("", "d" * 64)
        for name, value in result.head.state_dict().items():
            assert torch.equal(found.head.state_dict()[name], value)

    def test_its_images_count_as_learnt_from(self, cache: Path, result, tmp_path: Path) -> None:
        looks = write_cache(tmp_path, images=4, noise=0.1, first_image=500)
        found = train_stage1(cache, config=FAST, known=looks, progress=False)
        images = load_features(looks).image
        assert not result.shown.taught(images).any()
        assert found.shown.taught(images).all()
        assert len(found.shown) == len(result.shown) + len(images.unique())

    def test_what_the_head_is_measured_on_does_not_become_known(self, cache: Path, result) -> None:
        found = train_stage1(cache, config=FAST, known=cache, progress=False)
        assert torch.equal(found.known.mean, result.known.mean)
        assert torch.equal(found.known.spread, result.known.spread)
        assert torch.equal(found.shown.split, result.shown.split)

    def test_of_other_experts_or_features_it_is_refused(self, cache: Path, tmp_path: Path) -> None:
        table, none = load_features(cache), ShownImages.of({})
        shard = load_file(cache / "shard-00000.safetensors")
        renamed = (*EXPERTS[:3], ExpertEntry("z", "z" * 64, 3))
        others = write_shard(tmp_path / "others", shard, SPEC, renamed, "d" * 64)
        with pytest.raises(ValueError, match="is of a, b, c, z, the features are of a, b, c, d"):
            known_looks(others, table.index, none)
        spec = dataclasses.replace(SPEC, text_layer=1)
        read = write_shard(tmp_path / "read", shard, spec, EXPERTS, "d" * 64)
        with pytest.raises(ValueError, match="extract it again"):
            known_looks(read, table.index, none)
        some = {name: column[table.label < 3] for name, column in shard.items()}
        few = write_shard(tmp_path / "few", some, SPEC, EXPERTS, "d" * 64)
        with pytest.raises(
            ValueError, match="holds no screen of d that the head is not measured on"
        ):
            known_looks(few, table.index, none)


class TestSplit:
    def test_no_image_is_cut_and_every_expert_is_everywhere(self, cache: Path) -> None:
        table = load_features(cache)
        splits = split_by_image(table, Stage1Config())
        assert sum(len(rows) for rows in splits.values()) == len(table)
        images = {name: set(table.image[rows].tolist()) for name, rows in splits.items()}
        assert not images["train"] & images["validation"]
        assert not images["train"] & images["held_out"]
        assert not images["validation"] & images["held_out"]
        for rows in splits.values():
            assert set(table.label[rows].tolist()) == {0, 1, 2, 3}

    def test_too_few_images(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path, images=2)
        with pytest.raises(ValueError, match="three are the least"):
            train_stage1(cache, progress=False)

    def test_class_weights_even_out(self) -> None:
        weights = class_weights(torch.tensor([0] * 30 + [1] * 10), 2)
        assert (weights * torch.tensor([30.0, 10.0])).tolist() == pytest.approx([20.0, 20.0])


class TestCache:
    def test_a_changed_shard(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path)
        shard = cache / "shard-00000.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
        with pytest.raises(ValueError, match="extract again"):
            load_features(cache)

    def test_another_spec(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path)
        content = json.loads((cache / "features.json").read_text())
        content["feature_spec"]["text_layer"] = 3
        (cache / "features.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="feature spec changed"):
            load_features(cache)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no whole feature cache"):
            load_features(tmp_path)


class TestTemperature:
    def test_it_undoes_an_overconfident_head(self) -> None:
        generator = torch.Generator().manual_seed(0)
        true_logits = 2 * torch.randn(4000, 5, generator=generator)
        labels = torch.multinomial(torch.softmax(true_logits, 1), 1, generator=generator).flatten()
        fitted = fit_temperature(true_logits * 3, labels)
        assert fitted == pytest.approx(3.0, rel=0.06)
        before = expected_calibration_error(true_logits * 3, labels, 1.0)
        after = expected_calibration_error(true_logits * 3, labels, fitted)
        assert after < before / 4
        assert log_loss(true_logits * 3, labels, fitted) < log_loss(true_logits * 3, labels, 1.0)

    def test_no_mistake_does_not_make_it_certain(self) -> None:
        labels = torch.arange(4).repeat(10)
        logits = torch.nn.functional.one_hot(labels, 4).float() * 50
        fitted = fit_temperature(logits, labels)
        confidence = torch.softmax(logits / fitted, dim=1).max(dim=1).values.mean()
        assert float(confidence) == pytest.approx(41 / 42, abs=1e-3)

    def test_calibration_error_by_hand(self) -> None:
        # Two cases at 0.8: one right, one wrong.
        logits = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()
        error = expected_calibration_error(logits, torch.tensor([0, 1]), 1.0)
        assert error == pytest.approx(0.3)


class TestExport:
    def test_the_router_loads_it_and_gets_torchs_logits(
        self, bundle: Path, cache: Path, result
    ) -> None:
        loaded = load_bundle(bundle)
        head = Head(loaded.head, loaded.manifest)
        table = load_features(cache)
        with torch.inference_mode():
            logits = result.head(table.text, table.vision).numpy()
            distances = result.known(table.vision).numpy()
        rows = range(0, len(table), 17)
        judged = head.judge(
            [Features(table.text[n].numpy(), table.vision[n].numpy(), "", "", "", "") for n in rows]
        )
        for row, output in zip(rows, judged, strict=True):
            assert isinstance(output, HeadOutput)
            np.testing.assert_allclose(output.logits, logits[row], atol=1e-5)
            assert output.distance == pytest.approx(distances[row], abs=1e-5)

    def test_it_states_where_it_comes_from(self, bundle: Path, result) -> None:
        manifest = load_bundle(bundle).manifest
        assert manifest.experts == EXPERTS
        assert manifest.feature_spec == SPEC
        assert manifest.opset == 20
        assert manifest.temperature.value == result.temperature
        assert manifest.provenance.accuracy == result.accuracy
        assert manifest.provenance.dataset_digest == "d" * 64
        assert manifest.thresholds.agent_veto.source == "typed"

    def test_it_is_one_file_without_a_trace_of_this_machine(self, bundle: Path) -> None:
        names = sorted(path.name for path in bundle.iterdir())
        assert names == ["router.json", "router.onnx", "shown.safetensors"]
        model = onnx.load(bundle / "router.onnx", load_external_data=False)
        assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
        names = {tensor.name for tensor in model.graph.initializer}
        assert names >= set(RouterHead(24, 16, 4, 32, 0.0).state_dict())
        for path in bundle.iterdir():
            content = path.read_bytes()
            for trace in (b"site-packages", b".py", str(Path.home()).encode(), b"stack_trace"):
                assert trace not in content

    def test_the_same_head_is_the_same_file(self, result) -> None:
        judge = Judge(result.head, result.known)
        assert to_onnx(judge) == to_onnx(judge)

    def test_a_head_of_other_sizes(self) -> None:
        head = RouterHead(5, 7, 1, 4, 0.0).eval()
        known = KnownScreens(torch.zeros(1, 7), torch.ones(1, 7))
        assert len(to_onnx(Judge(head, known))) < 15_000


class TestKnownScreens:
    def test_by_hand(self) -> None:
        known = KnownScreens(torch.tensor([[0.0, 0.0], [10.0, 10.0]]), torch.tensor([[1.0, 2.0]]))
        distances = known(torch.tensor([[0.0, 0.0], [3.0, 8.0], [11.0, 10.0]]))
        assert distances.tolist() == pytest.approx([0.0, 12.5**0.5, 0.5**0.5])

    def test_screens_of_the_data_are_near_and_others_far(self, cache: Path, result) -> None:
        table = load_features(cache)
        held_out = split_by_image(table, FAST)["held_out"]
        near = result.known(table.vision[held_out])
        far = result.known(3 * table.vision[held_out])
        assert float(near.max()) < 2 < float(far.min())

    def test_an_expert_with_one_screen_has_a_spread(self, cache: Path) -> None:
        table = load_features(cache)
        first = torch.tensor([int((table.label == label).nonzero()[0]) for label in range(4)])
        known = known_screens(table, first)
        assert known(table.vision[first]).tolist() == pytest.approx([0.0] * 4)
        assert float(known.spread.min()) > 0
