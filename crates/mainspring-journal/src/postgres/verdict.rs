//! Why appends did not pass. The statement only says that they did not; this reads what is stored
//! and finds the reason, or that one is stored already: its answer was lost on the way.

use mainspring_session::{Epoch, Seq};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::append::{Source, int, writer};
use super::get;
use super::link::{Link, Trouble};
use super::reader::uint;
use crate::error::JournalError;
use crate::{Append, AppendMode, fence};

/// What became of an append.
pub(super) type Outcome = Result<(), JournalError>;

/// Appends that did not pass.
pub(super) struct Refused<'a> {
    pub(super) appends: Vec<(&'a Append, Option<Source>)>,
    /// The nodes they were appended as, this process's last.
    pub(super) nodes: &'a [Uuid],
    /// Whether an answer was lost since the first try.
    pub(super) uncertain: bool,
}

impl Refused<'_> {
    /// Finds out what became of each; `None` for one that would pass now.
    pub(super) fn explain(&self, link: &mut Link) -> Result<Vec<Option<Outcome>>, Trouble> {
        let ids: Vec<&str> = self.appends.iter().map(|(a, _)| a.session.as_str()).collect();
        let seqs: Vec<i64> = self.appends.iter().map(|(a, _)| int(a.expected_seq.0)).collect();
        let rows = link.query(
            "SELECT i.ord, s.epoch, s.next_seq, s.status, s.owner, n.name, \
             l.epoch, l.count, l.at_us, l.writer, l.body \
             FROM unnest($1, $2) WITH ORDINALITY AS i(id, seq, ord) \
             JOIN mainspring_sessions s ON s.id = i.id \
             LEFT JOIN mainspring_nodes n ON n.id = s.owner \
             LEFT JOIN mainspring_log l ON $3 AND l.session_key = s.key AND l.first_seq = i.seq",
            &[(&ids, Type::TEXT_ARRAY), (&seqs, Type::INT8_ARRAY), (&self.uncertain, Type::BOOL)],
        )?;
        let mut found: Vec<Option<Found>> = self.appends.iter().map(|_| None).collect();
        for row in &rows {
            let ord: i64 = get(row, 0)?;
            found[ord as usize - 1] = Some(self.found(row)?);
        }
        let pairs = self.appends.iter().zip(found);
        Ok(pairs.map(|((append, source), found)| self.judge(append, *source, found)).collect())
    }

    fn found(&self, row: &Row) -> Result<Found, Trouble> {
        let written = match get::<Option<i64>>(row, 6)? {
            None => None,
            Some(_) => Some(Written {
                epoch: Epoch(uint(row, 6)?),
                count: get(row, 7)?,
                at_us: get(row, 8)?,
                writer: get(row, 9)?,
                body: get(row, 10)?,
            }),
        };
        Ok(Found {
            epoch: Epoch(uint(row, 1)?),
            next_seq: Seq(uint(row, 2)?),
            is_open: get::<i16>(row, 3)? == 0,
            owner: get(row, 4)?,
            owner_name: get(row, 5)?,
            written,
        })
    }

    fn judge(
        &self,
        append: &Append,
        source: Option<Source>,
        found: Option<Found>,
    ) -> Option<Outcome> {
        let written = found.as_ref().and_then(|found| found.written.as_ref());
        if self.uncertain && written.is_some_and(|written| written.is(append, self.nodes)) {
            return Some(Ok(()));
        }
        let checked = match &append.mode {
            AppendMode::Fork { parent, .. } => {
                let point = source.map(|source| source.point);
                fence::check_fork(append, parent, found.is_some(), point)
            }
            _ => fence::check(append, found.as_ref().map(|found| (found.epoch, found.next_seq))),
        };
        if let Err(error) = checked {
            return Some(Err(error));
        }
        let found = found?;
        let owner = found.owner_name.as_deref().unwrap_or("a node that is gone");
        match append.mode {
            _ if found.owner.is_some() && found.owner.as_ref() == self.nodes.last() => None,
            AppendMode::TakeOver if found.owner.is_some() => {
                Some(Err(JournalError::owned(&append.session, owner)))
            }
            AppendMode::Continue if found.owner.is_some() => {
                Some(Err(JournalError::not_owner(&append.session, owner)))
            }
            AppendMode::Continue if found.is_open => {
                Some(Err(JournalError::not_owner(&append.session, "nobody")))
            }
            _ => None,
        }
    }
}

/// A session as it is stored.
struct Found {
    epoch: Epoch,
    next_seq: Seq,
    is_open: bool,
    owner: Option<Uuid>,
    owner_name: Option<String>,
    /// What stands where the append wanted to go, if an answer was lost.
    written: Option<Written>,
}

struct Written {
    epoch: Epoch,
    count: i32,
    at_us: i64,
    writer: i32,
    body: Vec<u8>,
}

impl Written {
    /// Whether it is this append, written by one of these nodes.
    fn is(&self, append: &Append, nodes: &[Uuid]) -> bool {
        self.epoch == append.epoch
            && self.count == append.count.cast_signed()
            && self.at_us == append.at_us
            && nodes.iter().any(|node| self.writer == writer(*node))
            && self.body == append.events
    }
}
