//! Finds a session's events: its own rows, linked from the last one back, and before them those of
//! the sessions that it was forked from. Touches no row behind what is asked for, as far as a
//! snapshot marks a place to begin.

use mainspring_session::{Epoch, SessionId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{int, uint};
use crate::block::{Block, Piece};

/// Where a session's events lie.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) key: i64,
    pub(super) next_seq: u64,
    /// The row of its last event.
    pub(super) last_row: i64,
    pub(super) parent: Option<Parent>,
}

/// What a fork shares.
#[derive(Clone, Copy)]
pub(super) struct Parent {
    pub(super) key: i64,
    /// How many events are shared.
    pub(super) seq: u64,
    /// The row that holds the last of them.
    row: i64,
}

impl Place {
    /// The position of the first event of its own.
    fn first_seq(&self) -> u64 {
        self.parent.map_or(0, |parent| parent.seq)
    }
}

macro_rules! places {
    ($rest:literal) => {
        concat!(
            "SELECT key, next_seq, last_row, parent_key, parent_seq, parent_row FROM sessions ",
            $rest
        )
    };
}

/// Looks a session up by its id.
pub(super) fn find(connection: &Connection, id: &SessionId) -> rusqlite::Result<Option<Place>> {
    let mut statement = connection.prepare_cached(places!("WHERE id = ?1"))?;
    statement.query_row([id.as_str()], place).optional()
}

/// Looks a session up by its key, also a retired one.
pub(super) fn by_key(connection: &Connection, key: i64) -> rusqlite::Result<Option<Place>> {
    let mut statement = connection.prepare_cached(places!("WHERE key = ?1"))?;
    statement.query_row([key], place).optional()
}

fn place(row: &Row<'_>) -> rusqlite::Result<Place> {
    let parent = match row.get(3)? {
        Some(key) => Some(Parent { key, seq: uint(row, 4)?, row: row.get(5)? }),
        None => None,
    };
    Ok(Place { key: row.get(0)?, next_seq: uint(row, 1)?, last_row: row.get(2)?, parent })
}

/// A session's stored blocks of a range, oldest first.
pub(super) struct Chain {
    pub(super) blocks: Vec<Piece<Block>>,
    /// Whether the links led back as far as they had to.
    pub(super) complete: bool,
    /// The newest event format of the blocks that lie before the range's end and were seen. Those
    /// include the last one, so that a reading which begins behind it still learns that a newer
    /// version has been at work.
    pub(super) schema_max: u32,
}

const BLOCK: &str = "SELECT prev, first_seq, count, epoch, at_us, schema, body FROM log \
                     WHERE id = ?1 AND session_key = ?2";
const LINK: &str =
    "SELECT prev, first_seq, count, epoch FROM log WHERE id = ?1 AND session_key = ?2";

impl Chain {
    /// Reads the blocks with the events from one position on and before another.
    pub(super) fn read(
        connection: &Connection,
        place: Place,
        from: u64,
        until: u64,
    ) -> rusqlite::Result<Self> {
        let mut chain = Self { blocks: Vec::new(), complete: from >= until, schema_max: 0 };
        let mut stretch = Stretch { place, end: u64::MAX, last_row: place.last_row };
        while !chain.complete {
            let first_seq = stretch.place.first_seq();
            if until > first_seq {
                let wanted = from.max(first_seq)..until.min(stretch.end);
                if !chain.follow(connection, &stretch, wanted)? {
                    break;
                }
            }
            chain.complete = from >= first_seq;
            match stretch.older(connection)? {
                Some(older) => stretch = older,
                None => break,
            }
        }
        chain.blocks.reverse();
        Ok(chain)
    }

