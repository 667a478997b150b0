//! Prunes the database a few sessions at a time, newest first, each in the transaction that removes
//! all that is its alone.
//!
//! Invariants against what goes on beside it: a session is locked before anything of it is judged,
//! so that a fork under way, which locks its parent, is either seen or finds the parent gone; a
//! blob is locked before its references are counted, in a statement after, so that an append that
//! names it is either seen or stores it anew. Reads are one statement each and see all or nothing.

use tokio_postgres::types::Type;

use super::get;
use super::link::{Link, Trouble};
use super::pool::Pool;
use super::reader::{RETIRED, status_number, uint};
use crate::error::JournalError;
use crate::prune::{self, Shelf};
use crate::{PruneQuery, PruneReport, SessionStatus};

/// Prunes; see [`crate::Journal::prune`].
pub(super) fn prune(
    pool: &Pool,
    query: &PruneQuery,
    sessions_max: u32,
) -> Result<PruneReport, JournalError> {
    let mut report = PruneReport::default();
    let mut below = i64::MAX;
    loop {
        let mut sent: Option<Step> = None;
        let step = pool.run("pruned", |link| {
            if let Some(step) = sent.take() {
                // The answer to a commit was lost.
                if is_done(link, &step)? {
                    return Ok(step);
                }
            }
            link.transact(|link| {
                let step = take_step(link, query, below, sessions_max)?;
                sent = Some(step.clone());
                Ok(step)
            })
        })?;
        report.sessions += step.report.sessions;
        report.kept_for_forks += step.report.kept_for_forks;
        report.events += step.report.events;
        report.blobs += step.report.blobs;
        match step.lowest {
            Some(lowest) => below = lowest,
            None => return Ok(report),
        }
    }
}

/// A few sessions that were looked at.
#[derive(Clone)]
struct Step {
    /// The last of them; `None` if there were none.
    lowest: Option<i64>,
    /// Those that go.
    keys: Vec<i64>,
    report: PruneReport,
}

/// Whether a step was committed, seen from a connection that may be another.
fn is_done(link: &mut Link, step: &Step) -> Result<bool, Trouble> {
    let rows = link.query(
        "SELECT count(*) FROM mainspring_sessions WHERE key = ANY($1) AND status <> 5",
        &[(&step.keys, Type::INT8_ARRAY)],
    )?;
    let left: i64 = get(super::first(&rows)?, 0)?;
    Ok(left == 0 && !step.keys.is_empty())
}

/// What may be pruned, as values of a statement.
struct Wanted<'a> {
    statuses: Vec<i16>,
    before_us: i64,
    agent: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    fn new(query: &'a PruneQuery) -> Self {
        let ended = |status: &&SessionStatus| {
            !matches!(status, SessionStatus::Open | SessionStatus::Waiting)
        };
        let statuses = query.statuses.iter().filter(ended).map(|s| status_number(*s)).collect();
        Self { statuses, before_us: query.before_us, agent: query.agent.as_deref() }
    }
}

fn take_step(
    link: &mut Link,
    query: &PruneQuery,
    below: i64,
    sessions_max: u32,
) -> Result<Step, Trouble> {
    let sessions_max = i64::from(sessions_max.max(1));
    let rows = link.query(
        "SELECT min(key) FROM (SELECT key FROM mainspring_sessions WHERE key < $1 \
         ORDER BY key DESC LIMIT $2) AS looked",
        &[(&below, Type::INT8), (&sessions_max, Type::INT8)],
    )?;
    let lowest: Option<i64> = get(super::first(&rows)?, 0)?;
    let mut step = Step { lowest, keys: Vec::new(), report: PruneReport::default() };
    let Some(lowest) = lowest else { return Ok(step) };
    let wanted = Wanted::new(query);
    // Judged again once locked.
    let rows = link.query(
        "SELECT key FROM mainspring_sessions WHERE key >= $1 AND key < $2 AND status = ANY($3) \
         AND updated_us < $4 AND ($5::text IS NULL OR agent = $5) ORDER BY key DESC FOR UPDATE",
        &[
            (&lowest, Type::INT8),
            (&below, Type::INT8),
            (&wanted.statuses, Type::INT2_ARRAY),
            (&wanted.before_us, Type::INT8),
            (&wanted.agent, Type::TEXT),
        ],
    )?;
    step.keys = rows.iter().map(|row| get(row, 0)).collect::<Result<_, _>>()?;
    let mut tables = Tables { link, unnamed: Vec::new() };
    for key in &step.keys {
        prune::prune(&mut tables, *key, &mut step.report)?;
    }
    step.report.blobs = tables.sweep()?;
    Ok(step)
}

/// The tables, within a transaction.
struct Tables<'a> {
    link: &'a mut Link,
    /// Blobs that removed sessions have named.
    unnamed: Vec<i64>,
}

impl Tables<'_> {
    fn execute(&mut self, sql: &str, key: i64) -> Result<(), Trouble> {
        self.link.execute(sql, &[(&key, Type::INT8)]).map(|_| ())
    }

    fn remove_blocks(&mut self, key: i64, end: i64) -> Result<u64, Trouble> {
        let rows = self.link.query(
            "WITH gone AS (DELETE FROM mainspring_log WHERE session_key = $1 AND first_seq >= $2 \
             RETURNING count) SELECT coalesce(sum(count), 0)::int8 FROM gone",
            &[(&key, Type::INT8), (&end, Type::INT8)],
        )?;
        uint(super::first(&rows)?, 0)
    }

    /// Removes the blobs that nobody names any more.
    fn sweep(mut self) -> Result<u64, Trouble> {
        self.unnamed.sort_unstable();
        self.unnamed.dedup();
        if self.unnamed.is_empty() {
            return Ok(0);
        }
        let keys = [(&self.unnamed as _, Type::INT8_ARRAY)];
        self.link.query(
            "SELECT key FROM mainspring_blobs WHERE key = ANY($1) ORDER BY key FOR UPDATE",
            &keys,
        )?;
        self.link.execute(
            "DELETE FROM mainspring_blobs b WHERE b.key = ANY($1) \
             AND NOT EXISTS (SELECT FROM mainspring_blob_refs r WHERE r.blob_key = b.key)",
            &keys,
        )
    }
}

