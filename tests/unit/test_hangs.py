from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import ModelFault
from app.jobs.hangs import MOST_HANGS, check_hangs, count_hang, hang_count


def test_a_job_at_which_a_model_hangs_again_and_again_ends(tmp_path: Path) -> None:
    account = tmp_path / "hangs"
    assert hang_count(account) == 0
    for _ in range(MOST_HANGS):
        check_hangs(account, "model", call_seconds=300)
        count_hang(account)
    with pytest.raises(ModelFault, match="'model' gave no answer within 300 seconds, 2 times"):
        check_hangs(account, "model", call_seconds=300)