    /// Follows the links back through one session's own rows. Returns whether they led to the
    /// beginning of the range.
    fn follow(
        &mut self,
        connection: &Connection,
        stretch: &Stretch,
        wanted: std::ops::Range<u64>,
    ) -> rusqlite::Result<bool> {
        let mut statement = connection.prepare_cached(BLOCK)?;
        let mut row_id = stretch.row_before(connection, wanted.end)?;
        let params = |row_id| [row_id, stretch.place.key];
        while let Some((prev, block)) = statement.query_row(params(row_id), block).optional()? {
            let complete = block.first_seq <= wanted.start;
            if block.first_seq < wanted.end {
                self.schema_max = self.schema_max.max(block.schema);
            }
            if block.end() > wanted.start && block.first_seq < wanted.end {
                self.blocks.push((block, wanted.end));
            }
            // Links only lead back; one that does not would never end.
            if complete || prev >= row_id {
                return Ok(complete);
            }
            row_id = prev;
        }
        Ok(false)
    }
}

fn block(row: &Row<'_>) -> rusqlite::Result<(i64, Block)> {
    let block = Block {
        first_seq: uint(row, 1)?,
        count: row.get(2)?,
        epoch: Epoch(uint(row, 3)?),
        at_us: row.get(4)?,
        schema: row.get(5)?,
        body: row.get(6)?,
    };
    Ok((row.get(0)?, block))
}

/// One session's own rows, up to where another was forked from it.
struct Stretch {
    place: Place,
    /// Position after the last event that counts.
    end: u64,
    /// The row that holds that event.
    last_row: i64,
}

impl Stretch {
    /// What lies before it, if it belongs to a fork.
    fn older(&self, connection: &Connection) -> rusqlite::Result<Option<Self>> {
        let Some(parent) = self.place.parent else { return Ok(None) };
        let place = by_key(connection, parent.key)?;
        // Parents are older; a circle would never end.
        let place = place.filter(|place| place.key < self.place.key);
        Ok(place.map(|place| Self { place, end: parent.seq, last_row: parent.row }))
    }

    /// A row to begin at in order to read what lies before a position: that of the nearest
    /// snapshot, or the last one.
    fn row_before(&self, connection: &Connection, until: u64) -> rusqlite::Result<i64> {
        if until >= self.end {
            return Ok(self.last_row);
        }
        let nearest: Option<(i64, u64)> = connection
            .prepare_cached(
                "SELECT log_row, seq FROM snapshots WHERE session_key = ?1 AND seq >= ?2 \
                 ORDER BY seq LIMIT 1",
            )?
            .query_row(params![self.place.key, int(until.min(i64::MAX as u64))], |row| {
                Ok((row.get(0)?, uint(row, 1)?))
            })
            .optional()?;
        Ok(nearest.filter(|&(_, seq)| seq <= self.end).map_or(self.last_row, |(row, _)| row))
    }
}

/// The place where a fork leaves the session that owns the last shared event.
#[derive(Clone, Copy)]
pub(super) struct Branch {
    /// The session that owns that event.
    pub(super) key: i64,
    /// The row that holds it.
    pub(super) row: i64,
    /// Who wrote it.
    pub(super) epoch: Epoch,
}

/// Finds where a fork that shares so many events leaves a session; `None` if the rows do not lead
/// there.
pub(super) fn branch(
    connection: &Connection,
    place: Place,
    seq: u64,
) -> rusqlite::Result<Option<Branch>> {
    let mut stretch = Stretch { place, end: u64::MAX, last_row: place.last_row };
    while stretch.place.first_seq() >= seq {
        match stretch.older(connection)? {
            Some(older) => stretch = older,
            None => return Ok(None),
        }
    }
    let key = stretch.place.key;
    let mut row = stretch.row_before(connection, seq)?;
    while let Some(link) = link(connection, key, row)? {
        if link.first_seq < seq {
            let held = link.first_seq + link.count >= seq;
            return Ok(held.then_some(Branch { key, row, epoch: link.epoch }));
        }
        if link.prev >= row {
            break;
        }
        row = link.prev;
    }
    Ok(None)
}

/// A row of the log without its body.
pub(super) struct Link {
    /// The row before it in its session.
    pub(super) prev: i64,
    pub(super) first_seq: u64,
    pub(super) count: u64,
    epoch: Epoch,
}

