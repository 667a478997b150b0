//! One append at a time: how long one session waits for it, beside what the disk takes for the
//! same bytes, and the rate of a plain loop of transactions over SQLite.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainspring_journal::{Access, Durability, Journal};
use mainspring_session::SessionId;
use rusqlite::{Connection, params};
use serde_json::json;

use crate::driver::{EVENT_BYTES, block, session};
use crate::support::{Counted, Scratch, append, percentile, us};

/// Measurements of one kind before the next has its turn, so that both meet the same disk.
const TURN: usize = 50;
const SESSIONS: i64 = 1_000;

/// One transaction for each event, as one would write it first: a row for each event with an index
/// on session and position, the write-ahead log, and every commit waiting for the disk.
pub(crate) fn naive(folder: &Path, length: Duration) {
    let scratch = Scratch::new(folder);
    let mut connection = Connection::open(scratch.path()).expect("the folder can be written");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE events (id INTEGER PRIMARY KEY, session TEXT NOT NULL,
             seq INTEGER NOT NULL, at_us INTEGER NOT NULL, body BLOB NOT NULL,
             UNIQUE (session, seq));",
        )
        .expect("the table can be made");
    let body = block(1);
    let began = Instant::now();
    let mut events = 0_i64;
    while began.elapsed() < length {
        let tx = connection.transaction().expect("nobody else has the file");
        let name = format!("session-{}", events % SESSIONS);
        tx.prepare_cached("INSERT INTO events (session, seq, at_us, body) VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut insert| insert.execute(params![name, events / SESSIONS, 0, body]))
            .expect("the disk has room");
        tx.commit().expect("the disk has room");
        events += 1;
    }
    let rate = events as f64 / began.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({
            "measured": "naive_transaction_per_event",
            "durability": "Full",
            "event_bytes": EVENT_BYTES,
            "events": events,
            "events_per_s": rate.round(),
        })
    );
}

/// Appends of one session, one at a time, in turns with plain writes of the same bytes.
pub(crate) fn latency(folder: &Path, length: Duration) {
    let scratch = Scratch::new(folder);
    let journal = scratch.open(Access::ReadWrite, Durability::Full);
    let mut single = Single::new(journal);
    let mut growing = Raw::new(folder, 0);
    let mut in_place = Raw::new(folder, 64 << 20);
    let began = Instant::now();
    while began.elapsed() < length * 3 {
        for _ in 0..TURN {
            single.append();
        }
        for _ in 0..TURN {
            growing.write();
        }
        for _ in 0..TURN {
            in_place.write();
        }
    }
    let appends = sorted(single.times);
    let median_us = us(percentile(&appends, 50));
    let mut line = json!({
        "measured": "one_session_one_event",
        "durability": "Full",
        "event_bytes": EVENT_BYTES,
        "appends": appends.len(),
        "median_us": median_us,
        "p99_us": us(percentile(&appends, 99)),
    });
    for (name, raw) in [("growing", growing), ("in_place", in_place)] {
        let times = sorted(raw.times.clone());
        let raw_us = us(percentile(&times, 50));
        let rate = times.len() as f64 / times.iter().sum::<Duration>().as_secs_f64();
        line[format!("raw_{name}_median_us")] = json!(raw_us);
        line[format!("raw_{name}_p99_us")] = json!(us(percentile(&times, 99)));
        line[format!("raw_{name}_fdatasync_per_s")] = json!(rate.round());
        line[format!("median_per_raw_{name}")] =
            json!((median_us / raw_us * 100.0).round() / 100.0);
    }
    println!("{line}");
    single.journal.close().expect("the disk has room");
}

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort_unstable();
    times
}

struct Single {
    journal: Arc<dyn Journal>,
    session: SessionId,
    sink: Arc<Counted>,
    seq: u64,
    block: Vec<u8>,
    times: Vec<Duration>,
}

impl Single {
    fn new(journal: Arc<dyn Journal>) -> Self {
        let (session, sink) = (session(0), Arc::new(Counted::default()));
        Self { journal, session, sink, seq: 0, block: block(1), times: Vec::new() }
    }

    fn append(&mut self) {
        let next = append(&self.session, self.seq, self.block.clone(), 1, self.sink.clone());
        let began = Instant::now();
        self.journal.append(next);
        self.seq += 1;
        self.sink.wait(self.seq);
        self.times.push(began.elapsed());
    }
}

/// Writes an event's bytes and waits for the disk, one after the other: at the end of a file that
/// grows, or into one whose room is there already, as that of a write-ahead log in use is.
struct Raw {
    file: File,
    path: PathBuf,
    block: Vec<u8>,
    offset: u64,
    times: Vec<Duration>,
}

impl Raw {
    fn new(folder: &Path, room_bytes: usize) -> Self {
        let path = folder.join(format!("journal-bench-{}-{room_bytes}.raw", std::process::id()));
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = opened.expect("the folder can be written");
        file.write_all_at(&vec![0; room_bytes], 0).expect("the disk has room");
        file.sync_all().expect("the disk has room");
        Self { file, path, block: block(1), offset: 0, times: Vec::new() }
    }

    fn write(&mut self) {
        let began = Instant::now();
        self.file.write_all_at(&self.block, self.offset).expect("the disk has room");
        self.file.sync_data().expect("the disk has room");
        self.times.push(began.elapsed());
        self.offset += self.block.len() as u64;
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A file that is left over harms nobody.
        let _ = std::fs::remove_file(&self.path);
    }
}
