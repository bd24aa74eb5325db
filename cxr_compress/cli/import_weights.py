"""Turn foreign weights into a .keras model of this package, without PyTorch and without running anything in the file.

    cxr_import_weights --from=chexnet_torch --input_file=model.pth.tar --output_file=chexnet.keras

PyTorch files may be .pt, .pth or .pth.tar in either of torch's formats, .safetensors or .npz: a state dict, a
checkpoint around one, or a whole module. Every weight has to match in name and shape, or nothing is written; a sigmoid
at the end is left out. The report says what matched. The model file carries findings and preprocessing. Exit code 2:
wrong flag, or a file that is missing, damaged, made from another network, or refused because it asks to run code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, UsageError, quiet_native_stderr, run_command
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results
from cxr_compress.files import check_weights_file
from cxr_compress.models.imports.base import SOURCES
from cxr_compress.models.imports.foreign import Imported, import_weights

NAME = "cxr_import_weights"
_COLUMNS = (
    "output_file", "network", "file_kind", "arrays", "parameters", "stored_dtype", "num_classes", "input_size",
    "new_head", "file_bytes",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    kinds = "; ".join(f"{name}: {source.help}" for name, source in SOURCES.items())
    flags.DEFINE_enum("from", "npz", list(SOURCES), f"What kind of file it is. {kinds}.", flag_values=values)
    flags.DEFINE_string("input_file", None, "The weights.", flag_values=values)
    flags.DEFINE_string("output_file", None, "The model to write; ends in .keras.", flag_values=values)
    flags.DEFINE_integer(
        "num_classes",
        None,
        "Logits of the model; as many as the file has when left out. Fewer keeps the first ones. A head of ImageNet's "
        "1000 classes is replaced by a new one unless 1000 are asked for.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "input_size",
        None,
        "Height and width of the images in pixels; the weights fit any. Left out: what the file says, or 224.",
        flag_values=values,
    )
    text = "Names of the logits in their order; left out: the usual ones of this kind of file."
    flags.DEFINE_list("labels", [], text, flag_values=values)
    flags.DEFINE_string(
        "attribution", None, "Whom to name with every copy; else what is known of this kind.", flag_values=values
    )
    define_overwrite_flag(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Import, save and report."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    for name in ("input_file", "output_file"):
        if not values[name].value:
            raise UsageError(f"expected --{name}=FILE, got none")
    if Path(values.output_file).suffix != ".keras":
        raise UsageError(f"expected an --output_file that ends in .keras, got {values.output_file!r}")
    if not Path(values.input_file).is_file():
        raise UsageError(f"expected --input_file to be a file, got {values.input_file!r}, which is none")
    # A model that was trained further looks like one that was imported: none is replaced unasked.
    output = Output("output_file", Path(values.output_file), ".keras", lambda path: "")
    check_outputs(NAME, [output], inputs=[values.input_file], overwrite=values.overwrite)
    check_weights_file(values.input_file)
    with quiet_native_stderr(NAME, enabled=not values.debug):
        imported = _import(values)
    _print(values, imported)
    return EXIT_OK


def _import(values: flags.FlagValues) -> Imported:
    """Build the network, fill it and save it."""
    # Here and not above: Keras takes seconds to load, and a wrong flag or --help should not wait for it.
    from cxr_compress.models.files import save_model

    imported = import_weights(
        values["from"].value,
        values.input_file,
        num_classes=values.num_classes,
        input_size=values.input_size,
        findings=values.labels,
        attribution=values.attribution,
    )
    save_model(imported.model, values.output_file, about=imported.about)
    return imported


def _print(values: flags.FlagValues, imported: Imported) -> None:
    """Print what matched and what was written."""
    content = Path(values.output_file).read_bytes()
    report = imported.report
    entry: dict[str, Any] = {
        "output_file": values.output_file,
        "network": report.network,
        "file_kind": report.file_kind,
        "arrays": report.arrays,
        "parameters": report.parameters,
        "stored_dtype": report.stored_dtype,
        "num_classes": len(imported.about.findings),
        "input_size": imported.about.preprocess.height,
        "new_head": bool(report.fresh),
        "file_bytes": len(content),
    }
    document = {
        **entry,
        "outputs_in_file": report.outputs,
        "left_out": list(report.left_out),
        "fresh": list(report.fresh),
        "ignored": list(report.ignored),
        "thresholds": report.thresholds,
        "about": imported.about.to_dict(),
        "renamed": report.renamed,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_results(values.format, document=document, headers=_COLUMNS, rows=[[entry[name] for name in _COLUMNS]])