/// Reads a row of a session without its body.
pub(super) fn link(connection: &Connection, key: i64, row: i64) -> rusqlite::Result<Option<Link>> {
    let read = |row: &Row<'_>| {
        Ok(Link {
            prev: row.get(0)?,
            first_seq: uint(row, 1)?,
            count: uint(row, 2)?,
            epoch: Epoch(uint(row, 3)?),
        })
    };
    connection.prepare_cached(LINK)?.query_row([row, key], read).optional()
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::sqlite::schema;

    const EVENTS: i64 = 100_000;

    /// Session 1 has 100,000 events, one a row, and a snapshot after every 250th; session 2 is
    /// a fork that shares ten of them and has one of its own.
    fn long_session() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        schema::create("test".as_ref(), &connection).unwrap();
        let sql = format!(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {EVENTS})
             INSERT INTO log (id, session_key, prev, first_seq, count, epoch, at_us, body)
             SELECT n, 1, n - 1, n - 1, 1, 1, 0, x'7b7d' FROM n;
             INSERT INTO snapshots (session_key, seq, log_row, body)
             SELECT 1, id, id, x'' FROM log WHERE id % 250 = 0;
             INSERT INTO log (id, session_key, prev, first_seq, count, epoch, at_us, body)
             VALUES (200000, 2, 0, 10, 1, 2, 0, x'7b7d');
             INSERT INTO sessions VALUES
             (1, 1, {EVENTS}, {EVENTS}, 0, 0, 0, 'long', 'agent', NULL, NULL, NULL, NULL),
             (2, 2, 11, 200000, 0, 0, 0, 'fork', 'agent', NULL, 1, 10, 10);"
        );
        connection.execute_batch(&sql).unwrap();
        connection
    }

    /// How often a statement has run since it was last asked: once for each row of the log.
    fn rows_read(connection: &Connection, sql: &str) -> i32 {
        connection.prepare_cached(sql).unwrap().reset_status(StatementStatus::Run)
    }

    fn read(connection: &Connection, key: i64, from: u64, until: u64) -> (usize, i32) {
        let place = by_key(connection, key).unwrap().unwrap();
        let chain = Chain::read(connection, place, from, until).unwrap();
        assert!(chain.complete);
        (chain.blocks.len(), rows_read(connection, BLOCK))
    }

    #[test]
    fn a_reading_touches_no_more_rows_than_lie_between_it_and_the_next_snapshot() {
        let connection = long_session();
        assert_eq!(read(&connection, 1, 99_990, u64::MAX), (10, 10), "near the end");
        assert_eq!(read(&connection, 1, 50, 100), (50, 200), "from the snapshot of 250 events");
        assert_eq!(read(&connection, 1, 0, 1_000), (1_000, 1_000), "up to a snapshot");
        assert_eq!(read(&connection, 1, 99_995, 99_998), (3, 5), "before the last snapshot");
        assert_eq!(read(&connection, 1, 7, 7), (0, 0), "nothing");
    }

    #[test]
    fn a_fork_does_not_pay_for_the_later_events_of_its_parent() {
        let connection = long_session();
        assert_eq!(read(&connection, 2, 0, u64::MAX), (11, 11));
        assert_eq!(read(&connection, 2, 10, u64::MAX), (1, 1));
        assert_eq!(read(&connection, 2, 2, 5), (3, 8));
    }

    #[test]
    fn a_fork_point_is_looked_for_from_the_next_snapshot_on() {
        let connection = long_session();
        let find = |key, seq| {
            let place = by_key(&connection, key).unwrap().unwrap();
            let branch = branch(&connection, place, seq).unwrap().unwrap();
            (branch.key, branch.row, rows_read(&connection, LINK))
        };
        assert_eq!(find(1, 100), (1, 100, 151));
        assert_eq!(find(1, 100_000), (1, 100_000, 1));
        assert_eq!(find(2, 11), (2, 200_000, 1));
        assert_eq!(find(2, 10), (1, 10, 1), "an event of the parent");
    }
}
