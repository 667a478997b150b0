//! Measures durable appends to PostgreSQL: 1,000 sessions, each with one append on its way, answered
//! by the next. Starts a server of its own that waits for the disk at every commit. Prints one JSON
//! object a run; the CPU time is this process's, the server's comes on top. Arguments: seconds a run
//! (default 5), runs of each kind (default 3), folder for the server's data (default the system's
//! temporary one; a folder in memory measures no disk).

mod driver;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mainspring_journal::{Durability, JournalOptions, SessionQuery, open};

use driver::{EVENT_BYTES, Measured, SESSIONS};

fn main() {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(5, |text| text.parse().expect("seconds are a number"));
    let runs: u32 = args.next().map_or(3, |text| text.parse().expect("runs are a number"));
    let folder = args.next();
    for block_events in [1, 4] {
        for _ in 0..runs {
            // A new one each time, so that no run pays for what another left behind.
            let server = Server::start(folder.as_deref());
            run(&server.url, block_events, Duration::from_secs(seconds));
        }
    }
}

fn run(url: &str, block_events: u32, length: Duration) {
    let options = JournalOptions { durability: Durability::Full, ..JournalOptions::default() };
    let journal = open(url, options).expect("the server takes connections");
    let measured = driver::measure(&journal, block_events, length);
    let all = SessionQuery { limit: SESSIONS as u32, ..SessionQuery::default() };
    let heads = journal.sessions(&all).expect("the server can be reached");
    let stored: u64 = heads.iter().map(|head| head.next_seq.0).sum();
    assert_eq!(stored as f64, measured.events, "what was acknowledged is stored");
    journal.close().expect("the server can be reached");
    let Measured { wall_us, cpu_us, events, commits } = measured;
    println!(
        "{{\"store\": \"postgresql\", \"block_events\": {block_events}, \
         \"event_bytes\": {EVENT_BYTES}, \"sessions\": {SESSIONS}, \"events\": {events}, \
         \"events_per_s\": {:.0}, \"client_cpu_us_per_event\": {:.2}, \
         \"events_per_commit\": {:.0}, \"commit_ms\": {:.2}}}",
        events / wall_us * 1e6,
        cpu_us / events,
        events / commits,
        wall_us / commits / 1e3,
    );
}

/// A server that ends when its input closes.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(folder: Option<&str>) -> Self {
        let mut command = Command::new("python3");
        command
            .args(["-m", "tools.postgres_server", "--durable"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(folder) = folder {
            command.env("TMPDIR", folder);
        }
        let mut child = command.spawn().expect("python3 is installed");
        let output = child.stdout.as_mut().expect("it is a pipe");
        let mut url = String::new();
        BufReader::new(output).read_line(&mut url).expect("the server says where it is");
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("it ends with its input");
    }
}
