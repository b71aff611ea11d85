"""What each mechanism promises, for tests/test_contract.py."""

from tests.contract import (
    article,
    branch,
    channel,
    coordinate,
    mixers,
    non_local,
    second_order,
    self_attention,
    spatial,
    video,
)
from tests.contract.case import Case

CASES: dict[str, Case] = {
    **article.CASES,
    **branch.CASES,
    **channel.CASES,
    **coordinate.CASES,
    **mixers.CASES,
    **non_local.CASES,
    **second_order.CASES,
    **self_attention.CASES,
    **spatial.CASES,
    **video.CASES,
}
