//! Measures durable appends: 1,000 sessions, each with one append on its way, answered by the
//! next. Prints one JSON object a run. Arguments: seconds a run (default 5), folder (default the
//! current one; a folder in memory measures no disk).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use mainspring_journal::{
    AckSink, Acked, Append, AppendMode, Durability, Journal, JournalOptions, SessionStatus, open,
};
use mainspring_session::{Epoch, Seq, SessionId};

const SESSIONS: usize = 1_000;
const EVENT_BYTES: usize = 200;

fn main() {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(5, |text| text.parse().expect("seconds are a number"));
    let folder = args.next().unwrap_or_else(|| ".".to_owned());
    for durability in [Durability::Full, Durability::Normal] {
        for block_events in [1, 4] {
            run(Path::new(&folder), durability, block_events, Duration::from_secs(seconds));
        }
    }
}

fn run(folder: &Path, durability: Durability, block_events: u32, length: Duration) {
    let file = folder.join(format!("journal-bench-{}.db", std::process::id()));
    let path = file.to_str().expect("the folder's name is UTF-8");
    let options = JournalOptions { durability, ..JournalOptions::default() };
    let journal = open(path, options).expect("the folder can be written");
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
    let bytes = std::fs::metadata(&file).expect("the journal exists").len() as f64;
    println!(
        "{{\"durability\": \"{durability:?}\", \"block_events\": {block_events}, \
         \"event_bytes\": {EVENT_BYTES}, \"sessions\": {SESSIONS}, \"events\": {events}, \
         \"events_per_s\": {:.0}, \"cpu_us_per_event\": {:.2}, \"events_per_commit\": {:.0}, \
         \"commit_ms\": {:.2}, \"file_bytes_per_event\": {:.0}}}",
        events / wall_us * 1e6,
        cpu / events,
        events / stats.commits as f64,
        wall_us / stats.commits as f64 / 1e3,
        bytes / events,
    );
    for suffix in ["", ".lock"] {
        std::fs::remove_file(format!("{path}{suffix}")).expect("the journal can be removed");
    }
}

fn session(number: usize) -> SessionId {
    SessionId::new(&format!("session-{number}")).expect("the id has allowed characters")
}

fn block(events: u32) -> Vec<u8> {
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
