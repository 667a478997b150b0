//! The statement that stores appends: many sessions in one, with the fence inside. Whatever the
//! fence lets pass is stored with its snapshot and blobs; the rest of the statement is not touched
//! by what it refuses.
//!
//! The statement locks the row of this process's node, so that whoever declares the node dead waits
//! until it has ended, and does nothing at all once the node is dead. A session passes if its row
//! has the expected epoch and position and the right owner; the row is locked by being updated.
//! The parts that a batch has no use for are left out, since the text is parsed each time: a pooler
//! may run each statement on another connection, so none is prepared.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mainspring_session::{Epoch, SCHEMA_VERSION, Seq, SessionId};
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::get;
use super::link::{Link, Param, Trouble};
use super::reader::{RETIRED, status_number, uint};
use crate::fence::ForkPoint;
use crate::{Append, AppendMode, Charge, SessionStatus};

/// Where the events come from that a fork shares.
#[derive(Clone, Copy)]
pub(super) struct Source {
    /// The parent that was named. As long as it is locked, none of what it shares goes.
    direct: i64,
    /// The session that the last of the shared events belongs to.
    link: i64,
    pub(super) point: ForkPoint,
}

/// Finds out what a fork would share; `None` if there is no such parent.
pub(super) fn source(
    link: &mut Link,
    parent: &SessionId,
    append: &Append,
) -> Result<Option<Source>, Trouble> {
    let seq = int(append.expected_seq.0);
    let rows = link.query(
        "WITH RECURSIVE line AS (SELECT key, key AS direct, parent_key, parent_seq, next_seq, \
         0 AS depth FROM mainspring_sessions WHERE id = $1 UNION ALL \
         SELECT p.key, l.direct, p.parent_key, p.parent_seq, l.next_seq, l.depth + 1 \
         FROM line l JOIN mainspring_sessions p ON p.key = l.parent_key WHERE l.parent_seq >= $2) \
         SELECT l.direct, l.key, l.next_seq, (SELECT b.epoch FROM mainspring_log b \
         WHERE b.session_key = l.key AND b.first_seq < $2 AND b.first_seq + b.count >= $2 \
         ORDER BY b.first_seq DESC LIMIT 1) FROM line l ORDER BY l.depth DESC LIMIT 1",
        &[(&parent.as_str(), Type::TEXT), (&seq, Type::INT8)],
    )?;
    let Some(row) = rows.first() else { return Ok(None) };
    let epoch = match get::<Option<i64>>(row, 3)? {
        None => None,
        Some(_) => Some(Epoch(uint(row, 3)?)),
    };
    let point = ForkPoint { next_seq: Seq(uint(row, 2)?), epoch };
    Ok(Some(Source { direct: get(row, 0)?, link: get(row, 1)?, point }))
}

/// What became of a batch.
pub(super) struct Stored {
    /// Whether the node was live. If not, nothing passed.
    pub(super) live: bool,
    /// Which appends passed, by their place in the batch.
    pub(super) passed: Vec<bool>,
}

/// A batch by columns. No session occurs twice in it.
#[derive(Default)]
pub(super) struct Columns<'a> {
    ids: Vec<&'a str>,
    kinds: Vec<i16>,
    epochs: Vec<i64>,
    seqs: Vec<i64>,
    counts: Vec<i32>,
    statuses: Vec<i16>,
    keeps: Vec<bool>,
    times: Vec<i64>,
    bodies: Vec<&'a [u8]>,
    agents: Vec<Option<&'a str>>,
    origins: Vec<Option<&'a str>>,
    parents: Vec<Option<i64>>,
    parent_seqs: Vec<Option<i64>>,
    directs: Vec<Option<i64>>,
    snapshots: Rows<&'a [u8]>,
    blob_refs: Rows<&'a str>,
    charges: Rows<&'a str>,
    charged: [Vec<i64>; 3],
    blobs: BTreeMap<&'a str, &'a [u8]>,
}

/// Something that only some appends have, with their numbers from 1.
#[derive(Default)]
struct Rows<T> {
    ords: Vec<i64>,
    values: Vec<T>,
}

const BEGIN: i16 = 0;
const CONTINUE: i16 = 1;
const TAKE_OVER: i16 = 2;

