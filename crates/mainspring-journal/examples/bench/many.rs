//! Durable events a second with 1,000 sessions, each with one append on its way, answered by the
//! next.

use std::path::Path;
use std::time::Duration;

use mainspring_journal::{Access, Durability};
use serde_json::json;

use crate::driver::{EVENT_BYTES, Measured, SESSIONS, measure};
use crate::support::Scratch;

pub(crate) fn run(folder: &Path, durability: Durability, block_events: u32, length: Duration) {
    let scratch = Scratch::new(folder);
    let journal = scratch.open(Access::ReadWrite, durability);
    let Measured { wall_us, cpu_us, events, commits } = measure(&journal, block_events, length);
    journal.close().expect("the disk has room");
    println!(
        "{}",
        json!({
            "measured": "many_sessions",
            "durability": format!("{durability:?}"),
            "block_events": block_events,
            "event_bytes": EVENT_BYTES,
            "sessions": SESSIONS,
            "events": events,
            "events_per_s": (events / wall_us * 1e6).round(),
            "cpu_us_per_event": (cpu_us / events * 100.0).round() / 100.0,
            "events_per_commit": (events / commits).round(),
            "commit_ms": (wall_us / commits / 10.0).round() / 100.0,
            "file_bytes_per_event": (scratch.bytes() as f64 / events).round(),
        })
    );
}
