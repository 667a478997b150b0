//! Space that runs out, and comes back: appends fail with a clear error, nothing acknowledged is
//! lost, and the journal goes on.

use std::process::{Command, Stdio};
use std::sync::Arc;

use mainspring_journal::{Append, Journal, JournalLimits, JournalOptions, SessionStatus};
use mainspring_session::{ErrorCode, Failure, Seq};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Place, all_ended, create, go_on, id, put, refused, texts};

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
    in_child("the_same_journal_goes_on_when_the_system_lets_it_write_again");
}

/// The same limit while the file is written anew: nothing is lost, and it works once there is
/// room.
#[test]
fn a_compaction_without_room_leaves_everything_usable() {
    if std::env::var_os(CHILD).is_some() {
        return compact_into_the_limit();
    }
    in_child("a_compaction_without_room_leaves_everything_usable");
}

fn in_child(test: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
    run_in(command, test, "limited");
}

/// Runs one test of this file through a command that starts what it is given.
fn run_in(mut command: Command, test: &str, means: &str) {
    let output = command
        .arg(std::env::current_exe().unwrap())
        .args([&format!("full_disk::{test}"), "--exact", "--nocapture"])
        .env(CHILD, means)
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
        assert!(failed_at > next_seq + 8, "{next_seq} to {failed_at} in 1 MiB");
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

fn compact_into_the_limit() {
    let free = getrlimit(Resource::Fsize);
    let limit = |_: &Place, full| {
        let limited = Rlimit { current: Some(2 << 20), ..free };
        setrlimit(Resource::Fsize, if full { limited } else { free }).unwrap();
    };
    compact_without_room(150, &ErrorCode::JOURNAL_IO, limit);
}

/// Compacts three times in vain and once in earnest, with appends in between.
fn compact_without_room(events: u64, code: &ErrorCode, set_full: impl Fn(&Place, bool)) {
    let place = Place::new();
    let journal = place.open();
    put(&journal, create("s", &[&large(0)])).unwrap();
    for seq in 1..events {
        put(&journal, go_on("s", seq, &[&large(seq)])).unwrap();
        let status = SessionStatus::Finished;
        put(&journal, Append { status, ..create(&format!("old{seq}"), &[&large(0)]) }).unwrap();
    }
    assert_eq!(journal.prune(&all_ended()).unwrap().sessions, events - 1);
    // Leaves an empty write-ahead log behind.
    journal.close().unwrap();
    let journal = place.open();
    set_full(&place, true);
    for round in 0..3 {
        let failure = journal.compact().unwrap_err().failure();
        assert_eq!(failure.code, *code, "{failure:?}");
        assert!(failure.message.contains("could not be compacted"), "{failure:?}");
        assert!(failure.retryable);
        let next_seq = events + round;
        put(&journal, go_on("s", next_seq, &[&large(next_seq)])).unwrap();
        check(&journal, next_seq + 1);
    }
    set_full(&place, false);
    let report = journal.compact().unwrap();
    assert!(report.bytes_after * 3 < report.bytes_before * 2, "{report:?}");
    check(&journal, events + 3);
    drop(journal);
    check(&place.open(), events + 3);
}

/// A disk that is really full: a small file system of the test's own, where the system lets it
/// have one, and otherwise again the limit on file sizes.
#[cfg(target_os = "linux")]
#[test]
fn a_compaction_on_a_full_disk_leaves_everything_usable() {
    let test = "a_compaction_on_a_full_disk_leaves_everything_usable";
    match std::env::var(CHILD).as_deref() {
        Ok("mounted") => compact_on_a_full_disk(),
        Ok(_) => compact_into_the_limit(),
        Err(_) if !may_mount() => in_child(test),
        Err(_) => {
            let folder = tempfile::tempdir().unwrap();
            let mut command = Command::new("unshare");
            command
                .args([
                    "-rm",
                    "sh",
                    "-c",
                    "mount -t tmpfs -o size=160m none . && exec \"$0\" \"$@\"",
                ])
                .current_dir(folder.path())
                .env("TMPDIR", folder.path())
                .env("SQLITE_TMPDIR", folder.path());
            run_in(command, test, "mounted");
        }
    }
}

fn may_mount() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["-rm", "mount", "-t", "tmpfs", "none", "/tmp"]);
    probe.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
}

fn compact_on_a_full_disk() {
    let fill = |place: &Place, full: bool| {
        let path = place.folder().join("fill");
        if !full {
            return std::fs::remove_file(path).unwrap();
        }
        // Takes what there is, and leaves room for a few appends.
        let error = std::fs::write(&path, vec![0; 160 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - (2 << 20)).unwrap();
    };
    // More than is kept in memory before it goes to a file.
    compact_without_room(1_000, &ErrorCode::JOURNAL_FULL, fill);
}
