//! Real processes, killed for real while they append as fast as they can: whatever was
//! acknowledged is there, whole and in order, and the file is sound.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};

use mainspring_journal::{AckSink, Acked, Append, AppendMode, Journal, JournalOptions, open};
use mainspring_session::{BlobHash, Epoch, ErrorCode, Seq, SessionId};

use crate::support::{Place, create, create_mode, id, open_failure};

const CHILD: &str = "MAINSPRING_JOURNAL_TEST_FILE";
const SESSIONS: u64 = 50;

#[test]
fn whatever_was_acknowledged_survives_kill_9() {
    if let Some(file) = std::env::var_os(CHILD) {
        append_until_killed(Path::new(&file));
    }
    let place = Place::new();
    let mut acknowledged = HashMap::new();
    // Killed early, in the first commits, and late, after the log was folded in many times.
    for lines in [1, 7, 60, 300, 2_000, 20_000, 3, 900] {
        let mut child = spawn(&place);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        for _ in 0..lines {
            read_ack(&mut output, &mut acknowledged);
        }
        let failure = open_failure(&place.url(), JournalOptions::default());
        assert_eq!(failure.code, ErrorCode::JOURNAL_LOCKED);
        assert!(failure.message.ends_with(&format!("process {}", child.id())), "{failure:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts, too.
        while read_ack(&mut output, &mut acknowledged) {}
        check(&place, &acknowledged);
    }
}

fn spawn(place: &Place) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["crash::whatever_was_acknowledged_survives_kill_9", "--exact", "--nocapture"])
        .env(CHILD, place.file())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads `acked SESSION COUNT`; skips what the test runner prints. False at the end; a line cut
/// off by the kill says nothing.
fn read_ack(output: &mut impl BufRead, acknowledged: &mut HashMap<String, u64>) -> bool {
    let mut line = String::new();
    loop {
        line.clear();
        if output.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            return false;
        }
        if let ["acked", session, count] = line.split_whitespace().collect::<Vec<_>>()[..] {
            acknowledged.insert(session.to_owned(), count.parse().unwrap());
            return true;
        }
    }
}

fn check(place: &Place, acknowledged: &HashMap<String, u64>) {
    let journal = place.open();
    for (session, count) in acknowledged {
        let records = journal.load(&id(session), Seq(0)).unwrap();
        let stored = records.len() as u64;
        assert!(stored >= *count, "session {session} has {stored} of {count} events");
        let head = journal.head(&id(session)).unwrap().unwrap();
        assert_eq!(head.next_seq, Seq(stored));
        for (seq, record) in records.iter().enumerate() {
            assert_eq!(record.seq, Seq(seq as u64));
            assert_eq!(record.json.get(), event(&id(session), seq as u64));
        }
        if stored > 0 {
            let body = blob(&id(session), stored - 1);
            assert_eq!(journal.blob(&BlobHash::of(&body)).unwrap(), Some(body));
        }
    }
    drop(journal);
    let connection = rusqlite::Connection::open(place.file()).unwrap();
    let sound: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
}

fn event(session: &SessionId, seq: u64) -> String {
    // From a few bytes to more than a page.
    let length = (seq as usize * 37) % 211 * if seq.is_multiple_of(50) { 100 } else { 1 };
    format!("{{\"session\":\"{session}\",\"seq\":{seq},\"text\":\"{}\"}}", "y".repeat(length))
}

fn blob(session: &SessionId, seq: u64) -> Vec<u8> {
    // A few bodies that come back again and again.
    format!("{session} {}", seq % 8).into_bytes()
}

/// The child: takes every session over, and answers each result with the next append.
fn append_until_killed(file: &Path) -> ! {
    let journal = open(file.to_str().unwrap(), JournalOptions::default()).unwrap();
    let sink = Arc::new_cyclic(|sink: &Weak<Appender>| Appender {
        sink: sink.clone(),
        journal: Arc::downgrade(&journal),
    });
    for n in 0..SESSIONS {
        let session = id(&format!("s{n}"));
        let head = journal.head(&session).unwrap();
        let append = match head {
            None => sink.next(session, Epoch(1), 0, create_mode()),
            Some(head) => {
                let epoch = Epoch(head.epoch.0 + 1);
                sink.next(session, epoch, head.next_seq.0, AppendMode::TakeOver)
            }
        };
        journal.append(append);
    }
    loop {
        std::thread::park();
    }
}

struct Appender {
    sink: Weak<Appender>,
    journal: Weak<dyn Journal>,
}

impl Appender {
    /// The next one to three events of a session. The token carries all there is to know.
    fn next(&self, session: SessionId, epoch: Epoch, seq: u64, mode: AppendMode) -> Append {
        let count = 1 + seq % 3;
        let lines: Vec<String> = (seq..seq + count).map(|seq| event(&session, seq)).collect();
        let blobs = (seq..seq + count).map(|seq| blob(&session, seq));
        let number: u64 = session.as_str()[1..].parse().unwrap();
        Append {
            epoch,
            expected_seq: Seq(seq),
            events: lines.join("\n").into_bytes(),
            count: count as u32,
            mode,
            blobs: blobs.map(|body| (BlobHash::of(&body), body.into())).collect(),
            token: number << 48 | epoch.0 << 40 | (seq + count),
            sink: self.sink.upgrade().unwrap(),
            ..create(session.as_str(), &["{}"])
        }
    }
}

impl AckSink for Appender {
    fn acked(&self, acks: Vec<Acked>) {
        let mut said = String::new();
        for ack in &acks {
            if let Err(error) = &ack.result {
                panic!("an append was refused: {error}");
            }
            said += &format!("acked s{} {}\n", ack.token >> 48, ack.token & 0xff_ffff_ffff);
        }
        // Said in whole before anything else is done: a result that was not said binds nobody.
        let mut output = std::io::stdout().lock();
        output.write_all(said.as_bytes()).and_then(|()| output.flush()).unwrap();
        let journal = self.journal.upgrade().unwrap();
        for ack in acks {
            let session = id(&format!("s{}", ack.token >> 48));
            let epoch = Epoch(ack.token >> 40 & 0xff);
            let seq = ack.token & 0xff_ffff_ffff;
            journal.append(self.next(session, epoch, seq, AppendMode::Continue));
        }
    }
}
