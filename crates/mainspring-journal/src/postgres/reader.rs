//! Reads sessions and blobs. Each read is one statement, and so sees one state of the store.

use std::sync::Arc;

use mainspring_session::{Amount, BlobHash, Epoch, Origin, Record, Seq, SessionId};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::get;
use super::link::{Cause, Link, Trouble};
use crate::block::{self, Block};
use crate::error::JournalError;
use crate::{SessionHead, SessionQuery, SessionStatus, Snapshot};

/// The status of a session that was pruned while forks share its events; see `prune.rs`.
pub(super) const RETIRED: i16 = 5;

/// The columns of a head, in the order of [`head`].
macro_rules! heads {
    ($rest:literal) => {
        concat!(
            "SELECT s.id, s.epoch, s.next_seq, s.status, s.agent, s.origin, s.created_us, ",
            "s.updated_us, n.name, p.id, s.parent_seq, s.key FROM mainspring_sessions s ",
            "LEFT JOIN mainspring_nodes n ON n.id = s.owner ",
            "LEFT JOIN mainspring_sessions p ON p.key = s.parent_key AND p.status <> 5 ",
            $rest
        )
    };
}

// A partial index only serves a query that names its number.
const OPEN_SESSIONS: &str = heads!("WHERE s.status = 0 ORDER BY s.key");
const OPEN_PAGE: &str = heads!("WHERE s.status = 0 AND s.key < $1 ORDER BY s.key DESC LIMIT $2");
const WAITING_PAGE: &str = heads!("WHERE s.status = 4 AND s.key < $1 ORDER BY s.key DESC LIMIT $2");
const ANY_PAGE: &str = heads!("WHERE s.status <> 5 AND s.key < $1 ORDER BY s.key DESC LIMIT $2");
const STATUS_PAGE: &str = heads!("WHERE s.status = $3 AND s.key < $1 ORDER BY s.key DESC LIMIT $2");
const ONE_HEAD: &str = heads!("WHERE s.id = $1");

/// The sessions whose events make up one: itself, then those it was forked from, each with the
/// position before which its own events count. `$1` is the id, `$2` the first event that is
/// wanted, `$3` the one that is not wanted any more.
macro_rules! line {
    ($rest:literal) => {
        concat!(
            "WITH RECURSIVE line AS (SELECT key, parent_key, parent_seq, 0 AS depth, ",
            "least(next_seq, $3) AS until FROM mainspring_sessions WHERE id = $1 ",
            "UNION ALL SELECT p.key, p.parent_key, p.parent_seq, l.depth + 1, ",
            "least(l.parent_seq, l.until) FROM line l JOIN mainspring_sessions p ",
            "ON p.key = l.parent_key WHERE l.parent_seq > $2) ",
            $rest
        )
    };
}

const BLOCKS: &str = line!(
    "SELECT l.depth, l.until, b.first_seq, b.count, b.epoch, b.at_us, b.schema, b.body \
     FROM line l LEFT JOIN LATERAL (SELECT * FROM mainspring_log b WHERE b.session_key = l.key \
     AND b.first_seq < l.until AND b.first_seq >= coalesce((SELECT max(c.first_seq) \
     FROM mainspring_log c WHERE c.session_key = l.key AND c.first_seq <= $2), 0)) b ON true \
     ORDER BY l.depth DESC, b.first_seq"
);

const SNAPSHOTS: &str = line!(
    "SELECT l.depth, s.seq, s.body FROM line l LEFT JOIN mainspring_snapshots s \
     ON s.session_key = l.key AND s.seq <= l.until ORDER BY l.depth DESC, s.seq"
);