impl<'a> Columns<'a> {
    /// Adds an append, a fork with its source.
    pub(super) fn push(&mut self, append: &'a Append, source: Option<Source>) {
        let (kind, begin) = match &append.mode {
            AppendMode::Create { agent, origin } => (BEGIN, Some((agent, origin))),
            AppendMode::Fork { agent, origin, .. } => (BEGIN, Some((agent, origin))),
            AppendMode::Continue => (CONTINUE, None),
            AppendMode::TakeOver => (TAKE_OVER, None),
        };
        self.ids.push(append.session.as_str());
        self.kinds.push(kind);
        self.epochs.push(int(append.epoch.0));
        self.seqs.push(int(append.expected_seq.0));
        self.counts.push(append.count.cast_signed());
        self.statuses.push(status_number(append.status));
        self.keeps.push(append.status == SessionStatus::Open && !append.release);
        self.times.push(append.at_us);
        self.bodies.push(&append.events);
        self.agents.push(begin.map(|(agent, _)| agent.as_str()));
        self.origins.push(begin.and_then(|(_, origin)| origin.as_ref()).map(|o| o.0.as_str()));
        self.parents.push(source.map(|source| source.link));
        self.parent_seqs.push(source.map(|_| int(append.expected_seq.0)));
        self.directs.push(source.map(|source| source.direct));
        let ord = self.ids.len() as i64;
        if let Some(body) = &append.snapshot {
            self.snapshots.ords.push(ord);
            self.snapshots.values.push(body);
        }
        for Charge { account, amount } in &append.charges {
            self.charges.ords.push(ord);
            self.charges.values.push(account);
            let parts = [amount.usd_nanos, amount.tokens, amount.calls];
            for (column, part) in self.charged.iter_mut().zip(parts) {
                column.push(int(part));
            }
        }
        for (hash, body) in &append.blobs {
            self.blob_refs.ords.push(ord);
            self.blob_refs.values.push(hash.as_str());
            self.blobs.insert(hash.as_str(), body);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Stores what the fence lets pass. `commit` is what the commit has to wait for, if that is
    /// not what the server does anyway.
    pub(super) fn store(
        &self,
        link: &mut Link,
        node: Uuid,
        commit: Option<&str>,
    ) -> Result<Stored, Trouble> {
        let (hashes, bodies): (Vec<&str>, Vec<&[u8]>) =
            self.blobs.iter().map(|(hash, body)| (*hash, *body)).unzip();
        let writer = writer(node);
        let schema = SCHEMA_VERSION.cast_signed();
        let mut text = Text::new(&node);
        self.write_moves(&mut text);
        self.write_beginnings(&mut text);
        self.write_log(&mut text, &schema, &writer);
        self.write_snapshots(&mut text);
        self.write_charges(&mut text);
        if !hashes.is_empty() {
            self.write_blobs(&mut text, &hashes, &bodies);
        }
        let commit = commit.map(|commit| [commit]);
        let rows = link.query(&text.end(commit.as_ref()), &text.values)?;
        let mut stored = Stored { live: false, passed: vec![false; self.ids.len()] };
        for row in &rows {
            match get::<i64>(row, 0)? {
                0 => stored.live = true,
                ord @ 1.. => stored.passed[ord as usize - 1] = true,
                _ => {}
            }
        }
        Ok(stored)
    }
}

/// The text of the statement as it grows, and its values.
struct Text<'v> {
    sql: String,
    values: Vec<Param<'v>>,
    /// Parts that say which appends passed.
    passed: Vec<&'static str>,
}

impl<'v> Text<'v> {
    fn new(node: &'v Uuid) -> Self {
        let sql =
            "WITH me AS MATERIALIZED (SELECT id FROM mainspring_nodes WHERE id = $1 AND live \
                   FOR SHARE)"
                .to_owned();
        Self { sql, values: vec![(node, Type::UUID)], passed: Vec::new() }
    }

    /// Adds a value and gives its name.
    fn value(&mut self, value: &'v (dyn ToSql + Sync), kind: Type) -> String {
        self.values.push((value, kind));
        format!("${}", self.values.len())
    }

    fn push(&mut self, part: std::fmt::Arguments<'_>) {
        self.sql.write_fmt(part).expect("writing into a string cannot fail");
    }

    /// Ends the statement: a row of 0 if the node was live, and one for each append that passed.
    fn end(&mut self, commit: Option<&'v [&'v str; 1]>) -> String {
        let mut sql = std::mem::take(&mut self.sql);
        sql.push_str(" SELECT ord FROM passed UNION ALL SELECT 0 FROM me");
        if let Some([commit]) = commit {
            let commit = self.value(commit, Type::TEXT);
            // What it gives is of no use, but a text is never shorter than nothing.
            let _ = write!(
                sql,
                " UNION ALL SELECT -1 - length(set_config('synchronous_commit', {commit}, true))"
            );
        }
        sql
    }
}

