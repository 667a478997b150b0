//! Durable events a second with 1,000 sessions, each with one append on its way, answered by the
//! next.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use mainspring_journal::{Access, AckSink, Acked, Append, Durability, Journal};
use mainspring_session::SessionId;
use serde_json::json;

use crate::support::{EVENT_BYTES, Scratch, append, block, cpu_us, session};

const SESSIONS: usize = 1_000;

pub(crate) fn run(folder: &Path, durability: Durability, block_events: u32, length: Duration) {
    let scratch = Scratch::new(folder);
    let journal = scratch.open(Access::ReadWrite, durability);
    let driver = Arc::new_cyclic(|driver| Driver {
        this: Weak::clone(driver),
        journal: Arc::downgrade(&journal),
        block: block(block_events),
        block_events,
        sessions: (0..SESSIONS).map(session).collect(),
        stop: AtomicBool::new(false),
        ended: Mutex::new(0),
        all_ended: Condvar::new(),
    });
    let (began, cpu_began) = (Instant::now(), cpu_us());
    for number in 0..SESSIONS {
        driver.append(number, 0);
    }
    std::thread::sleep(length);
    driver.stop.store(true, Ordering::Relaxed);
    let ended = driver.ended.lock().expect("no sink panics");
    drop(driver.all_ended.wait_while(ended, |ended| *ended < SESSIONS));
    let (wall_us, cpu) = (began.elapsed().as_micros() as f64, cpu_us() - cpu_began);
    let stats = journal.stats();
    let events = stats.events as f64;
    journal.close().expect("the disk has room");
    println!(
        "{}",
        json!({
            "measured": "many_sessions",
            "durability": format!("{durability:?}"),
            "block_events": block_events,
            "event_bytes": EVENT_BYTES,
            "sessions": SESSIONS,
            "events": stats.events,
            "events_per_s": (events / wall_us * 1e6).round(),
            "cpu_us_per_event": (cpu / events * 100.0).round() / 100.0,
            "events_per_commit": (events / stats.commits as f64).round(),
            "commit_ms": (wall_us / stats.commits as f64 / 10.0).round() / 100.0,
            "file_bytes_per_event": (scratch.bytes() as f64 / events).round(),
        })
    );
}

struct Driver {
    this: Weak<Driver>,
    journal: Weak<dyn Journal>,
    block: Vec<u8>,
    block_events: u32,
    sessions: Vec<SessionId>,
    stop: AtomicBool,
    ended: Mutex<usize>,
    all_ended: Condvar,
}

impl Driver {
    fn append(&self, number: usize, seq: u64) {
        let sink = self.this.upgrade().expect("the caller holds it");
        let events = self.block.clone();
        let next = append(&self.sessions[number], seq, events, self.block_events, sink);
        let token = (number as u64) << 40 | (seq + u64::from(self.block_events));
        self.journal.upgrade().expect("the run holds it").append(Append { token, ..next });
    }
}

impl AckSink for Driver {
    fn acked(&self, acks: Vec<Acked>) {
        for ack in acks {
            ack.result.expect("the disk has room");
            if self.stop.load(Ordering::Relaxed) {
                *self.ended.lock().expect("no sink panics") += 1;
                self.all_ended.notify_all();
            } else {
                self.append((ack.token >> 40) as usize, ack.token & 0xff_ffff_ffff);
            }
        }
    }
}
