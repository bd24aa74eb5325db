"""Foreign weights in every spelling of their names become the model that they came from, or nothing does.

The weights are those of a small CheXNet of ours, put into the names and the layout of others by code of the tests.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_compress.data import NIH_FINDINGS
from cxr_compress.errors import CompressionError, DataError, ModelFileError
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet, import_weights
from cxr_compress.models.imports.base import SOURCES, register_source
from cxr_compress.models.imports.efficientnet_lite import efficientnet_layers
from cxr_compress.models.imports.torch_densenet import XRV_FINDINGS, densenet_layers
from cxr_compress.models.networks import efficientnet_lite0
from tests.models.torch_files import Name, legacy_bytes, module, safetensors_bytes, write_legacy, write_zip
from tests.nets import batch, enliven

SMALL = {"width": 0.25, "blocks": (2, 1, 1)}


def net(classes: int = 14, channels: int = 3) -> keras.Model:
    return enliven(chexnet(classes, (32, 32, channels), **SMALL))


@pytest.fixture(scope="module")
def model():
    return net()


def torch_name(layer: str) -> str:
    """Our layer in torchvision's words."""
    inner = re.fullmatch(r"conv(\d+)_block(\d+)_(0_bn|1_conv|1_bn|2_conv)", layer)
    if inner:
        part = {"0_bn": "norm1", "1_conv": "conv1", "1_bn": "norm2", "2_conv": "conv2"}[inner[3]]
        return f"features.denseblock{int(inner[1]) - 1}.denselayer{inner[2]}.{part}"
    between = re.fullmatch(r"pool(\d+)_(bn|conv)", layer)
    if between:
        return f"features.transition{int(between[1]) - 1}.{'norm' if between[2] == 'bn' else 'conv'}"
    return {
        "conv1/conv": "features.conv0",
        "conv1/bn": "features.norm0",
        "bn": "features.norm5",
        "logits": "classifier",
    }[layer]


PARTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def torch_state(model, name=torch_name) -> dict[str, np.ndarray]:
    """Weights of a Keras model as PyTorch has them; the epsilon of PyTorch is taken into gamma."""
    state = {}
    for layer in model.layers:
        arrays = {w.name.rpartition("/")[2][:-2]: w.numpy() for w in layer.weights}
        if "gamma" in arrays:
            variance = arrays["moving_variance"].astype(np.float64)
            change = np.sqrt((variance + 1e-5) / (variance + layer.epsilon)) if layer.epsilon < 1e-3 else 1.0
            arrays["gamma"] = (arrays["gamma"] * change).astype(np.float32)
            state[f"{name(layer.name)}.num_batches_tracked"] = np.array(7)
        for part, array in arrays.items():
            if part == "depthwise_kernel":
                part, array = "weight", array.transpose(2, 3, 0, 1)  # noqa: PLW2901
            if part == "kernel":
                part, array = "weight", array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T  # noqa: PLW2901
            state[f"{name(layer.name)}.{PARTS.get(part, part)}"] = np.ascontiguousarray(array)
    return state


def old_style(state):
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): array for name, array in state.items()}


def arnoweng(state):
    renamed = {name.replace("classifier.", "classifier.0."): array for name, array in old_style(state).items()}
    inner = {f"module.densenet121.{name}": array for name, array in renamed.items()}
    return {"epoch": 9, "best_loss": 0.1, "state_dict": inner, "optimizer": {"state": {}}}


def same_logits(made, model, tolerance=1e-5):
    x = batch(model)
    expected = model(x).numpy()
    assert expected.std(axis=0).min() > 1e-2
    return np.abs(made.model(x).numpy() - expected).max() < tolerance * np.abs(expected).max()


# What training leaves in front of names, or inside of them: any of it, in any order.
AROUND = ("module.", "_orig_mod.", "model.", "_fsdp_wrapped_module.", "net.", "densenet121.", "backbone.")
INSIDE = ("module.", "_orig_mod.", "_checkpoint_wrapped_module.")


