//! Keeps sessions appending, each with one append on its way that the next one answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use mainspring_journal::{AckSink, Acked, Append, AppendMode, Journal, SessionStatus};
use mainspring_session::{Epoch, Seq, SessionId};

pub const SESSIONS: usize = 1_000;
pub const EVENT_BYTES: usize = 200;

/// What a run came to.
pub struct Measured {
    pub wall_us: f64,
    /// Of this process.
    pub cpu_us: f64,
    pub events: f64,
    pub commits: f64,
}

/// Appends for so long and waits for the last answers.
pub fn measure(journal: &Arc<dyn Journal>, block_events: u32, length: Duration) -> Measured {
    let driver = Arc::new_cyclic(|driver| Driver {
        this: Weak::clone(driver),
        journal: Arc::downgrade(journal),
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
    let stats = journal.stats();
    Measured {
        wall_us: began.elapsed().as_micros() as f64,
        cpu_us: cpu_us() - cpu_began,
        events: stats.events as f64,
        commits: stats.commits as f64,
    }
}

pub fn session(number: usize) -> SessionId {
    SessionId::new(&format!("session-{number}")).expect("the id has allowed characters")
}

/// Events of [`EVENT_BYTES`] each, as one append.
pub fn block(events: u32) -> Vec<u8> {
    let frame = "{\"kind\":\"bench\",\"text\":\"\"}".len();
    let event = format!("{{\"kind\":\"bench\",\"text\":\"{}\"}}", "x".repeat(EVENT_BYTES - frame));
    vec![event; events as usize].join("\n").into_bytes()
}

/// User and system time of this process, from `/proc/self/stat`, which counts in 10 ms.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("this is Linux");
    let after_name = stat.rsplit(')').next().expect("the name ends with a parenthesis");
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().expect("times are numbers") * 10_000.0).sum()
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
        let mode = match seq {
            0 => AppendMode::Create { agent: "bench".to_owned(), origin: None },
            _ => AppendMode::Continue,
        };
        let append = Append {
            session: self.sessions[number].clone(),
            epoch: Epoch(1),
            expected_seq: Seq(seq),
            events: self.block.clone(),
            count: self.block_events,
            at_us: 1_700_000_000_000_000 + seq as i64,
            mode,
            status: SessionStatus::Open,
            blobs: Vec::new(),
            snapshot: None,
            charges: Vec::new(),
            release: false,
            token: (number as u64) << 40 | (seq + u64::from(self.block_events)),
            sink: self.this.upgrade().expect("the caller holds it"),
        };
        self.journal.upgrade().expect("the run holds it").append(append);
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
