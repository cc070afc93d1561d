import pytest
from helpers import fuzz


@pytest.mark.slow
def test_random_options_end_in_a_run_or_in_one_message() -> None:
    """tests/helpers/fuzz.py does it 500 times; a third of the command lines are right."""
    assert fuzz.main(draws=20)["trained"] >= 5