@given(
    st.lists(st.sampled_from(AROUND), max_size=4), st.sampled_from(INSIDE), st.sampled_from(("features", "denseblock1"))
)
@settings(max_examples=30, deadline=None)
def test_densenet_names_in_any_wrapping_are_those_of_the_network(around, inside, part):
    """torch.compile puts _orig_mod. before every name that it saves."""
    names = ["features.conv0.weight", "features.denseblock1.denselayer2.norm1.bias", "classifier.weight"]
    plain = {name: np.zeros(1) for name in names}
    wrapped = {"".join(around) + name.replace(f"{part}.", f"{part}.{inside}"): array for name, array in plain.items()}
    layers, _ = densenet_layers(plain)
    found, ignored = densenet_layers(wrapped)
    assert {layer: set(parts) for layer, parts in found.items()} == {
        layer: set(parts) for layer, parts in layers.items()
    }
    assert ignored == ()


def test_names_of_two_networks_or_of_none_are_refused():
    array = np.zeros(1)
    with pytest.raises(ModelFileError, match=r"module\.classifier\.weight, _orig_mod\.classifier\.weight are the same"):
        densenet_layers({"module.classifier.weight": array, "_orig_mod.classifier.weight": array})
    with pytest.raises(ModelFileError, match=r"_fc\.weight, module\._fc\.weight are the same weight"):
        efficientnet_layers({"_fc.weight": array, "module._fc.weight": array})
    with pytest.raises(ModelFileError, match=r"1 of its names are those of no DenseNet: my_module\.classifier\.weight"):
        densenet_layers({"my_module.classifier.weight": array})


def compiled(state):
    """torch.compile around DataParallel around a LightningModule's network."""
    return {"epoch": 3, "state_dict": {f"_orig_mod.module.model.{name}": array for name, array in state.items()}}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    ("kind", "spelling"),
    [
        ("torchvision_densenet", dict),
        ("torchvision_densenet", old_style),
        ("chexnet_torch", arnoweng),
        ("chexnet_torch", compiled),
    ],
)
def test_import_weights_every_spelling_of_densenet_gives_the_model_back(tmp_path, model, write, kind, spelling):
    state = torch_state(model)
    path = write(tmp_path / "weights.pth.tar", spelling(state))
    made = import_weights(kind, path, input_size=32)
    assert same_logits(made, model)
    assert made.model.output_shape == (None, 14)
    report = made.report
    assert report.network == "chexnet"
    assert report.outputs == 14
    assert len(report.ignored) == sum("num_batches_tracked" in name for name in state)
    assert sorted(report.renamed.values()) == sorted(weight.name for weight in made.model.weights)
    assert report.parameters == model.count_params()
    spec = made.about.preprocess
    assert (spec.height, spec.channels, spec.mean) == (32, 3, (0.485, 0.456, 0.406))
    if kind == "chexnet_torch":
        assert made.about.findings == NIH_FINDINGS


def test_import_weights_safetensors_and_npz_and_half_precision_give_the_model_back(tmp_path, model):
    state = torch_state(model)
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes(state))
    np.savez(tmp_path / "w.npz", **state)
    halves = {name: array.astype(np.float16) if array.ndim else array for name, array in state.items()}
    for path in (tmp_path / "w.safetensors", tmp_path / "w.npz"):
        assert same_logits(import_weights("torchvision_densenet", path, input_size=32), model)
    made = import_weights("torchvision_densenet", write_zip(tmp_path / "half.pt", halves), input_size=32)
    assert made.report.stored_dtype == "float16"
    assert same_logits(made, model, 0.02)  # float16 keeps 11 bits: one part in 2048 of each weight
    assert not same_logits(made, model)


def spoiled(state, name, change):
    return {**state, name: change(state[name])}


CONV = "features.denseblock1.denselayer1.conv2.weight"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: spoiled(state, CONV, lambda w: w[..., ::-1]),
        lambda state: spoiled(state, CONV, lambda w: w[[1, 0, *range(2, len(w))]]),
        lambda state: spoiled(state, "classifier.weight", lambda w: w[::-1]),
        lambda state: spoiled(state, "features.norm5.running_mean", lambda w: w * 1.01),
    ],
)
def test_control_one_spoiled_tensor_changes_the_logits(tmp_path, model, spoil):
    path = write_zip(tmp_path / "w.pt", spoil(torch_state(model)))
    assert not same_logits(import_weights("torchvision_densenet", path, input_size=32), model)