impl Shelf for Tables<'_> {
    type Error = Trouble;

    fn fork_end(&mut self, key: i64) -> Result<Option<u64>, Trouble> {
        let rows = self.link.query(
            "SELECT max(parent_seq) FROM mainspring_sessions WHERE parent_key = $1",
            &[(&key, Type::INT8)],
        )?;
        let row = super::first(&rows)?;
        get::<Option<i64>>(row, 0)?.map(|_| uint(row, 0)).transpose()
    }

    fn retired_parent(&mut self, key: i64) -> Result<Option<i64>, Trouble> {
        // Locked whatever it is: another pruning may be about to retire it for this very fork.
        let rows = self.link.query(
            "SELECT p.key, p.status FROM mainspring_sessions s JOIN mainspring_sessions p \
             ON p.key = s.parent_key WHERE s.key = $1 FOR UPDATE OF p",
            &[(&key, Type::INT8)],
        )?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(if get::<i16>(row, 1)? == RETIRED { Some(get(row, 0)?) } else { None })
    }

    fn retire(&mut self, key: i64) -> Result<(), Trouble> {
        self.execute(
            "UPDATE mainspring_sessions SET status = 5, owner = NULL, id = '~pruned-' || key \
             WHERE key = $1",
            key,
        )
    }

    fn cut(&mut self, key: i64, end: u64) -> Result<u64, Trouble> {
        let end = i64::try_from(end).unwrap_or(i64::MAX);
        self.link.execute(
            "DELETE FROM mainspring_snapshots WHERE session_key = $1 AND seq > $2",
            &[(&key, Type::INT8), (&end, Type::INT8)],
        )?;
        self.remove_blocks(key, end)
    }

    fn remove(&mut self, key: i64) -> Result<u64, Trouble> {
        let events = self.remove_blocks(key, 0)?;
        self.execute("DELETE FROM mainspring_snapshots WHERE session_key = $1", key)?;
        let rows = self.link.query(
            "DELETE FROM mainspring_blob_refs WHERE session_key = $1 RETURNING blob_key",
            &[(&key, Type::INT8)],
        )?;
        for row in &rows {
            self.unnamed.push(get(row, 0)?);
        }
        self.execute("DELETE FROM mainspring_sessions WHERE key = $1", key)?;
        Ok(events)
    }
}

/// What a pruning would remove. A session that goes stays as a retired one if a fork that does not
/// go shares its events, itself or through forks that go; `kept` finds those, and how much of each.
const COUNT: &str = "\
    WITH RECURSIVE wanted AS MATERIALIZED (SELECT key FROM mainspring_sessions \
        WHERE status = ANY($1) AND updated_us < $2 AND ($3::text IS NULL OR agent = $3)), \
    kept AS (SELECT s.parent_key AS key, s.parent_seq AS seq FROM mainspring_sessions s \
        WHERE s.parent_key IS NOT NULL AND s.status <> 5 AND s.key NOT IN (SELECT key FROM wanted) \
        UNION SELECT p.parent_key, p.parent_seq FROM kept k \
        JOIN mainspring_sessions p ON p.key = k.key WHERE p.parent_key IS NOT NULL), \
    ends AS MATERIALIZED (SELECT key, max(seq) AS seq FROM kept GROUP BY key), \
    touched AS MATERIALIZED (SELECT s.key, e.seq FROM mainspring_sessions s \
        LEFT JOIN ends e ON e.key = s.key \
        WHERE s.status = 5 OR s.key IN (SELECT key FROM wanted)), \
    gone AS MATERIALIZED (SELECT key FROM touched WHERE seq IS NULL) \
    SELECT (SELECT count(*) FROM wanted), \
    (SELECT count(*) FROM wanted w JOIN ends e ON e.key = w.key), \
    (SELECT coalesce(sum(l.count), 0)::int8 FROM touched t JOIN mainspring_log l \
        ON l.session_key = t.key AND l.first_seq >= coalesce(t.seq, 0)), \
    (SELECT count(DISTINCT r.blob_key) FROM gone g JOIN mainspring_blob_refs r \
        ON r.session_key = g.key WHERE NOT EXISTS (SELECT FROM mainspring_blob_refs o \
        WHERE o.blob_key = r.blob_key AND o.session_key NOT IN (SELECT key FROM gone)))";

/// Counts what a pruning would remove.
pub(super) fn count(link: &mut Link, query: &PruneQuery) -> Result<PruneReport, Trouble> {
    let wanted = Wanted::new(query);
    let rows = link.query(
        COUNT,
        &[
            (&wanted.statuses, Type::INT2_ARRAY),
            (&wanted.before_us, Type::INT8),
            (&wanted.agent, Type::TEXT),
        ],
    )?;
    let row = super::first(&rows)?;
    Ok(PruneReport {
        sessions: uint(row, 0)?,
        kept_for_forks: uint(row, 1)?,
        events: uint(row, 2)?,
        blobs: uint(row, 3)?,
    })
}
