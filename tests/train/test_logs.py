"""The log for people: JSON lines, and curves that TensorBoard reads without TensorBoard having written them."""

from __future__ import annotations

import json

import tensorflow as tf
from tensorflow.core.util import event_pb2

from cxr_compress.train.dev_score import EpochLog

HISTORY = [
    {"epoch": 1, "loss": 0.5, "dev_auroc": None, "auroc": {"Mass": 0.75, "Hernia": None}},
    {"epoch": 2, "loss": 0.25, "dev_auroc": 0.875, "auroc": {"Mass": 0.875, "Hernia": None}},
]


def curves(folder):
    """(tag, step) -> value of the one event file in a folder."""
    (file,) = folder.glob("events.out.tfevents.*")
    found = {}
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        event = event_pb2.Event.FromString(record)
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


EXPECTED = {
    ("loss", 1): 0.5,
    ("auroc/Mass", 1): 0.75,
    ("loss", 2): 0.25,
    ("dev_auroc", 2): 0.875,
    ("auroc/Mass", 2): 0.875,
}


def test_log_writes_each_epoch_once_for_people_and_for_tensorboard(tmp_path):
    log = EpochLog(tmp_path)
    log.write(HISTORY[:1])
    log.write(HISTORY)
    log.close()
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == HISTORY
    assert curves(tmp_path) == EXPECTED


def test_log_after_a_resume_has_one_event_file_with_all_epochs(tmp_path):
    first = EpochLog(tmp_path)
    first.write(HISTORY[:1])
    first.close()
    resumed = EpochLog(tmp_path)
    resumed.write(HISTORY)
    resumed.close()
    assert curves(tmp_path) == EXPECTED