def xrv_module(state, **attributes):
    """A whole module: every tensor in a module of its own kind, as torch.save(model) writes."""

    def tree(entries):
        own = {name: array for name, array in entries.items() if "." not in name}
        inner = {}
        for name, array in entries.items():
            if "." in name:
                head, _, rest = name.partition(".")
                inner.setdefault(head, {})[rest] = array
        buffers = {name: own.pop(name) for name in list(own) if name.startswith(("running", "num"))}
        return module(Name("torch.nn.modules", "M"), own, buffers, {name: tree(sub) for name, sub in inner.items()})

    made = tree(state)
    made.state.update(attributes)
    return made._replace(name=Name("torchxrayvision.models", "DenseNet"))


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_import_weights_torchxrayvision_module_keeps_its_channel_and_thresholds(tmp_path, write):
    model = net(18, 1)
    limits = [0.25, float("nan"), *([0.001] * 16)]
    path = write(tmp_path / "xrv.pt", xrv_module(torch_state(model), op_threshs=limits, pathologies=[""] * 18))
    made = import_weights("torchxrayvision", path, input_size=32, num_classes=4)
    cut = chexnet(4, (32, 32, 1), **SMALL)
    head = [weight[..., :4] for weight in model.layers[-1].get_weights()]
    cut.set_weights([*model.get_weights()[:-2], *head])
    assert same_logits(made, cut)
    assert made.about.findings == XRV_FINDINGS[:4]
    assert made.report.left_out == XRV_FINDINGS[4:]
    assert made.report.thresholds["Atelectasis"] == 0.25
    assert "Consolidation" not in made.report.thresholds
    assert made.about.notes == "operating points of the source, as probabilities: " + ", ".join(
        ["Atelectasis 0.25", "Infiltration 0.001", "Pneumothorax 0.001"]
    )
    assert made.about.preprocess.channels == 1
    assert "torchxrayvision" in made.about.attribution


def test_import_weights_torchxrayvision_thresholds_as_buffer_and_names_as_attribute(tmp_path):
    model = net(2, 1)
    state = {**torch_state(model), "op_threshs": np.float32([0.5, 0.125])}
    made = import_weights("torchxrayvision", write_zip(tmp_path / "s.pt", state), input_size=32)
    assert made.report.thresholds == {"finding_1": 0.5, "finding_2": 0.125}
    path = write_zip(tmp_path / "m.pt", xrv_module(state, pathologies=["Mass", "Nodule"]))
    assert import_weights("torchxrayvision", path, input_size=32).report.thresholds == {"Mass": 0.5, "Nodule": 0.125}


def without(name):
    return lambda state: {key: array for key, array in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "fc.weight": s["classifier.weight"]}, "1 of its names are those of no DenseNet: fc.weight"),
        (
            lambda s: {**s, "classifier.scale": s["classifier.bias"]},
            "1 of its weights have no place .* classifier.scale",
        ),
        (without("features.norm5.running_var"), "it lacks 1 of the weights of chexnet: bn/moving_variance"),
        (without("features.conv0.weight"), "it lacks the convolution conv1/conv"),
        (without("classifier.bias"), "it lacks the bias of its last layer"),
        (lambda s: {**s, "module.classifier.bias": s["classifier.bias"]}, "are the same weight: leave one of them out"),
        (
            lambda s: spoiled(s, CONV, lambda w: w[:, :, :1]),
            r"denselayer1\.conv2\.weight has the shape \(1, 3, 32, 8\)",
        ),
        (lambda s: spoiled(s, CONV, lambda w: w * np.float32("nan")), "holds numbers that are not finite"),
        (lambda s: spoiled(s, CONV, lambda w: w.astype(np.float64) + 1e300), "holds numbers that are not finite"),
        (lambda s: spoiled(s, CONV, lambda w: w.astype(np.int64)), "holds no floating-point numbers"),
        (lambda s: spoiled(s, "features.conv0.weight", lambda w: w[:12]), "filters: expected 64, 128 and 32"),
        (
            lambda s: {k: a for k, a in s.items() if "denseblock2" not in k},
            "no dense blocks, or one of them is missing",
        ),
        (lambda s: {"x\n\x1b[2J": s["classifier.bias"]}, r"those of no DenseNet: x\\n\\x1b\[2J$"),
    ],
)
def test_import_weights_file_of_another_network_is_one_clear_error(tmp_path, model, change, message):
    path = write_zip(tmp_path / "other.pt", change(torch_state(model)))
    with pytest.raises(ModelFileError, match=message) as caught:
        import_weights("torchvision_densenet", path, input_size=32)
    assert str(caught.value).startswith("other.pt: ")
    assert "\n" not in str(caught.value)