/// Reads a session's events; `None` if it does not exist.
pub(super) fn load(
    link: &mut Link,
    session: &SessionId,
    from: Seq,
    until: Option<Seq>,
) -> Result<Option<Result<Vec<Record>, JournalError>>, Trouble> {
    let (first, end) = (int(from), until.map_or(i64::MAX, int));
    let rows = link.query(
        BLOCKS,
        &[(&session.as_str(), Type::TEXT), (&first, Type::INT8), (&end, Type::INT8)],
    )?;
    let mut pieces = Vec::with_capacity(rows.len());
    // Of the session itself there is a row in any case.
    let mut wanted_end = None;
    for row in &rows {
        let until: u64 = uint(row, 1)?;
        if get::<i32>(row, 0)? == 0 {
            wanted_end = Some(until);
        }
        if get::<Option<i64>>(row, 2)?.is_some() {
            pieces.push((block(row)?, until));
        }
    }
    let Some(wanted_end) = wanted_end else { return Ok(None) };
    let begin = pieces.first().map_or(from.0.max(wanted_end), |(block, _)| block.first_seq);
    let reached = pieces.last().map_or(from.0, |(block, until)| block.end().min(*until));
    if from.0 < wanted_end && (pieces.is_empty() || begin > from.0 || reached < wanted_end) {
        let (at, what) = match begin > from.0 {
            true => (begin, "the events before are missing"),
            false => (reached, "the events after are missing"),
        };
        return Ok(Some(Err(JournalError::corrupt_session(session, Seq(at), what))));
    }
    let pieces = pieces.iter().map(|(block, until)| (block, *until));
    Ok(Some(block::records(session, pieces, from)))
}

/// Reads a session's snapshots; `None` if it does not exist.
pub(super) fn snapshots(
    link: &mut Link,
    session: &SessionId,
    until: Option<Seq>,
) -> Result<Option<Vec<Snapshot>>, Trouble> {
    let end = until.map_or(i64::MAX, int);
    let rows = link.query(
        SNAPSHOTS,
        &[(&session.as_str(), Type::TEXT), (&0_i64, Type::INT8), (&end, Type::INT8)],
    )?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for row in &rows {
        if get::<Option<i64>>(row, 1)?.is_some() {
            found.push(Snapshot { seq: Seq(uint(row, 1)?), body: get(row, 2)? });
        }
    }
    Ok(Some(found))
}

/// Reads what is known of a session.
pub(super) fn one_head(
    link: &mut Link,
    session: &SessionId,
) -> Result<Option<SessionHead>, Trouble> {
    let rows = link.query(ONE_HEAD, &[(&session.as_str(), Type::TEXT)])?;
    rows.first().map(head).transpose()
}

/// Reads a page of the list of sessions; `None` if the session before it does not exist.
pub(super) fn page(
    link: &mut Link,
    query: &SessionQuery,
    limit: u32,
) -> Result<Option<Vec<SessionHead>>, Trouble> {
    let before = match &query.before {
        None => i64::MAX,
        Some(session) => {
            let sql = "SELECT key FROM mainspring_sessions WHERE id = $1";
            let rows = link.query(sql, &[(&session.as_str(), Type::TEXT)])?;
            match rows.first() {
                Some(row) => get(row, 0)?,
                None => return Ok(None),
            }
        }
    };
    let limit = i64::from(limit);
    let (before, limit) = ((&before as _, Type::INT8), (&limit as _, Type::INT8));
    let rows = match query.status {
        None => link.query(ANY_PAGE, &[before, limit])?,
        Some(SessionStatus::Open) => link.query(OPEN_PAGE, &[before, limit])?,
        Some(SessionStatus::Waiting) => link.query(WAITING_PAGE, &[before, limit])?,
        Some(status) => {
            let number = status_number(status);
            link.query(STATUS_PAGE, &[before, limit, (&number, Type::INT2)])?
        }
    };
    rows.iter().map(head).collect::<Result<_, _>>().map(Some)
}

/// Lists the open sessions.
pub(super) fn open_sessions(link: &mut Link) -> Result<Vec<SessionHead>, Trouble> {
    link.query(OPEN_SESSIONS, &[])?.iter().map(head).collect()
}