/// How the statement is put together.
impl<'a> Columns<'a> {
    /// The columns that every part needs, none of them large, as `i`.
    fn slim<'v>(&'v self, text: &mut Text<'v>) -> String {
        let names = [
            text.value(&self.ids, Type::TEXT_ARRAY),
            text.value(&self.kinds, Type::INT2_ARRAY),
            text.value(&self.epochs, Type::INT8_ARRAY),
            text.value(&self.seqs, Type::INT8_ARRAY),
            text.value(&self.counts, Type::INT4_ARRAY),
            text.value(&self.statuses, Type::INT2_ARRAY),
            text.value(&self.keeps, Type::BOOL_ARRAY),
            text.value(&self.times, Type::INT8_ARRAY),
        ];
        names.join(", ")
    }

    fn write_moves<'v>(&'v self, text: &mut Text<'v>) {
        let slim = self.slim(text);
        if self.kinds.iter().all(|kind| *kind == BEGIN) {
            return;
        }
        // A session whose turn has ended has no owner, and whoever wrote last may go on; one whose
        // turn goes on belongs to its owner alone.
        text.push(format_args!(
            ", moved AS (UPDATE mainspring_sessions s SET epoch = i.epoch, \
             next_seq = i.seq + i.count, status = i.status, \
             owner = CASE WHEN i.keep THEN me.id END, updated_us = i.at_us \
             FROM me, unnest({slim}) WITH ORDINALITY \
             AS i(id, kind, epoch, seq, count, status, keep, at_us, ord) \
             WHERE i.kind > 0 AND s.id = i.id AND s.next_seq = i.seq \
             AND CASE i.kind WHEN {CONTINUE} THEN s.epoch = i.epoch \
             AND (s.owner = me.id OR s.owner IS NULL AND s.status <> 0) \
             ELSE s.epoch = i.epoch - 1 AND (s.owner = me.id OR s.owner IS NULL) END \
             RETURNING s.key, i.ord)"
        ));
        text.passed.push("SELECT key, ord FROM moved");
    }

    fn write_beginnings<'v>(&'v self, text: &mut Text<'v>) {
        if self.kinds.iter().all(|kind| *kind != BEGIN) {
            return;
        }
        let slim: Vec<String> = (2..=9).map(|number| format!("${number}")).collect();
        let slim = slim.join(", ");
        let agents = text.value(&self.agents, Type::TEXT_ARRAY);
        let origins = text.value(&self.origins, Type::TEXT_ARRAY);
        let parents = text.value(&self.parents, Type::INT8_ARRAY);
        let parent_seqs = text.value(&self.parent_seqs, Type::INT8_ARRAY);
        let directs = text.value(&self.directs, Type::INT8_ARRAY);
        let mut allowed = "";
        if self.directs.iter().any(Option::is_some) {
            // A pruning waits for this lock, or has already renamed or removed the parent.
            text.push(format_args!(
                ", parents AS MATERIALIZED (SELECT key FROM mainspring_sessions \
                 WHERE key = ANY({directs}) AND status <> {RETIRED} FOR KEY SHARE)"
            ));
            allowed = "AND (i.direct IS NULL OR i.direct IN (SELECT key FROM parents))";
        }
        text.push(format_args!(
            ", made AS (INSERT INTO mainspring_sessions (id, owner, epoch, next_seq, status, agent, \
             origin, parent_key, parent_seq, created_us, updated_us) \
             SELECT i.id, CASE WHEN i.keep THEN me.id END, i.epoch, i.seq + i.count, i.status, \
             i.agent, i.origin, i.parent_key, i.parent_seq, i.at_us, i.at_us \
             FROM me, unnest({slim}, {agents}, {origins}, {parents}, {parent_seqs}, {directs}) \
             WITH ORDINALITY AS i(id, kind, epoch, seq, count, status, keep, at_us, agent, origin, \
             parent_key, parent_seq, direct, ord) WHERE i.kind = {BEGIN} {allowed} ORDER BY i.ord \
             ON CONFLICT (id) DO NOTHING RETURNING key, id)"
        ));
        text.passed.push(
            "SELECT made.key, i.ord FROM made \
             JOIN unnest($2) WITH ORDINALITY AS i(id, ord) ON i.id = made.id",
        );
    }

    fn write_log<'v>(&'v self, text: &mut Text<'v>, schema: &'v i32, writer: &'v i32) {
        let passed = text.passed.join(" UNION ALL ");
        let schema = text.value(schema, Type::INT4);
        let writer = text.value(writer, Type::INT4);
        let bodies = text.value(&self.bodies, Type::BYTEA_ARRAY);
        text.push(format_args!(
            ", passed AS ({passed}), logged AS (INSERT INTO mainspring_log (session_key, \
             first_seq, at_us, epoch, count, schema, writer, body) \
             SELECT p.key, i.seq, i.at_us, i.epoch, i.count, {schema}, {writer}, i.body \
             FROM passed p JOIN unnest($4, $5, $6, $9, {bodies}) WITH ORDINALITY \
             AS i(epoch, seq, count, at_us, body, ord) ON i.ord = p.ord)"
        ));
    }

    fn write_snapshots<'v>(&'v self, text: &mut Text<'v>) {
        if self.snapshots.ords.is_empty() {
            return;
        }
        let ords = text.value(&self.snapshots.ords, Type::INT8_ARRAY);
        let bodies = text.value(&self.snapshots.values, Type::BYTEA_ARRAY);
        text.push(format_args!(
            ", snapped AS (INSERT INTO mainspring_snapshots (session_key, seq, body) \
             SELECT p.key, i.seq + i.count, t.body FROM passed p \
             JOIN unnest({ords}, {bodies}) AS t(ord, body) ON t.ord = p.ord \
             JOIN unnest($5, $6) WITH ORDINALITY AS i(seq, count, ord) ON i.ord = p.ord)"
        ));
    }

    /// Accounts are locked in the order of their names, after the sessions, so that no two processes
    /// wait for each other. Sums that no number holds refuse the append, as any bad value does.
    fn write_charges<'v>(&'v self, text: &mut Text<'v>) {
        if self.charges.ords.is_empty() {
            return;
        }
        let ords = text.value(&self.charges.ords, Type::INT8_ARRAY);
        let accounts = text.value(&self.charges.values, Type::TEXT_ARRAY);
        let [usd, tokens, calls] = &self.charged;
        let usd = text.value(usd, Type::INT8_ARRAY);
        let tokens = text.value(tokens, Type::INT8_ARRAY);
        let calls = text.value(calls, Type::INT8_ARRAY);
        text.push(format_args!(
            ", charged AS (INSERT INTO mainspring_budgets AS b (account, usd_nanos, tokens, calls) \
             SELECT c.account, sum(c.usd)::int8, sum(c.tokens)::int8, sum(c.calls)::int8 \
             FROM passed p JOIN unnest({ords}, {accounts}, {usd}, {tokens}, {calls}) \
             AS c(ord, account, usd, tokens, calls) ON c.ord = p.ord \
             GROUP BY c.account ORDER BY c.account \
             ON CONFLICT (account) DO UPDATE SET usd_nanos = b.usd_nanos + excluded.usd_nanos, \
             tokens = b.tokens + excluded.tokens, calls = b.calls + excluded.calls)"
        ));
    }

    /// A blob that is there is locked against being swept away before this commits; one that is
    /// swept at this moment is waited for, found gone and stored again.
    fn write_blobs<'v>(
        &'v self,
        text: &mut Text<'v>,
        hashes: &'v Vec<&'a str>,
        bodies: &'v Vec<&'a [u8]>,
    ) {
        let hashes = text.value(hashes, Type::TEXT_ARRAY);
        let bodies = text.value(bodies, Type::BYTEA_ARRAY);
        let ords = text.value(&self.blob_refs.ords, Type::INT8_ARRAY);
        let refs = text.value(&self.blob_refs.values, Type::TEXT_ARRAY);
        text.push(format_args!(
            ", used AS (SELECT DISTINCT p.key AS session_key, r.hash FROM passed p \
             JOIN unnest({ords}, {refs}) AS r(ord, hash) ON r.ord = p.ord), \
             known AS MATERIALIZED (SELECT key, hash FROM mainspring_blobs \
             WHERE hash = ANY({hashes}) FOR KEY SHARE), \
             added AS (INSERT INTO mainspring_blobs (hash, body) \
             SELECT b.hash, b.body FROM unnest({hashes}, {bodies}) AS b(hash, body) \
             WHERE b.hash IN (SELECT hash FROM used) \
             AND NOT EXISTS (SELECT FROM known k WHERE k.hash = b.hash) ORDER BY b.hash \
             ON CONFLICT (hash) DO UPDATE SET hash = excluded.hash RETURNING key, hash), \
             named AS (INSERT INTO mainspring_blob_refs (session_key, blob_key) \
             SELECT u.session_key, b.key FROM used u JOIN (SELECT key, hash FROM known \
             UNION ALL SELECT key, hash FROM added) b ON b.hash = u.hash \
             ON CONFLICT DO NOTHING)"
        ));
    }
}

/// What the log keeps of a node: enough to tell, after an answer was lost, whose append it holds.
pub(super) fn writer(node: Uuid) -> i32 {
    let bits = node.as_u128();
    ((bits >> 96) ^ (bits >> 64) ^ (bits >> 32) ^ bits) as u32 as i32
}

/// A position or epoch as it is stored.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
