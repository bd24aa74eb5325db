"""What stands in the folder of a run, for whoever finds it: the file to deploy, its card, the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cxr_compress.device.modelfile import ModelFile
from cxr_compress.report.report import render_report

_TEMPLATE = """\
# {name}

**{intended_use}**

| what | where |
|---|---|
| the file to deploy | `{file}`, {file_bytes:,} bytes, sha256 `{sha256}` |
| its model card | `{card}`: what it was trained and measured on, and what it is not for |
| the results | below, and in `report.json` |
{picture}| the choices | `recipe.json`; `cxr_compress --recipe=recipe.json` with other flags changes them |

On the device:

    pip install 'cxr-compress[litert]'
    cxr_verify --model={file}
    cxr_predict --model={file} IMAGE

## What was gained, and what it cost

```
{results}
```

## What else is here

`*_fp32.tflite` and `*_int8.tflite` are the original model and the compressed one's float twin, to compare with.
`*.keras` are the models after each stage, `plan.json` is which filters stayed, `manifests/` is what decided each stage:
the same command goes on from them, and removing them only means making them again.
"""


def render_readme(report: Mapping[str, Any], model: ModelFile, *, card: str, picture: str = "") -> str:
    """The README.md of a run's folder.

    Args:
        report: what `read_report` gave.
        model: the compressed file, the last row of the report.
        card: name of its model card.
        picture: name of the picture of the results; "" for none.
    """
    return _TEMPLATE.format(
        name=model.info.model_name,
        intended_use=report["intended_use"],
        file=report["rows"][-1]["file"],
        file_bytes=model.file_bytes,
        sha256=model.sha256,
        card=card,
        picture=f"| their picture | `{picture}` |\n" if picture else "",
        results=render_report(report),
    )
