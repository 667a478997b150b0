//! What the measurements share: files, appends, waiting, and the system's own counts.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use mainspring_journal::{
    Access, AckSink, Acked, Append, AppendMode, Durability, Journal, JournalOptions, SessionStatus,
    open,
};
use mainspring_session::{Epoch, Seq, SessionId};

/// A journal file that is removed at the end.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A name that no other run uses.
    pub(crate) fn new(folder: &Path) -> Self {
        let path = folder.join(format!("journal-bench-{}.db", std::process::id()));
        let scratch = Self { path };
        scratch.remove();
        scratch
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(&self, access: Access, durability: Durability) -> Arc<dyn Journal> {
        let path = self.path.to_str().expect("the folder's name is UTF-8");
        let options = JournalOptions { access, durability, ..JournalOptions::default() };
        open(path, options).expect("the folder can be written")
    }

    pub(crate) fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).expect("the file exists").len()
    }

    fn remove(&self) {
        for suffix in ["", ".lock", "-wal", "-shm"] {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            // What was never made cannot be removed.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The next events of a session; the first ones if the position is 0.
pub(crate) fn append(
    session: &SessionId,
    seq: u64,
    events: Vec<u8>,
    count: u32,
    sink: Arc<dyn AckSink>,
) -> Append {
    let mode = match seq {
        0 => AppendMode::Create { agent: "bench".to_owned(), origin: None },
        _ => AppendMode::Continue,
    };
    Append {
        session: session.clone(),
        epoch: Epoch(1),
        expected_seq: Seq(seq),
        events,
        count,
        at_us: 1_700_000_000_000_000 + seq as i64,
        mode,
        status: SessionStatus::Open,
        blobs: Vec::new(),
        snapshot: None,
        charges: Vec::new(),
        release: false,
        token: 0,
        sink,
    }
}

/// Counts results, and lets a thread wait for them.
#[derive(Default)]
pub(crate) struct Counted {
    done: Mutex<u64>,
    more: Condvar,
}

impl Counted {
    /// Waits until so many appends are done.
    pub(crate) fn wait(&self, count: u64) {
        let done = self.done.lock().expect("no sink panics");
        drop(self.more.wait_while(done, |done| *done < count));
    }
}

impl AckSink for Counted {
    fn acked(&self, acks: Vec<Acked>) {
        for ack in &acks {
            ack.result.as_ref().expect("the disk has room");
        }
        *self.done.lock().expect("no sink panics") += acks.len() as u64;
        self.more.notify_all();
    }
}

/// The time below which so many of a hundred measurements lie.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// A time in microseconds, with one digit behind the point.
pub(crate) fn us(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 1e1
}

/// A time in milliseconds, with three digits behind the point.
pub(crate) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// What this process has read from files so far, from the page cache or the disk.
pub(crate) fn bytes_read() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").expect("this is Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|number| number.parse().ok()).expect("the system counts what is read")
}
