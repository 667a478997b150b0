//! Decides whether an append may go in. Pure, and the same for every store, so that two owners of
//! one session can never both write.
//!
//! | mode | session | epoch | first event |
//! |---|---|---|---|
//! | create | must not exist | 1 | 0 |
//! | fork | must not exist | that of the event before + 1 | 1 to the parent's next |
//! | continue | exists | the session's | the session's next |
//! | take over | exists | the session's + 1 | the session's next |

use mainspring_session::{Epoch, Seq, SessionId};

use crate::error::JournalError;
use crate::limits::JournalLimits;
use crate::{Append, AppendMode};

/// Refuses what no state of the store could allow: wrong counts and sizes.
pub(crate) fn check_shape(append: &Append, limits: &JournalLimits) -> Result<(), JournalError> {
    let bytes = append.bytes();
    if bytes > limits.append_bytes_max {
        return Err(JournalError::too_large(&append.session, bytes, limits.append_bytes_max));
    }
    let lines = memchr::memchr_iter(b'\n', &append.events).count() + 1;
    if append.count == 0 || append.events.is_empty() || lines != append.count as usize {
        return Err(JournalError::malformed(&append.session, append.count, lines));
    }
    Ok(())
}

/// Refuses an append that does not follow on from what is stored: `held` is the session's epoch
/// and next position, if it exists.
///
/// # Errors
/// `journal_conflict`; `session_not_found`.
///
/// # Panics
/// If the append is a fork.
pub fn check(append: &Append, held: Option<(Epoch, Seq)>) -> Result<(), JournalError> {
    let session = &append.session;
    assert!(!matches!(append.mode, AppendMode::Fork { .. }), "a fork has a check of its own");
    if matches!(append.mode, AppendMode::Create { .. }) {
        return match held {
            Some(_) => Err(JournalError::exists(session)),
            None if append.epoch == Epoch(1) && append.expected_seq == Seq(0) => Ok(()),
            None => Err(JournalError::bad_start(session, append.epoch, append.expected_seq)),
        };
    }
    let Some((epoch, next_seq)) = held else {
        return Err(JournalError::not_found(session));
    };
    let allowed = match append.mode {
        AppendMode::TakeOver => Epoch(epoch.0 + 1),
        _ => epoch,
    };
    if append.epoch != allowed {
        return Err(JournalError::wrong_epoch(session, append.epoch, allowed));
    }
    if append.expected_seq != next_seq {
        return Err(JournalError::wrong_seq(session, append.expected_seq, next_seq));
    }
    Ok(())
}

/// What a fork has to follow on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkPoint {
    /// How many events the parent has.
    pub next_seq: Seq,
    /// Who wrote the last of the events to be shared; `None` if the parent has not so many.
    pub epoch: Option<Epoch>,
}

/// Refuses a fork that does not follow on from its parent, which is given if it exists. `exists`
/// says whether there is a session of the fork's own id.
///
/// # Errors
/// `journal_conflict`; `session_not_found`.
pub fn check_fork(
    append: &Append,
    parent: &SessionId,
    exists: bool,
    point: Option<ForkPoint>,
) -> Result<(), JournalError> {
    let session = &append.session;
    if exists {
        return Err(JournalError::exists(session));
    }
    let Some(point) = point else { return Err(JournalError::not_found(parent)) };
    let epoch = match point.epoch {
        Some(epoch) if (1..=point.next_seq.0).contains(&append.expected_seq.0) => epoch,
        _ => {
            let seen = append.expected_seq;
            return Err(JournalError::bad_fork(session, parent, seen, point.next_seq));
        }
    };
    let allowed = Epoch(epoch.0 + 1);
    if append.epoch != allowed {
        return Err(JournalError::bad_fork_epoch(session, parent, append.epoch, allowed));
    }
    Ok(())
}
