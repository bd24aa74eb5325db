"""The quant types that a .tflite file comes in: what each is for, what it stores, and what has to be known to make it.

A new type is an entry here and, where it is made in a new way, a method of `lite.exporter`.
"""

from __future__ import annotations

from dataclasses import dataclass

_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class QuantType:
    """One way to store the numbers of a network.

    Attributes:
        name: as `convert` and --quant_type call it.
        purpose: what it is for, with its price.
        weights: what kernels are stored as: "float32", "float16" or "int8".
        activations: what passes between operators: "float32", "int8" or "int16".
        input_output: what the file may take and give; the first is taken where nothing else is asked for.
        logit_tolerance: by how much a float logit may differ on another machine, as a share of the spread of the
            logits; logits that are codes may differ by three codes in every type.
    """

    name: str
    purpose: str
    weights: str = "int8"
    activations: str = "float32"
    input_output: tuple[str, ...] = ("float32",)
    logit_tolerance: float = 1e-3

    @property
    def calibrated(self) -> bool:
        """Whether its value ranges come from images."""
        return self.activations != "float32"

    @property
    def integer_throughout(self) -> bool:
        """Whether it promises that every operator, input and output included, works on integers."""
        return self.calibrated and self.input_output[0] != "float32"

    @property
    def mixes_float(self) -> bool:
        """Whether single layers may stay in float between int8 ones."""
        return self.activations == "int8" and not self.integer_throughout

    @property
    def for_edgetpu(self) -> bool:
        """Whether Coral's Edge TPU may run it."""
        return self.activations == "int8" and self.integer_throughout

    @property
    def reference_kernels(self) -> bool:
        """Whether runtimes have only slow kernels for it, which run on one thread."""
        return self.activations == "int16"

    @property
    def exact_zeros(self) -> bool:
        """Whether exactly those weights are zero in the file that are zero in the model; int8 rounds more to zero."""
        return self.weights != "int8"

    @property
    def bytes_per_weight(self) -> int:
        """Bytes of one stored weight."""
        return _BYTES[self.weights]


TYPES = {
    quant_type.name: quant_type
    for quant_type in (
        QuantType("none", "float32, the reference", weights="float32"),
        QuantType("fp16", "float16 weights, half the size", weights="float16"),
        QuantType(
            "dynamic",
            "int8 weights, a quarter of the size",
            # It rounds activations to 8 bits while it runs, each runtime in its own way (measured: 0.003 to 0.007).
            logit_tolerance=3 / 255,
        ),
        QuantType(
            "int8",
            "integers throughout, as Coral and microcontrollers need it",
            activations="int8",
            input_output=("int8", "uint8", "float32"),
        ),
        QuantType("int8_float_io", "int8 inside, float32 input and output", activations="int8"),
        QuantType(
            "int16x8",
            "int16 activations, nearly as exact as float, 30 times slower",
            activations="int16",
            input_output=("int16", "float32"),
        ),
    )
}
QUANT_TYPES = tuple(TYPES)
