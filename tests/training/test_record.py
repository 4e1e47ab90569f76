"""The record of a training as people handle it: one line, a table, a data frame, a picture, a file."""

from __future__ import annotations

import dataclasses

import pytest

import robust_plugins as rp
from robust_plugins.training.record import EpochRecord

EPOCH = EpochRecord(epoch=1, loss=0.5, clean=0.4, worst=None, eps=0.1, gamma=0.5, seconds=1.25,
                    scores={"clean": 0.875, "interval:ibp": "unsupported: no rule for Odd"})  # fmt: skip
RECORD = rp.TrainingRecord((EPOCH, dataclasses.replace(EPOCH, epoch=2, worst=2.0, loss=float("inf"))))


def test_it_is_one_line_in_a_prompt_and_a_table_when_printed() -> None:
    assert repr(RECORD) == "<TrainingRecord: 2 epochs; clean 0.875, interval:ibp unsupported>"
    assert repr(rp.TrainingRecord(())) == "<TrainingRecord: 0 epochs>"
    shown, page = str(RECORD), RECORD._repr_html_()
    assert shown.splitlines()[1].split() == ["1", "0.5", "0.4", "0.1", "0.5", "1.2", "0.8750", "unsupported"]
    assert len({len(line) for line in shown.splitlines()[:3]}) == 1
    for cell in ("0.8750", "unsupported", "no rule for Odd", "worst loss"):
        assert cell in shown
        assert cell in page
    assert rp.TrainingRecord(())._repr_html_()


def test_it_is_a_data_frame_a_file_and_a_picture(tmp_path) -> None:
    frame = RECORD.to_frame()
    assert list(frame["epoch"]) == [1, 2]
    assert list(frame["score clean"]) == [0.875, 0.875]
    assert frame["score interval:ibp"].isna().all()
    assert rp.TrainingRecord.load(RECORD.save(tmp_path / "record.npz")) == RECORD
    with pytest.raises(rp.ArgumentError, match=r"TrainingRecord.load"):
        rp.BallsComparison.load(tmp_path / "record.npz")
    losses, scores = RECORD.plot().axes
    assert [line.get_label() for line in losses.lines] == ["loss", "on clean inputs", "of the worst case"]
    assert [line.get_label() for line in scores.lines] == ["clean", "interval:ibp (unsupported)"]
    assert rp.TrainingRecord(()).plot()
