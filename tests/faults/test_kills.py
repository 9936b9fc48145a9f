"""The runner of the chapters, killed by signal 9 at a random moment and started again, ends with the same edition.

Training with recorded gradients has its twenty kills in `test_training`, a residual network's interruption stands in
`test_resnet_training`, a killed sweep in `test_sweeps`; `audits/test_twenty_kills.py` has twenty of every kind.
"""

from pathlib import Path

import pytest
from kills import killed_editions


@pytest.mark.promise("R3")
def test_a_killed_runner_leaves_nothing_that_counts_and_no_process(tmp_path: Path) -> None:
    assert killed_editions(tmp_path, kills=1) == 1
