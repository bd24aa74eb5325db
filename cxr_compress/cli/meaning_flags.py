"""The flags that say what a model from elsewhere means, the same in every command that takes one."""

from __future__ import annotations

from absl import flags

from cxr_compress.device.spec import PRESETS

NAMES = ("labels", "positive", "preset", "color", "match", "force")


def define_meaning_flags(values: flags.FlagValues, *, force: bool = True) -> None:
    """Define them; --force only where a command checks something that it can overrule."""
    text = (
        "Names of the model's outputs in their order, where its file does not say them; of two classes that exclude "
        "one another both, or the finding alone."
    )
    flags.DEFINE_list("labels", [], text, flag_values=values)
    text = "Of two classes that exclude one another, the one that is the finding: its label, or its index 0 or 1."
    flags.DEFINE_string("positive", None, text, flag_values=values)
    text = (
        "How pixels become the input, as the model was trained, where its file does not say it: imagenet_torch "
        "(CheXNet, Keras' DenseNet), unit (x / 255), tf (x / 127.5 - 1), caffe (ResNet50, VGG), xrv or raw (0 to 255)."
    )
    flags.DEFINE_enum("preset", None, list(PRESETS), text, flag_values=values)
    text = "What images the model is for, where its file does not say it; gray unless given."
    flags.DEFINE_enum("color", None, ("gray", "rgb"), text, flag_values=values)
    text = (
        "How outputs of the model and findings of the data set belong together: by name, or by position in their order."
    )
    flags.DEFINE_enum("match", "name", ("name", "position"), text, flag_values=values)
    if force:
        text = "Go on where a check says that the result would be worthless; what it said stays in the results."
        flags.DEFINE_boolean("force", False, text, flag_values=values)
