"""Mistakes that engines could have: each replaces something of the real code, and is found by exploring.

The first eight are those of the handoff's design, each found on paper before; the others are common slips.  By which
plan each is found, and after how many, is in `mistakes_found.json` and in docs/simulation.md; both are written by

    python -m tests.mistakes_table
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

import attrs
import pytest

from tests import mistakes_handoff as handoff
from tests import mistakes_machine as machine
from tests import mistakes_streams as streams

Break = Callable[[pytest.MonkeyPatch], None]


class Where(StrEnum):
    """Which plans are tried."""

    SINGLES = "single faults"
    FENCED = "single faults, with a fence"
    REPLAYS = "replays after a reset"
    STREAMS = "single faults, over two connections"
    STREAM_REPLAYS = "replays after a reset, over two connections"


@attrs.frozen
class Mistake:
    name: str
    apply: Break
    where: Where = Where.SINGLES


MISTAKES: Final = (
    Mistake("Commit is said before C is written", handoff.commit_before_it_is_written),
    Mistake("Ready is said before R is written", handoff.ready_before_it_is_written),
    Mistake("the machine runs before O is written", handoff.run_before_it_is_written),
    Mistake("a generation is used again", handoff.use_a_generation_again),
    Mistake("an image is forgotten without a floor, and its number used again", handoff.forget_ready_without_a_floor),
    Mistake("a source takes Unknown for a refusal", handoff.take_unknown_for_a_refusal),
    Mistake("a source resumes when the answer is lost", handoff.resume_when_the_answer_is_lost),
    Mistake("the last word is the only hand-over", handoff.hand_over_by_the_last_word_only),
    Mistake("a source takes Owned for a refusal", handoff.take_owned_for_a_refusal),
    Mistake("a source abandons what it committed", handoff.abandon_what_was_committed),
    Mistake("a target forgets that it owes an answer", handoff.forget_the_debt),
    Mistake("a target drops its image when the answer is lost", handoff.drop_the_image_when_the_answer_is_lost),
    Mistake("the source stays paused after a failure", handoff.stay_paused_after_a_failure),
    Mistake("what could not be noted is said", handoff.say_what_could_not_be_noted),
    Mistake("a record counts before it is synced", handoff.count_what_is_not_synced),
    Mistake("the guest is paused after its last pages are sent", handoff.pause_after_the_last_pages),
    Mistake("the register is not taken", handoff.do_not_take_the_register, Where.FENCED),
    Mistake("a source reclaims whoever has the register", handoff.reclaim_from_whoever_has_it, Where.FENCED),
    Mistake("a target does not know its own register again", handoff.ask_nobody_who_has_the_register, Where.FENCED),
    Mistake("a dirty page is lost", machine.lose_a_dirty_page),
    Mistake("pages dirtied during a round are forgotten", machine.forget_what_was_dirtied_meanwhile),
    Mistake("pages that were acknowledged are not restored", machine.restore_only_what_is_in_flight),
    Mistake("what was received could not travel on", machine.lose_the_last_round),
    Mistake("pages that became zero keep their content", machine.leave_what_became_zero),
    Mistake("the contents of a batch are believed", machine.believe_the_contents_of_a_batch),
    Mistake("a damaged frame is believed", machine.believe_every_frame),
    Mistake("frames of another attempt are believed", machine.do_not_compare_transcripts, Where.REPLAYS),
    Mistake("any count is believed", machine.believe_any_count),
    Mistake("an unknown version is believed", machine.believe_an_unknown_version),
    Mistake("any move is believed", machine.believe_any_move),
    Mistake("what arrives of a device is ignored", machine.ignore_a_payload),
    Mistake("the console is not taken over", machine.lose_the_console),
    Mistake("the clock is not taken over", machine.leave_the_clock),
    Mistake("the time of the flight is not added", machine.take_no_time_for_the_flight),
    Mistake("the TSC stands still during the flight", machine.let_the_ticks_stand),
    Mistake("a round is over when the first connection says so", streams.end_with_the_first, Where.STREAMS),
    Mistake(
        "streams are heard only until the conversation goes on",
        streams.hear_streams_only_until_the_conversation_goes_on,
        Where.STREAMS,
    ),
    Mistake("a source begins without its streams", streams.begin_without_streams, Where.STREAMS),
    Mistake("streams stay open when all is over", streams.leave_streams_open, Where.STREAMS),
    Mistake(
        "streams are left out of the transcript", streams.leave_streams_out_of_the_transcript, Where.STREAM_REPLAYS
    ),
)
