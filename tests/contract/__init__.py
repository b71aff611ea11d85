"""What each mechanism promises, by the rooms of mechanisms/, for tests/test_contract.py."""

from tests.contract import article, channel
from tests.contract.case import Case

CASES: dict[str, Case] = {**article.CASES, **channel.CASES}
