//! Takes sessions that nobody owns, and lets go of some.
//!
//! Invariant: this process owns no session through a claim whose caller does not hear of it. So a
//! claim says what it takes before it commits, and after a lost answer asks for the very same.

use mainspring_session::SessionId;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::get;
use super::lease::Lease;
use super::link::{Link, Param, Trouble};
use super::pool::Pool;
use super::reader;
use crate::SessionHead;
use crate::error::JournalError;

/// Takes the sessions that `$free` picks; gives their heads, in the order of [`reader::head`].
macro_rules! take {
    ($free:literal) => {
        concat!(
            "WITH me AS MATERIALIZED (SELECT id, name FROM mainspring_nodes ",
            "WHERE id = $1 AND live FOR SHARE), free AS MATERIALIZED (",
            $free,
            "), taken AS (UPDATE mainspring_sessions s SET owner = me.id FROM free, me ",
            "WHERE s.key = free.key RETURNING s.*) ",
            "SELECT s.id, s.epoch, s.next_seq, s.status, s.agent, s.origin, s.created_us, ",
            "s.updated_us, me.name, p.id, s.parent_seq, s.key FROM taken s CROSS JOIN me ",
            "LEFT JOIN mainspring_sessions p ON p.key = s.parent_key AND p.status <> 5 ",
            "ORDER BY s.key"
        )
    };
}

const TAKE_FREE: &str = take!(
    "SELECT s.key FROM mainspring_sessions s, me WHERE s.status = 0 AND s.owner IS NULL \
     AND s.agent = ANY($2) ORDER BY s.key LIMIT $3 FOR UPDATE OF s SKIP LOCKED"
);

// Whoever holds one of them is waited for: that may be the very claim whose answer was lost.
const TAKE_AGAIN: &str = take!(
    "SELECT s.key FROM mainspring_sessions s JOIN unnest($2, $3) AS k(key, epoch) \
     ON s.key = k.key, me WHERE s.status = 0 AND s.epoch = k.epoch \
     AND (s.owner IS NULL OR s.owner = me.id) ORDER BY s.key FOR UPDATE OF s"
);

/// What a claim is about to commit.
#[derive(Default)]
struct Taken {
    keys: Vec<i64>,
    epochs: Vec<i64>,
}

/// Claims sessions; see [`crate::Journal::claim`]. One at a time.
pub(super) fn claim(
    pool: &Pool,
    lease: &Lease,
    agents: &[String],
    limit: u32,
) -> Result<Vec<SessionHead>, JournalError> {
    let node = lease.node();
    let limit = i64::from(limit);
    let mut taken = Taken::default();
    pool.run("claimed from", |link| {
        if !taken.keys.is_empty() {
            let keys: [Param<'_>; 2] =
                [(&taken.keys, Type::INT8_ARRAY), (&taken.epochs, Type::INT8_ARRAY)];
            let rows = take(link, TAKE_AGAIN, node, keys)?;
            if !rows.is_empty() {
                return heads(&rows);
            }
            taken = Taken::default();
        }
        link.transact(|link| {
            let wanted = [(&agents as _, Type::TEXT_ARRAY), (&limit as _, Type::INT8)];
            let rows = take(link, TAKE_FREE, node, wanted)?;
            let mut taking = Taken::default();
            for row in &rows {
                taking.keys.push(get(row, 11)?);
                taking.epochs.push(get(row, 1)?);
            }
            taken = taking;
            heads(&rows)
        })
    })
}

fn take(
    link: &mut Link,
    sql: &str,
    node: Uuid,
    [second, third]: [Param<'_>; 2],
) -> Result<Vec<Row>, Trouble> {
    link.query(sql, &[(&node, Type::UUID), second, third])
}

fn heads(rows: &[Row]) -> Result<Vec<SessionHead>, Trouble> {
    rows.iter().map(reader::head).collect()
}

/// Lets go of those sessions that this process owns.
pub(super) fn release(
    pool: &Pool,
    lease: &Lease,
    sessions: &[SessionId],
) -> Result<(), JournalError> {
    let node = lease.node();
    let ids: Vec<&str> = sessions.iter().map(SessionId::as_str).collect();
    pool.run("released", |link| {
        link.execute(
            "UPDATE mainspring_sessions SET owner = NULL WHERE id = ANY($2) AND owner = $1",
            &[(&node, Type::UUID), (&ids, Type::TEXT_ARRAY)],
        )
        .map(|_| ())
    })
}
