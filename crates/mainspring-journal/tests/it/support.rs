//! Builds appends, waits for their results, and opens stores in folders of their own.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use mainspring_journal::{
    AckSink, Acked, Append, AppendMode, Charge, Journal, JournalOptions, PruneQuery, PruneReport,
    SessionHead, SessionStatus, open,
};
use mainspring_session::{Amount, Epoch, ErrorCode, Failure, Seq, SessionId};
use tempfile::TempDir;

/// Passes results on to a test.
pub struct Results {
    sender: Mutex<Sender<Vec<Acked>>>,
}

impl Results {
    pub fn new() -> (Arc<Self>, Receiver<Vec<Acked>>) {
        let (sender, receiver) = channel();
        (Arc::new(Self { sender: Mutex::new(sender) }), receiver)
    }
}

impl AckSink for Results {
    fn acked(&self, acks: Vec<Acked>) {
        // A test that has seen enough has dropped the other end.
        let _ = self.sender.lock().unwrap().send(acks);
    }
}

/// A sink that hears nothing.
pub struct Deaf;

impl AckSink for Deaf {
    fn acked(&self, _: Vec<Acked>) {}
}

pub fn id(text: &str) -> SessionId {
    SessionId::new(text).unwrap()
}

pub fn create_mode() -> AppendMode {
    AppendMode::Create { agent: "agent".to_owned(), origin: None }
}

/// A creation with these events.
pub fn create(session: &str, events: &[&str]) -> Append {
    Append {
        session: id(session),
        epoch: Epoch(1),
        expected_seq: Seq(0),
        events: events.join("\n").into_bytes(),
        count: events.len() as u32,
        at_us: 1_000,
        mode: create_mode(),
        status: SessionStatus::Open,
        blobs: Vec::new(),
        snapshot: None,
        charges: Vec::new(),
        release: false,
        token: 0,
        sink: Arc::new(Deaf),
    }
}

/// A continuation by the first owner.
pub fn go_on(session: &str, seq: u64, events: &[&str]) -> Append {
    let start = create(session, events);
    Append { expected_seq: Seq(seq), at_us: 2_000, mode: AppendMode::Continue, ..start }
}

/// A fork that shares so many events, by its first owner.
pub fn fork(session: &str, parent: &str, seq: u64, events: &[&str]) -> Append {
    let mode = AppendMode::Fork { parent: id(parent), agent: "agent".to_owned(), origin: None };
    Append { epoch: Epoch(2), mode, ..go_on(session, seq, events) }
}

/// A continuation that ends the turn.
pub fn finish(session: &str, seq: u64, events: &[&str]) -> Append {
    Append { status: SessionStatus::Finished, ..go_on(session, seq, events) }
}

/// The same, with a snapshot of its own text.
pub fn with_snapshot(append: Append) -> Append {
    let seq = append.expected_seq.0 + u64::from(append.count);
    let snapshot = Some(format!("{} {seq}", append.session).into_bytes());
    Append { snapshot, ..append }
}

/// The same with a charge: so many nano-dollars, ten times as many tokens, one call.
pub fn charged(append: Append, account: &str, usd_nanos: u64) -> Append {
    let amount = Amount { usd_nanos, tokens: usd_nanos * 10, calls: 1 };
    Append { charges: vec![Charge { account: account.into(), amount }], ..append }
}

/// What was charged to an account.
pub fn spent(journal: &Arc<dyn Journal>, account: &str) -> Amount {
    journal.spent(&[account.into()]).unwrap()[0]
}

/// A session's snapshots: how many events they cover, and their text.
pub fn snapshots(
    journal: &Arc<dyn Journal>,
    session: &str,
    until: Option<u64>,
) -> Vec<(u64, String)> {
    let found = journal.snapshots(&id(session), until.map(Seq)).unwrap();
    let text = |body| String::from_utf8(body).unwrap();
    found.into_iter().map(|snapshot| (snapshot.seq.0, text(snapshot.body))).collect()
}

