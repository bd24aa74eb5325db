"""Every rule, by family; importing this package registers them.

The default for everything else is to freeze with a reason (`flow.apply_rule`): a layer that is not understood is never
touched and never silent.
"""

from cxr_compress.structured.rules import arithmetic, convolution, normalization, shape

FAMILIES = (convolution, normalization, shape, arithmetic)
