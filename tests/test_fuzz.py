import pytest
from helpers import fuzz


@pytest.mark.slow
def test_random_options_end_in_a_run_or_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    """tests/helpers/fuzz.py does it 500 times."""
    fuzz.main(draws=20)
    assert "20 command lines: " in capsys.readouterr().out