/// The ids of the sessions that a listing finds.
pub fn ids(heads: &[SessionHead]) -> Vec<&str> {
    heads.iter().map(|head| head.id.as_str()).collect()
}

/// A query for every ended session.
pub fn all_ended() -> PruneQuery {
    use SessionStatus::{Cancelled, Failed, Finished};
    let statuses = vec![Finished, Failed, Cancelled];
    PruneQuery { before_us: i64::MAX, statuses, agent: None, dry_run: false }
}

/// Prunes, after a dry run that must have said the same.
pub fn prune(journal: &Arc<dyn Journal>, query: &PruneQuery) -> PruneReport {
    let dry = journal.prune(&PruneQuery { dry_run: true, ..query.clone() }).unwrap();
    let done = journal.prune(query).unwrap();
    assert_eq!(dry, done, "a dry run counts the same");
    done
}

/// Appends and waits for the result.
pub fn put(journal: &Arc<dyn Journal>, append: Append) -> Result<(), Failure> {
    let (sink, results) = Results::new();
    journal.append(Append { sink, ..append });
    let mut acks = results.recv().unwrap();
    assert_eq!(acks.len(), 1, "one append has one result");
    acks.remove(0).result.map_err(|error| error.failure())
}

/// Appends, waits, and returns the code of the refusal.
pub fn refused(journal: &Arc<dyn Journal>, append: Append) -> ErrorCode {
    put(journal, append).expect_err("the append should be refused").code
}

/// The events of a session from a position on: position, time, epoch, text.
pub fn events(
    journal: &Arc<dyn Journal>,
    session: &str,
    from: u64,
) -> Vec<(u64, i64, u64, String)> {
    let records = journal.load(&id(session), Seq(from)).unwrap();
    records
        .iter()
        .map(|record| (record.seq.0, record.at_us, record.epoch.0, record.json.get().to_owned()))
        .collect()
}

/// Only the text of a session's events.
pub fn texts(journal: &Arc<dyn Journal>, session: &str) -> Vec<String> {
    events(journal, session, 0).into_iter().map(|(_, _, _, text)| text).collect()
}

/// The failure of opening a journal.
pub fn open_failure(url: &str, options: JournalOptions) -> Failure {
    match open(url, options) {
        Ok(_) => panic!("{url:?} should not open"),
        Err(error) => error.failure(),
    }
}

/// A folder with a place for a journal.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The path as the journal names it.
    pub fn file(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join("journal.db")
    }

    pub fn url(&self) -> String {
        format!("sqlite:///{}", self.file().display())
    }

    pub fn open(&self) -> Arc<dyn Journal> {
        self.open_with(JournalOptions::default())
    }

    pub fn open_with(&self, options: JournalOptions) -> Arc<dyn Journal> {
        open(&self.url(), options).unwrap()
    }

    /// Changes the file behind the journal's back.
    pub fn tamper(&self, sql: &str) {
        rusqlite::Connection::open(self.file()).unwrap().execute_batch(sql).unwrap();
    }
}

/// Holds up the writer: its first append is stored, and the call of its sink returns once
/// [`Gate::open`] is called. What is appended in between waits in the queue.
pub struct Gate {
    release: Sender<()>,
}

struct GateSink {
    entered: Mutex<Sender<()>>,
    release: Mutex<Receiver<()>>,
}

impl AckSink for GateSink {
    fn acked(&self, _: Vec<Acked>) {
        self.entered.lock().unwrap().send(()).unwrap();
        let _ = self.release.lock().unwrap().recv();
    }
}

impl Gate {
    pub fn close(journal: &Arc<dyn Journal>) -> Self {
        let (entered_sender, entered) = channel();
        let (release, release_receiver) = channel();
        let sink =
            GateSink { entered: Mutex::new(entered_sender), release: Mutex::new(release_receiver) };
        journal.append(Append { sink: Arc::new(sink), ..create("gate", &["{}"]) });
        entered.recv().unwrap();
        Self { release }
    }

    pub fn open(self) {
        self.release.send(()).unwrap();
    }
}
