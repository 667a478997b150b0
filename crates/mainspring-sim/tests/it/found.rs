//! Seeds that found a fault of the engine, by what it was.

use crate::check;

/// Each look at sessions that run elsewhere set two more, so that a second watcher of a stopped
/// node's session kept the other node busy for ever.
#[test]
fn looks_at_followed_sessions_do_not_multiply() {
    [1, 10].into_iter().for_each(check);
}

/// A session created under a lease that had just run out belonged to the new lease of a process that
/// did not run it.
#[test]
fn a_session_dropped_for_its_lease_is_let_go_of() {
    [8, 16].into_iter().for_each(check);
}

/// A refused append or a failed release left the session with a living process that did not run it.
#[test]
fn a_session_dropped_for_the_store_is_let_go_of() {
    [7, 48, 64].into_iter().for_each(check);
}

/// A job that outlived its turn kept the process from taking up the session's next turn.
#[test]
fn a_job_that_outlives_its_turn_does_not_bar_the_next() {
    [95, 110].into_iter().for_each(check);
}

/// A fork that had edited a message was taken over before its first own snapshot, and that one left
/// the edit out.
#[test]
fn an_edit_of_a_fork_outlives_a_takeover_before_its_first_snapshot() {
    check(126);
}

/// A turn that was only stored stayed alive where it was stored, behind a job that never ended, and
/// barred that process from running it.
#[test]
fn a_submitted_turn_waits_for_no_job_of_the_last() {
    [1778, 2052].into_iter().for_each(check);
}

/// A process that had lost its lease went on waiting for what it no longer owned, and so did those
/// who asked it.
#[test]
fn who_waits_at_a_process_that_lost_its_lease_is_answered() {
    [110, 1794, 2398].into_iter().for_each(check);
}

/// A wish to cancel that came while the turn's end was being stored was never answered.
#[test]
fn a_cancel_that_comes_too_late_is_answered() {
    [303, 2306].into_iter().for_each(check);
}

/// An append that arrived after its session had been dropped and let go of made the process the owner
/// of a session that it did not run.
#[test]
fn an_append_that_outlives_its_session_lets_go_of_it() {
    [1049, 2250].into_iter().for_each(check);
}

/// A question to the host that a person had answered kept the session's status open, so that it was
/// not listed among those that wait.
#[test]
fn a_question_that_a_person_answered_keeps_no_session_open() {
    check(2668);
}

/// A fork asked again about a call that its parent had begun; with other arguments it ran under the
/// parent's key.
#[test]
fn edited_arguments_get_a_key_of_their_own() {
    check(3599);
}

/// A session that could not be read when it was claimed was never let go of, because a job of its
/// last turn was still here.
#[test]
fn a_claim_that_failed_is_let_go_of_beside_an_old_job() {
    check(3470);
}

/// An edited text mended an answer that had been cut off, and so its tool calls ran without having
/// been checked.
#[test]
fn an_edited_text_does_not_let_unchecked_calls_run() {
    check(5964);
}

/// A decision about a session that another process owned was tried again without end.
#[test]
fn a_decision_that_is_always_overtaken_ends() {
    [110, 118].into_iter().for_each(check);
}
