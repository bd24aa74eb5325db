"""The only module that chooses Keras: ``keras`` is tf_keras, the Keras 2 that TF-MOT and the TFLite converter serve.

With TensorFlow 2.16 and later ``tf.keras`` is Keras 3, whose objects TF-MOT refuses ("can only prune ..."), so the
rest of the package imports ``keras`` from here and a linter rule bans every other spelling.
"""

from __future__ import annotations

import os

# TF-MOT picks its Keras by this variable when it is imported first; without it, it would take Keras 3's objects.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# The C++ start-up banner (CPU features, missing CUDA) is no progress to a user; errors still come through.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tf_keras as keras

__all__ = ["keras"]
