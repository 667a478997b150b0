//! Space that runs out, and comes back: appends fail with a clear error, nothing acknowledged is
//! lost, and the journal goes on.

use std::process::{Command, Stdio};
use std::sync::Arc;

use mainspring_journal::{Journal, JournalLimits, JournalOptions};
use mainspring_session::{ErrorCode, Failure, Seq};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Place, create, go_on, id, put, refused, texts};

/// An event of about 20 kB.
fn large(seq: u64) -> String {
    format!("{{\"seq\":{seq},\"text\":\"{}\"}}", "x".repeat(20_000))
}

/// Appends until it fails; returns the position that failed, and why.
fn fill(journal: &Arc<dyn Journal>, mut seq: u64) -> (u64, Failure) {
    loop {
        match put(journal, go_on("s", seq, &[&large(seq)])) {
            Ok(()) => seq += 1,
            Err(failure) => return (seq, failure),
        }
    }
}

fn check(journal: &Arc<dyn Journal>, next_seq: u64) {
    assert_eq!(journal.head(&id("s")).unwrap().unwrap().next_seq, Seq(next_seq));
    let wanted: Vec<String> = (0..next_seq).map(large).collect();
    assert!(texts(journal, "s") == wanted, "an acknowledged event is missing or changed");
}

#[test]
fn a_full_database_refuses_appends_and_goes_on_when_it_may_grow() {
    let place = Place::new();
    let small = |bytes| JournalOptions {
        limits: JournalLimits { database_bytes_max: Some(bytes), ..JournalLimits::default() },
        ..JournalOptions::default()
    };
    let journal = place.open_with(small(1 << 20));
    put(&journal, create("s", &[&large(0)])).unwrap();
    let (next_seq, failure) = fill(&journal, 1);
    assert_eq!(failure.code, ErrorCode::JOURNAL_FULL);
    assert!(failure.retryable);
    assert_eq!(
        failure.to_text(),
        format!(
            "journal {} could not be written: database or disk is full\n\
             hint: free some space; no acknowledged event is lost",
            place.file().display()
        )
    );
    assert!(next_seq > 10, "{next_seq} events in 1 MiB");
    assert_eq!(refused(&journal, go_on("s", next_seq, &[&large(0)])), ErrorCode::JOURNAL_FULL);
    check(&journal, next_seq);
    drop(journal);

    let journal = place.open_with(small(4 << 20));
    check(&journal, next_seq);
    put(&journal, go_on("s", next_seq, &[&large(next_seq)])).unwrap();
    check(&journal, next_seq + 1);
}

const CHILD: &str = "MAINSPRING_JOURNAL_TEST_LIMITED";

/// The system refuses every write past 1 MiB of a file, then no longer. The limit holds for a
/// whole process, so the test runs in one of its own, in which the signal that comes with the
/// refusal is ignored.
#[test]
fn the_same_journal_goes_on_when_the_system_lets_it_write_again() {
    if std::env::var_os(CHILD).is_some() {
        return run_into_the_limit();
    }
    let name = "full_disk::the_same_journal_goes_on_when_the_system_lets_it_write_again";
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

fn run_into_the_limit() {
    let place = Place::new();
    let journal = place.open();
    put(&journal, create("s", &[&large(0)])).unwrap();
    let free = getrlimit(Resource::Fsize);
    let mut next_seq = 1;
    for bytes in [1 << 20, 2 << 20, 3 << 20] {
        setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), ..free }).unwrap();
        let (failed_at, failure) = fill(&journal, next_seq);
        assert_eq!(failure.code, ErrorCode::JOURNAL_IO, "{failure:?}");
        assert!(failed_at > next_seq + 10, "{next_seq} to {failed_at} in 1 MiB");
        check(&journal, failed_at);
        assert_eq!(refused(&journal, create("t", &[&large(0)])), ErrorCode::JOURNAL_IO);

        setrlimit(Resource::Fsize, free).unwrap();
        put(&journal, go_on("s", failed_at, &[&large(failed_at)])).unwrap();
        next_seq = failed_at + 1;
        check(&journal, next_seq);
    }
    assert_eq!(journal.head(&id("t")).unwrap(), None);
    journal.close().unwrap();
    check(&place.open(), next_seq);
}
