//! Decides whether an append may go in. Pure, and the same for every store, so that two owners of
//! one session can never both write.
//!
//! | mode | session | epoch | first event |
//! |---|---|---|---|
//! | create | must not exist | 1 | 0 |
//! | continue | exists | the session's | the session's next |
//! | take over | exists | the session's + 1 | the session's next |

use mainspring_session::{Epoch, Seq};

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
pub(crate) fn check(append: &Append, held: Option<(Epoch, Seq)>) -> Result<(), JournalError> {
    let session = &append.session;
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