def test_import_weights_more_classes_than_outputs_is_an_error(tmp_path, model):
    path = write_zip(tmp_path / "w.pt", torch_state(model))
    with pytest.raises(ModelFileError, match="it has 14 outputs, 15 were asked for: set num_classes to 14 at most"):
        import_weights("torchvision_densenet", path, num_classes=15)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"findings": ["Mass"]}, DataError, "1 findings are named for 14 logits"),
        ({"input_size": 31}, CompressionError, r"\(31, 31, 3\) is too small"),
        ({"num_classes": 0}, CompressionError, "num_classes must be at least 1"),
    ],
)
def test_import_weights_wrong_argument_is_an_error(tmp_path, model, arguments, error, message):
    path = write_zip(tmp_path / "w.pt", torch_state(model))
    with pytest.raises(error, match=message):
        import_weights("torchvision_densenet", path, **arguments)


def test_import_weights_unknown_kind_is_an_error(tmp_path):
    with pytest.raises(
        ModelFileError, match="unknown kind of weights 'onnx': choose one of torchvision_densenet, chexnet_torch"
    ):
        import_weights("onnx", tmp_path / "w.onnx")


def test_import_weights_imagenet_head_is_drawn_anew_unless_asked_for(tmp_path):
    model = net(1000)
    path = write_zip(tmp_path / "imagenet.pt", torch_state(model))
    kept = import_weights("torchvision_densenet", path, input_size=32)
    assert kept.report.fresh == ()
    assert kept.about.findings[:2] == ("class_0", "class_1")
    made = import_weights("torchvision_densenet", path, num_classes=3, input_size=32, findings=["a", "b", "c"])
    assert made.report.fresh == ("logits/kernel:0", "logits/bias:0")
    assert made.about.findings == ("a", "b", "c")
    again = import_weights("torchvision_densenet", path, num_classes=3, input_size=32)
    np.testing.assert_array_equal(again.model.layers[-1].get_weights()[0], made.model.layers[-1].get_weights()[0])
    for old, new in zip(kept.model.get_weights()[:-2], made.model.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(old, new)


def lite_name(layer: str) -> str:
    """Our layer in the words of efficientnet_lite_pytorch."""
    ends = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1", "logits": "_fc"}
    if layer in ends:
        return ends[layer]
    found = re.fullmatch(r"block(\d+)_(\w+?)_(conv|bn)", layer)
    if found is None:
        return layer
    number = {"expand": 0, "depthwise": 1, "project": 2}[found[2]]
    return f"_blocks.{int(found[1]) - 1}." + (f"_{found[2]}_conv" if found[3] == "conv" else f"_bn{number}")


def test_import_weights_efficientnet_lite0_gives_the_model_back(tmp_path):
    model = enliven(efficientnet_lite0(5, (64, 64, 3)))
    state = torch_state(model, lite_name)
    path = tmp_path / "lite0.pth"
    path.write_bytes(legacy_bytes({f"_orig_mod.{name}": array for name, array in state.items()}))
    made = import_weights("efficientnet_lite0", path, input_size=64)
    assert same_logits(made, model)
    assert made.about.preprocess.mean == (127 / 255,) * 3
    assert made.about.dataset == "ImageNet ILSVRC 2012"
    path.write_bytes(legacy_bytes({**state, "_blocks.16._bn0.weight": np.zeros(3, np.float32)}))
    with pytest.raises(ModelFileError, match=r"1 of its names are those of no EfficientNet-Lite0: _blocks\.16\._bn0\."):
        import_weights("efficientnet_lite0", path)


@pytest.mark.densenet
def test_import_weights_npz_takes_the_number_of_findings_from_the_file(tmp_path):
    model = chexnet(3)
    arrays = {f"{i:03d}|{w.name}": w.numpy().astype(np.float16) for i, w in enumerate(model.weights)}
    np.savez(tmp_path / "w.npz", **arrays)
    made = import_weights("npz", tmp_path / "w.npz", input_size=64)
    assert made.about.findings == ("finding_1", "finding_2", "finding_3")
    assert made.report.file_kind == "npz"


def test_register_source_twice_is_one_clear_error():
    with pytest.raises(CompressionError, match="the source of weights 'npz' is registered twice"):
        register_source("npz", help="", preprocess=SOURCES["npz"].preprocess)
