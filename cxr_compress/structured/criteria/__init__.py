"""Criteria: one function each, registered by name. Importing this loads all of this folder, and no TensorFlow."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