/// Reads a blob.
pub(super) fn blob(link: &mut Link, hash: &BlobHash) -> Result<Option<Vec<u8>>, Trouble> {
    let sql = "SELECT body FROM mainspring_blobs WHERE hash = $1";
    let rows = link.query(sql, &[(&hash.as_str(), Type::TEXT)])?;
    rows.first().map(|row| get(row, 0)).transpose()
}

/// Reads what was charged to accounts, in their order.
pub(super) fn spent(link: &mut Link, accounts: &[Arc<str>]) -> Result<Vec<Amount>, Trouble> {
    let names: Vec<&str> = accounts.iter().map(|account| &**account).collect();
    let rows = link.query(
        "SELECT coalesce(b.usd_nanos, 0), coalesce(b.tokens, 0), coalesce(b.calls, 0) \
         FROM unnest($1) WITH ORDINALITY AS i(account, ord) \
         LEFT JOIN mainspring_budgets b ON b.account = i.account ORDER BY i.ord",
        &[(&names, Type::TEXT_ARRAY)],
    )?;
    let amount = |row| {
        let (usd_nanos, tokens) = (uint(row, 0)?, uint(row, 1)?);
        Ok(Amount { usd_nanos, tokens, calls: uint(row, 2)? })
    };
    rows.iter().map(amount).collect()
}

fn block(row: &Row) -> Result<Block, Trouble> {
    Ok(Block {
        first_seq: uint(row, 2)?,
        count: small(row, 3)?,
        epoch: Epoch(uint(row, 4)?),
        at_us: get(row, 5)?,
        schema: small(row, 6)?,
        body: get(row, 7)?,
    })
}

/// Reads a row of [`heads`].
pub(super) fn head(row: &Row) -> Result<SessionHead, Trouble> {
    let parent = match (get::<Option<String>>(row, 9)?, get::<Option<i64>>(row, 10)?) {
        (Some(id), Some(_)) => Some((session(&id)?, Seq(uint(row, 10)?))),
        _ => None,
    };
    Ok(SessionHead {
        id: session(&get::<String>(row, 0)?)?,
        epoch: Epoch(uint(row, 1)?),
        next_seq: Seq(uint(row, 2)?),
        status: status(get(row, 3)?)?,
        agent: get(row, 4)?,
        origin: get::<Option<String>>(row, 5)?.map(Origin),
        parent,
        owner: get(row, 8)?,
        created_us: get(row, 6)?,
        updated_us: get(row, 7)?,
    })
}

fn session(id: &str) -> Result<SessionId, Trouble> {
    SessionId::new(id).map_err(|error| strange(error.to_string()))
}

/// The stored number of a status. Indexes name 0 and 4.
pub(super) const fn status_number(status: SessionStatus) -> i16 {
    match status {
        SessionStatus::Open => 0,
        SessionStatus::Finished => 1,
        SessionStatus::Failed => 2,
        SessionStatus::Cancelled => 3,
        SessionStatus::Waiting => 4,
    }
}

fn status(number: i16) -> Result<SessionStatus, Trouble> {
    match number {
        0 => Ok(SessionStatus::Open),
        1 => Ok(SessionStatus::Finished),
        2 => Ok(SessionStatus::Failed),
        3 => Ok(SessionStatus::Cancelled),
        4 => Ok(SessionStatus::Waiting),
        other => Err(strange(format!("status {other} of a session is not known"))),
    }
}

fn strange(what: String) -> Trouble {
    Trouble::Refused(Cause::Strange(what))
}

/// Reads a number that is never negative.
pub(super) fn uint(row: &Row, column: usize) -> Result<u64, Trouble> {
    let value: i64 = get(row, column)?;
    u64::try_from(value).map_err(|_| strange(format!("number {value} should not be negative")))
}

fn small(row: &Row, column: usize) -> Result<u32, Trouble> {
    let value: i32 = get(row, column)?;
    u32::try_from(value).map_err(|_| strange(format!("number {value} should not be negative")))
}

/// A position as it is stored.
fn int(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}
