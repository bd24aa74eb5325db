"""Every rule, by family; importing this package registers them.

A layer that no rule knows is protected, with the reason (`base.apply_rule`): it is never touched and never silent.
"""

from cxr_compress.structured.rules import arithmetic, layers

__all__ = ["arithmetic", "layers"]
