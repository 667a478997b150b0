//! Measures a journal on a disk. Prints one JSON object a measurement; the units are in the names.
//!
//! Arguments: seconds a run (default 5), folder (default the current one; a folder in memory
//! measures no disk), and `--million` to open a file with 1,000,000 sessions too, which takes a
//! while to fill. `many.rs` is the rate of 1,000 sessions, `single.rs` the latency of one beside
//! what the disk takes, `resume.rs` what it costs to go on with a long session, and to open a file
//! with many.

#[path = "../driver/mod.rs"]
mod driver;
mod many;
mod resume;
mod single;
mod support;

use std::path::PathBuf;
use std::time::Duration;

use mainspring_journal::Durability;

fn main() {
    let (mut million, mut plain) = (false, Vec::new());
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--million" => million = true,
            _ => plain.push(arg),
        }
    }
    let seconds = plain.first().map_or(5.0, |text| text.parse().expect("seconds are a number"));
    let length = Duration::from_secs_f64(seconds);
    let folder = PathBuf::from(plain.get(1).map_or(".", String::as_str));
    for durability in [Durability::Full, Durability::Normal] {
        for block_events in [1, 4] {
            many::run(&folder, durability, block_events, length);
        }
    }
    single::naive(&folder, length);
    single::latency(&folder, length);
    for events in [10, 100, 1_000, 10_000, 100_000] {
        resume::session_of(&folder, events);
    }
    if million {
        resume::store_of(&folder, 1_000_000);
    }
}
