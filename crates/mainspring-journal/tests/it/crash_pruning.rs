//! A process that is killed for real while it prunes: each session is whole or gone, and so is
//! what it alone had.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};

use mainspring_journal::{
    AckSink, Acked, Append, Journal, JournalLimits, JournalOptions, SessionStatus, open,
};
use mainspring_session::{BlobHash, Epoch, Seq};

use crate::support::{Place, Results, all_ended, create, fork, go_on, id, prune, texts};

const CHILD: &str = "MAINSPRING_JOURNAL_TEST_PRUNING";
const SESSIONS: u64 = 300;
const FORK: [&str; 3] = ["{\"n\":0}", "[1]", "[\"f\"]"];

/// One session in a transaction, so that a kill always comes between or within two of them.
fn one_at_a_time() -> JournalOptions {
    let limits = JournalLimits { prune_sessions_max: 1, ..JournalLimits::default() };
    JournalOptions { limits, ..JournalOptions::default() }
}

#[test]
fn a_pruning_that_is_killed_leaves_every_session_whole_or_gone() {
    if let Some(url) = std::env::var_os(CHILD) {
        prune_until_killed(url.to_str().unwrap());
    }
    let mut interrupted = 0;
    // Early and late: about one session goes for each line, the newest first.
    for lines in (0..60).map(|round| 1 + round * 37 % 250) {
        let place = Place::new();
        fill(&place);
        let mut child = spawn(&place);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        for _ in 0..lines {
            read_ack(&mut output);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let left = check(&place);
        interrupted += u32::from(0 < left && left < SESSIONS);
        finish_the_work(&place);
        if interrupted == 8 {
            return;
        }
    }
    panic!("only {interrupted} kills came in the middle of a pruning");
}

fn old(n: u64) -> String {
    format!("old{n}")
}

/// Every session has events in two rows and two blobs, one of them shared with two others; every
/// tenth has a fork that stays open.
fn fill(place: &Place) {
    let journal = place.open();
    let (sink, results) = Results::new();
    let mut appends = Vec::new();
    for n in 0..SESSIONS {
        let blobs = bodies(n).map(|body| (BlobHash::of(&body), body.into()));
        let start = create(&old(n), &["{\"n\":0}"]);
        appends.push(Append { blobs: blobs.into(), snapshot: Some(vec![1]), ..start });
        let status = SessionStatus::Finished;
        appends.push(Append { status, ..go_on(&old(n), 1, &["[1]", "[2]"]) });
        if n % 10 == 0 {
            appends.push(fork(&format!("fork{n}"), &old(n), 2, &["[\"f\"]"]));
        }
    }
    let mut waiting = appends.len();
    for append in appends {
        journal.append(Append { sink: sink.clone(), ..append });
    }
    while waiting > 0 {
        let acks = results.recv().unwrap();
        assert!(acks.iter().all(|ack| ack.result.is_ok()), "{acks:?}");
        waiting -= acks.len();
    }
    journal.close().unwrap();
}

fn bodies(n: u64) -> [Vec<u8>; 2] {
    [format!("own {n}").into_bytes(), format!("shared {}", n / 3).into_bytes()]
}

fn spawn(place: &Place) -> Child {
    let name = "crash_pruning::a_pruning_that_is_killed_leaves_every_session_whole_or_gone";
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, place.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads on to the next `acked`; skips what the test runner prints.
fn read_ack(output: &mut impl BufRead) {
    let mut line = String::new();
    while line.trim() != "acked" {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child has ended");
    }
}

/// Holds the file against what must be there; returns how many of the old sessions are.
fn check(place: &Place) -> u64 {
    let journal = place.open_with(one_at_a_time());
    let mut left = 0;
    for n in 0..SESSIONS {
        let there = journal.head(&id(&old(n))).unwrap().is_some();
        left += u64::from(there);
        if there {
            assert_eq!(texts(&journal, &old(n)), ["{\"n\":0}", "[1]", "[2]"]);
            assert_eq!(journal.snapshots(&id(&old(n)), None).unwrap().len(), 1);
        } else {
            assert!(journal.load(&id(&old(n)), Seq(0)).is_err());
        }
        if n % 10 == 0 {
            assert_eq!(texts(&journal, &format!("fork{n}")), FORK);
        }
        if there || n % 10 == 0 {
            for body in bodies(n) {
                assert_eq!(journal.blob(&BlobHash::of(&body)).unwrap(), Some(body));
            }
        }
    }
    journal.close().unwrap();
    check_file(place);
    left
}

/// Nothing in the file belongs to nobody.
fn check_file(place: &Place) {
    let connection = rusqlite::Connection::open(place.file()).unwrap();
    let sound: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    for strays in [
        "log WHERE session_key NOT IN (SELECT key FROM sessions)",
        "snapshots WHERE session_key NOT IN (SELECT key FROM sessions)",
        "blob_refs WHERE session_key NOT IN (SELECT key FROM sessions)",
        "blob_refs WHERE blob_key NOT IN (SELECT key FROM blobs)",
        "blobs WHERE key NOT IN (SELECT blob_key FROM blob_refs)",
    ] {
        let sql = format!("SELECT count(*) FROM {strays}");
        let count: i64 = connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(count, 0, "{strays}");
    }
}

/// The next process can prune the rest, and the forks after that.
fn finish_the_work(place: &Place) {
    let journal = place.open();
    prune(&journal, &all_ended());
    assert!((0..SESSIONS).all(|n| journal.head(&id(&old(n))).unwrap().is_none()));
    for n in (0..SESSIONS).step_by(10) {
        assert_eq!(texts(&journal, &format!("fork{n}")), FORK);
        let (epoch, status) = (Epoch(2), SessionStatus::Finished);
        journal.append(Append { epoch, status, ..go_on(&format!("fork{n}"), 3, &["[\"g\"]"]) });
    }
    let head = journal.head(&id("busy")).unwrap().unwrap();
    let status = SessionStatus::Finished;
    let last = Append { epoch: head.epoch, status, ..go_on("busy", head.next_seq.0, &["{}"]) };
    crate::support::put(&journal, last).unwrap();
    prune(&journal, &all_ended());
    assert!(journal.sessions(&Default::default()).unwrap().is_empty());
    journal.close().unwrap();
    check_file(place);
    let connection = rusqlite::Connection::open(place.file()).unwrap();
    let rows = "SELECT (SELECT count(*) FROM log) + (SELECT count(*) FROM sessions) \
                + (SELECT count(*) FROM blobs) + (SELECT count(*) FROM snapshots)";
    let left: i64 = connection.query_row(rows, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

/// The child: prunes, and appends beside it as fast as it can.
fn prune_until_killed(url: &str) -> ! {
    let journal = open(url, one_at_a_time()).unwrap();
    let sink = Arc::new_cyclic(|sink: &Weak<Busy>| Busy {
        sink: sink.clone(),
        journal: Arc::downgrade(&journal),
    });
    journal.append(Append { sink, ..create("busy", &["{}"]) });
    journal.prune(&all_ended()).unwrap();
    loop {
        std::thread::park();
    }
}

struct Busy {
    sink: Weak<Busy>,
    journal: Weak<dyn Journal>,
}

impl AckSink for Busy {
    fn acked(&self, acks: Vec<Acked>) {
        let seq = acks[0].token + 1;
        assert!(acks[0].result.is_ok(), "{acks:?}");
        let mut output = std::io::stdout().lock();
        output.write_all(b"acked\n").and_then(|()| output.flush()).unwrap();
        let sink = self.sink.upgrade().unwrap();
        let journal = self.journal.upgrade().unwrap();
        journal.append(Append { token: seq, sink, ..go_on("busy", seq, &["{}"]) });
    }
}
