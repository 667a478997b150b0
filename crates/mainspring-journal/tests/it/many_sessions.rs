//! A file with many sessions opens as fast as one with few: what is read does not grow.

use std::process::{Command, Stdio};

use mainspring_journal::{Append, JournalOptions, SessionStatus, open};

use crate::support::{Place, Results, create, id, ids, put, texts};

const CHILD: &str = "MAINSPRING_JOURNAL_TEST_MANY";

/// What this process has read from files so far, in bytes, as the system counts it.
fn bytes_read() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

/// The system counts for a whole process, so the measured part runs in one of its own.
#[cfg(target_os = "linux")]
#[test]
fn opening_reads_no_more_with_many_sessions() {
    if let Some(url) = std::env::var_os(CHILD) {
        let before = bytes_read();
        let journal = open(url.to_str().unwrap(), JournalOptions::default()).unwrap();
        assert_eq!(texts(&journal, "s7"), ["{}"]);
        put(&journal, create("new", &["{}"])).unwrap();
        let claimed = journal.claim(&["agent".to_owned()], 9).unwrap();
        assert_eq!(ids(&claimed), ["open"]);
        println!("read {}", bytes_read() - before);
        return;
    }
    let few = read_in_child(&filled(20));
    let many = filled(20_000);
    let size = many.file().metadata().unwrap().len();
    let read = read_in_child(&many);
    // Deeper trees and fuller pages: a few pages of 16 KiB more.
    assert!(read < few + 20 * 16_384, "{read} bytes of {size}, {few} with few sessions");
    assert!(size > 10 * read, "{read} bytes of {size}");
}

fn filled(count: usize) -> Place {
    let place = Place::new();
    let journal = place.open();
    let (sink, results) = Results::new();
    for n in 0..count {
        let body = format!("{{\"n\":\"{}\"}}", "x".repeat(if n == 7 { 0 } else { 300 }));
        let text = if n == 7 { "{}" } else { &body };
        let status = SessionStatus::Finished;
        let append = create(&format!("s{n}"), &[text]);
        journal.append(Append { status, sink: sink.clone(), ..append });
    }
    let mut acked = 0;
    while acked < count {
        acked += results.recv().unwrap().len();
    }
    put(&journal, create("open", &["{}"])).unwrap();
    assert!(journal.head(&id("s7")).unwrap().is_some());
    journal.close().unwrap();
    place
}

fn read_in_child(place: &Place) -> u64 {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["many_sessions::opening_reads_no_more_with_many_sessions", "--exact", "--nocapture"])
        .env(CHILD, place.url())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let read = text.lines().find_map(|line| line.strip_prefix("read "));
    read.unwrap_or_else(|| panic!("{text}{errors}")).parse().unwrap()
}
