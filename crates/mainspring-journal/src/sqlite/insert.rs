//! What an append that has passed the fence writes.

use mainspring_session::SCHEMA_VERSION;
use rusqlite::{Connection, params};

use super::chain::Branch;
use super::heads::Head;
use super::{int, reader};
use crate::{Append, AppendMode, Charge};

/// A new session, perhaps forked from another.
pub(super) fn head(
    connection: &Connection,
    append: &Append,
    next: &Head,
    branch: Option<Branch>,
) -> rusqlite::Result<()> {
    let (AppendMode::Create { agent, origin } | AppendMode::Fork { agent, origin, .. }) =
        &append.mode
    else {
        unreachable!("the fence lets only a beginning pass without a session");
    };
    connection
        .prepare_cached(
            "INSERT INTO sessions (key, epoch, next_seq, last_row, status, created_us, \
             updated_us, id, agent, origin, parent_key, parent_seq, parent_row) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            next.key,
            int(next.epoch.0),
            int(next.next_seq.0),
            next.last_row,
            reader::status_number(next.status),
            append.at_us,
            append.session.as_str(),
            agent,
            origin.as_ref().map(|origin| origin.0.as_str()),
            branch.map(|branch| branch.key),
            branch.map(|_| int(append.expected_seq.0)),
            branch.map(|branch| branch.row),
        ])?;
    Ok(())
}

/// What an append changes of its session.
pub(super) fn head_change(
    connection: &Connection,
    append: &Append,
    held: &Head,
    next: &Head,
) -> rusqlite::Result<()> {
    // Naming the status in an update costs a visit to its indexes, so it is named only when it
    // changes.
    let (key, epoch, next_seq) = (next.key, int(next.epoch.0), int(next.next_seq.0));
    let changed = if held.status == next.status {
        connection
            .prepare_cached(
                "UPDATE sessions SET epoch = ?2, next_seq = ?3, last_row = ?4, updated_us = ?5 \
                 WHERE key = ?1",
            )?
            .execute(params![key, epoch, next_seq, next.last_row, append.at_us])?
    } else {
        let status = reader::status_number(next.status);
        connection
            .prepare_cached(
                "UPDATE sessions SET epoch = ?2, next_seq = ?3, last_row = ?4, updated_us = ?5, \
                 status = ?6 WHERE key = ?1",
            )?
            .execute(params![key, epoch, next_seq, next.last_row, append.at_us, status])?
    };
    assert_eq!(changed, 1, "a session that the fence has seen has one head");
    Ok(())
}

/// The events, linked to the session's row before.
pub(super) fn block(
    connection: &Connection,
    append: &Append,
    held: Option<Head>,
    next: &Head,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO log (id, session_key, prev, first_seq, count, epoch, at_us, schema, \
             body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            next.last_row,
            next.key,
            held.map_or(0, |head| head.last_row),
            int(append.expected_seq.0),
            append.count,
            int(append.epoch.0),
            append.at_us,
            SCHEMA_VERSION,
            append.events,
        ])?;
    Ok(())
}

/// The bodies that are not stored yet, and that this session names them all.
pub(super) fn blobs(connection: &Connection, append: &Append, key: i64) -> rusqlite::Result<()> {
    for (hash, body) in &append.blobs {
        let inserted = connection
            .prepare_cached(
                "INSERT INTO blobs (hash, body, pinned) VALUES (?1, ?2, 0) ON CONFLICT DO NOTHING",
            )?
            .execute(params![hash.as_str(), &body[..]])?;
        let blob_key: i64 = if inserted == 1 {
            connection.last_insert_rowid()
        } else {
            connection
                .prepare_cached("SELECT key FROM blobs WHERE hash = ?1")?
                .query_row([hash.as_str()], |row| row.get(0))?
        };
        connection
            .prepare_cached(
                "INSERT INTO blob_refs (session_key, blob_key) VALUES (?1, ?2) \
                 ON CONFLICT DO NOTHING",
            )?
            .execute([key, blob_key])?;
    }
    Ok(())
}

/// What comes to accounts. A sum that no number holds stays at the largest.
pub(super) fn charges(connection: &Connection, append: &Append) -> rusqlite::Result<()> {
    for Charge { account, amount } in &append.charges {
        connection
            .prepare_cached(
                "INSERT INTO budgets (account, usd_nanos, tokens, calls) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (account) DO UPDATE SET \
                 usd_nanos = min(usd_nanos, 9223372036854775807 - ?2) + ?2, \
                 tokens = min(tokens, 9223372036854775807 - ?3) + ?3, \
                 calls = min(calls, 9223372036854775807 - ?4) + ?4",
            )?
            .execute(params![
                &**account,
                bounded(amount.usd_nanos),
                bounded(amount.tokens),
                bounded(amount.calls),
            ])?;
    }
    Ok(())
}

fn bounded(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The snapshot that comes with the events, if any.
pub(super) fn snapshot(
    connection: &Connection,
    append: &Append,
    next: &Head,
) -> rusqlite::Result<()> {
    let Some(body) = &append.snapshot else { return Ok(()) };
    connection
        .prepare_cached(
            "INSERT INTO snapshots (session_key, seq, log_row, body) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![next.key, int(next.next_seq.0), next.last_row, body])?;
    Ok(())
}
