//! What it costs to go on: reading a session's snapshots and the events after the last one, and
//! opening a file with many sessions. Each reading is on a connection that has read nothing yet;
//! the file is in the system's page cache.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mainspring_journal::{Access, Append, Durability, Journal, SessionStatus};
use mainspring_session::{Seq, SessionId};
use serde_json::json;

use crate::driver::{block, session};
use crate::support::{Counted, Scratch, append, bytes_read, ms, percentile};

/// Sessions that are written beside the one that is read, so that its rows lie apart.
const NEIGHBOURS: usize = 4;
const SNAPSHOT_FIRST: u64 = 1_024;
const SNAPSHOT_EVERY: u64 = 256;
const SNAPSHOT_BYTES: usize = 2_048;
const READINGS: usize = 5;
/// Appends handed in before the oldest of them must be done.
const UNDER_WAY: u64 = 10_000;

/// Reads what a session of so many events, one an append, is resumed from.
pub(crate) fn session_of(folder: &Path, events: u64) {
    let scratch = Scratch::new(folder);
    let mut filler = Filler::new(&scratch);
    let ids: Vec<SessionId> = (0..=NEIGHBOURS).map(session).collect();
    for seq in 0..events {
        let end = seq + 1;
        let due = end >= SNAPSHOT_FIRST && (end - SNAPSHOT_FIRST).is_multiple_of(SNAPSHOT_EVERY);
        for id in &ids {
            let snapshot = due.then(|| vec![b'x'; SNAPSHOT_BYTES]);
            filler.add(id, seq, SessionStatus::Open, snapshot);
        }
    }
    filler.finish();

    let (mut times, mut read_bytes, mut rows) = (Vec::new(), 0, (0, 0));
    for _ in 0..READINGS {
        let journal = scratch.open(Access::ReadOnly, Durability::Full);
        let (began, read_before) = (Instant::now(), bytes_read());
        rows = resume(&*journal, &ids[0]);
        times.push(began.elapsed());
        read_bytes = bytes_read() - read_before;
    }
    times.sort_unstable();
    println!(
        "{}",
        json!({
            "measured": "resume",
            "events": events,
            "snapshot_rows": rows.0,
            "event_rows": rows.1,
            "read_bytes": read_bytes,
            "median_ms": ms(percentile(&times, 50)),
            "file_bytes": scratch.bytes(),
        })
    );
}

/// Opens a file with so many sessions for writing, and reads one of them.
pub(crate) fn store_of(folder: &Path, sessions: usize) {
    let scratch = Scratch::new(folder);
    let mut filler = Filler::new(&scratch);
    for number in 0..sessions {
        filler.add(&session(number), 0, SessionStatus::Finished, None);
    }
    filler.finish();

    let (mut openings, mut loads, mut read_bytes) = (Vec::new(), Vec::new(), 0);
    for reading in 0..READINGS {
        let (began, read_before) = (Instant::now(), bytes_read());
        let journal = scratch.open(Access::ReadWrite, Durability::Full);
        openings.push(began.elapsed());
        let began = Instant::now();
        let id = session(reading * sessions / READINGS);
        let rows = resume(&*journal, &id);
        loads.push(began.elapsed());
        read_bytes = bytes_read() - read_before;
        assert_eq!(rows, (0, 1));
        journal.close().expect("the disk has room");
    }
    openings.sort_unstable();
    loads.sort_unstable();
    println!(
        "{}",
        json!({
            "measured": "open_and_load",
            "sessions": sessions,
            "open_median_ms": ms(percentile(&openings, 50)),
            "load_median_ms": ms(percentile(&loads, 50)),
            "read_bytes": read_bytes,
            "file_bytes": scratch.bytes(),
        })
    );
}

/// Returns how many snapshots and events were read.
fn resume(journal: &dyn Journal, id: &SessionId) -> (usize, usize) {
    let snapshots = journal.snapshots(id, None).expect("the session is there");
    let from = snapshots.last().map_or(Seq(0), |snapshot| snapshot.seq);
    let tail = journal.load(id, from).expect("the session is there");
    (snapshots.len(), tail.len())
}

/// Fills a file, many appends at a time.
struct Filler {
    journal: Arc<dyn Journal>,
    sink: Arc<Counted>,
    block: Vec<u8>,
    handed_in: u64,
}

impl Filler {
    fn new(scratch: &Scratch) -> Self {
        let journal = scratch.open(Access::ReadWrite, Durability::Normal);
        Self { journal, sink: Arc::new(Counted::default()), block: block(1), handed_in: 0 }
    }

    fn add(&mut self, id: &SessionId, seq: u64, status: SessionStatus, snapshot: Option<Vec<u8>>) {
        let next = append(id, seq, self.block.clone(), 1, self.sink.clone());
        self.journal.append(Append { status, snapshot, ..next });
        self.handed_in += 1;
        self.sink.wait(self.handed_in.saturating_sub(UNDER_WAY));
    }

    fn finish(self) {
        self.sink.wait(self.handed_in);
        self.journal.close().expect("the disk has room");
    }
}
