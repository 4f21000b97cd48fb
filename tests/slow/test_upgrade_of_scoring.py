"""An upgrade with the part `scoring` on, which is killed while clients score: no decision that was answered is lost."""

import signal

from tests.faults.scoring import AGAIN, logged, working
from tests.slow.test_upgrade import stopped_in_the_migration
from tests.support.clone import Clone
from tests.support.scoring import with_key
from tests.support.service import wait_until


def test_killed_upgrade_loses_no_decision_that_was_answered(clone: Clone) -> None:
    clone.set(COMPOSE_PROFILES="scoring")
    with clone.started():
        with working(with_key(clone, "good"), "upgraded") as clients:
            wait_until(lambda: len(clients.answers) >= AGAIN)
            code, _ = stopped_in_the_migration(clone, signal.SIGKILL)
            assert code == -signal.SIGKILL
            done = clone.make("upgrade")
            assert done.returncode == 0, done.stderr
            assert "an upgrade was interrupted: going back to what was before it" in done.stderr
            answered = len(clients.answers)
            wait_until(lambda: len(clients.answers) >= answered + AGAIN)
        scores = logged(clone, "upgraded")
    assert [answer for answer in clients.answers if [answer.score] != scores.get(answer.decision)] == []
