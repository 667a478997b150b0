//! A PostgreSQL store whose connections break, whose server goes away and comes back, and whose
//! answers get lost: what is acknowledged is stored, once, and nothing else is refused.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, Weak};

use mainspring_journal::{
    AckSink, Acked, Append, AppendMode, Hold, Journal, JournalLimits, JournalOptions, open,
};
use mainspring_session::{Amount, BlobHash, Epoch, ErrorCode};

use crate::proxy::{Cut, Proxy};
use crate::server::{Database, Server, node};
use crate::support::{
    Results, charged, create, finish, fork, go_on, id, put, refused, spent, texts, with_snapshot,
};

/// A text that only the statement has that stores appends.
const STORES: &str = "logged AS (";

/// The end of a transaction; without the zero byte it would be in its beginning, too, which says
/// `READ COMMITTED`.
const COMMIT: &str = "COMMIT\0";

fn behind(proxy: &Proxy, database: &Database, options: JournalOptions) -> Arc<dyn Journal> {
    open(&database.url_at(proxy.port()), options).unwrap()
}

/// Fails soon enough for a test, if it has to fail.
fn impatient() -> JournalOptions {
    let limits = JournalLimits { outage_ms_max: 2_000, ..node("impatient", 60_000).limits };
    JournalOptions { limits, ..node("impatient", 60_000) }
}

fn take_over(session: &str, epoch: u64, seq: u64) -> Append {
    Append {
        epoch: Epoch(epoch),
        mode: AppendMode::TakeOver,
        ..go_on(session, seq, &["[\"taken\"]"])
    }
}

#[test]
fn an_append_is_stored_once_wherever_its_connection_breaks() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let journal = behind(&proxy, &database, node("a", 60_000));
    for (n, cut) in [Cut::Before, Cut::Meanwhile, Cut::After].into_iter().enumerate() {
        let body: Arc<[u8]> = format!("blob {n}").into_bytes().into();
        let hash = BlobHash::of(&body);
        let (name, copy) = (format!("s{n}"), format!("fork{n}"));
        let next = || proxy.cut(STORES, cut, 1);
        let blobs = vec![(hash.clone(), body)];
        next();
        let put = |append| put(&journal, charged(append, "acme", 7)).unwrap();
        put(with_snapshot(Append { blobs, ..create(&name, &["[0]", "[1]"]) }));
        next();
        put(go_on(&name, 2, &["[2]"]));
        next();
        put(fork(&copy, &name, 2, &["[\"fork\"]"]));
        next();
        put(take_over(&name, 2, 3));
        next();
        put(Append { epoch: Epoch(2), ..finish(&name, 4, &["[4]"]) });
        assert_eq!(proxy.cuts_done(), 5 * (n + 1));
        assert_eq!(texts(&journal, &name), ["[0]", "[1]", "[2]", "[\"taken\"]", "[4]"]);
        assert_eq!(texts(&journal, &copy), ["[0]", "[1]", "[\"fork\"]"]);
        assert_eq!(journal.snapshots(&id(&name), None).unwrap().len(), 1);
        assert!(journal.blob(&hash).unwrap().is_some());
    }
    let stats = journal.stats();
    assert_eq!((stats.appends, stats.events), (15, 18));
    assert_eq!(spent(&journal, "acme"), Amount { usd_nanos: 105, tokens: 1_050, calls: 15 });
}

#[test]
fn what_is_refused_is_refused_after_a_lost_answer_too() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let journal = behind(&proxy, &database, node("a", 60_000));
    put(&journal, create("s", &["[0]"])).unwrap();
    put(&journal, go_on("s", 1, &["[1]"])).unwrap();
    for cut in [Cut::Before, Cut::Meanwhile, Cut::After] {
        proxy.cut(STORES, cut, 2);
        // The same position and owner as what is stored there, and another text.
        assert_eq!(refused(&journal, go_on("s", 1, &["[2]"])), ErrorCode::JOURNAL_CONFLICT);
        let later = Append { at_us: 9, ..go_on("s", 1, &["[1]"]) };
        assert_eq!(refused(&journal, later), ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(refused(&journal, go_on("absent", 1, &["{}"])), ErrorCode::SESSION_NOT_FOUND);
    }
    assert_eq!(texts(&journal, "s"), ["[0]", "[1]"]);
    assert_eq!(proxy.cuts_done(), 6);
}

/// Two nodes that take a session over with the same words, and one of them hears nothing: the
/// answer it reads from the log must be its own.
#[test]
fn a_lost_answer_is_not_mistaken_for_the_append_of_another_node() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let lost = behind(&proxy, &database, node("lost", 60_000));
    let other = database.open_node("other", 60_000);
    let released = Append { release: true, ..create("s", &["[0]"]) };
    put(&other, released).unwrap();
    proxy.cut(STORES, Cut::Before, usize::MAX);
    let (sink, results) = Results::new();
    lost.append(Append { sink, ..take_over("s", 2, 1) });
    wait(|| proxy.cuts_done() > 0);
    put(&other, take_over("s", 2, 1)).unwrap();
    proxy.cut(STORES, Cut::Before, 0);
    let result = results.recv().unwrap().remove(0).result;
    assert_eq!(*result.unwrap_err().code(), ErrorCode::JOURNAL_CONFLICT);
}

#[test]
fn a_claim_whose_answer_is_lost_is_handed_out_all_the_same() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let journal = behind(&proxy, &database, node("a", 60_000));
    for (n, (text, cut)) in [
        ("SKIP LOCKED", Cut::Before),
        ("SKIP LOCKED", Cut::Meanwhile),
        ("SKIP LOCKED", Cut::After),
        (COMMIT, Cut::Before),
        (COMMIT, Cut::Meanwhile),
        (COMMIT, Cut::After),
    ]
    .into_iter()
    .enumerate()
    {
        for part in ["x", "y"] {
            let name = format!("s{n}{part}");
            put(&journal, Append { release: true, ..create(&name, &["{}"]) }).unwrap();
        }
        proxy.cut(text, cut, 1);
        let mut claimed = Vec::new();
        while claimed.len() < 2 {
            // What the broken connection still holds for a moment is left for the next claim.
            let heads = journal.claim(&["agent".to_owned()], 9).unwrap();
            if heads.is_empty() {
                let unheard = "SELECT count(owner) FROM mainspring_sessions WHERE epoch = 1";
                assert_eq!(database.sql(unheard), ["0"], "owned, and nobody was told");
            }
            for head in heads {
                put(&journal, take_over(head.id.as_str(), 2, 1)).unwrap();
                claimed.push(head.id.to_string());
            }
        }
        claimed.sort_unstable();
        assert_eq!(claimed, [format!("s{n}x"), format!("s{n}y")], "{text} {cut:?}");
        assert_eq!(proxy.cuts_done(), n + 1);
    }
}

#[test]
fn an_outage_is_waited_out_by_appends_and_reads() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let journal = behind(&proxy, &database, node("a", 60_000));
    put(&journal, create("s", &["[0]"])).unwrap();
    proxy.refuse(true);
    let (sink, results) = Results::new();
    journal.append(Append { sink: sink.clone(), ..go_on("s", 1, &["[1]"]) });
    journal.append(Append { sink, ..go_on("s", 2, &["[2]"]) });
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| texts(&journal, "s"));
        proxy.refuse(false);
        assert!(reader.join().unwrap().len() <= 3);
    });
    assert!(acks(&results, 2).iter().all(|ack| ack.result.is_ok()));
    assert_eq!(texts(&journal, "s"), ["[0]", "[1]", "[2]"]);
}

#[test]
fn an_outage_past_its_limit_fails_appends_and_reads_and_then_they_go_on() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let journal = behind(&proxy, &database, impatient());
    put(&journal, create("s", &["[0]"])).unwrap();
    for silent in [false, true] {
        if silent {
            proxy.hold(true)
        } else {
            proxy.refuse(true)
        };
        let failure = put(&journal, go_on("s", 1, &["[lost]"])).unwrap_err();
        assert_eq!(failure.code, ErrorCode::JOURNAL_IO);
        assert!(failure.retryable);
        let start = format!("journal postgresql://127.0.0.1:{}/{}", proxy.port(), database.name());
        assert!(failure.message.starts_with(&start), "{failure:?}");
        assert_eq!(
            failure.hint.as_deref(),
            Some("check that the server runs and can be reached; no acknowledged event is lost")
        );
        let error = journal.head(&id("s")).unwrap_err();
        assert_eq!(*error.code(), ErrorCode::JOURNAL_IO);
        proxy.hold(false);
        proxy.refuse(false);
    }
    // What was said to have failed may have reached the server in the end.
    let stored = journal.head(&id("s")).unwrap().unwrap().next_seq.0;
    assert!(stored <= 2);
    put(&journal, take_over("s", 2, stored)).unwrap();
}

/// A server that is slow, not gone: the lease runs out here first, and what was handed in is stored.
#[test]
fn an_answer_that_comes_late_finds_the_lease_paused_and_the_append_stored() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let journal = behind(&proxy, &database, node("a", 500));
    let tenure = journal.tenure();
    put(&journal, create("s", &["[0]"])).unwrap();
    proxy.hold(true);
    let (sink, results) = Results::new();
    journal.append(Append { sink, ..go_on("s", 1, &["[1]"]) });
    wait(|| journal.hold(tenure) == Hold::Paused);
    proxy.hold(false);
    assert!(acks(&results, 1)[0].result.is_ok());
    // Nobody else was there to declare it dead.
    wait(|| journal.hold(tenure) == Hold::Held);
    assert_eq!(texts(&journal, "s"), ["[0]", "[1]"]);
}

#[test]
fn sessions_that_append_all_the_while_survive_breaking_connections() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let journal = behind(&proxy, &database, node("a", 60_000));
    let chains = Chains::start(&journal, 50);
    for round in 1..=10 {
        let cut = [Cut::Before, Cut::Meanwhile, Cut::After][round % 3];
        proxy.cut(STORES, cut, 2);
        wait(|| proxy.cuts_done() == 2 * round || chains.is_wrong());
        chains.let_append(100);
    }
    chains.check(&journal);
}

#[test]
fn a_server_that_crashes_and_comes_back_loses_and_repeats_nothing() {
    let server = Server::start();
    let database = Database::on(&server);
    let journal = database.open_node("a", 60_000);
    let chains = Chains::start(&journal, 200);
    for _ in 0..3 {
        chains.let_append(1_000);
        assert_eq!(server.tell("restart"), "ready");
    }
    chains.let_append(1_000);
    chains.check(&journal);
}

/// After an outage longer than the lease everybody looks dead, and nobody is.
#[test]
fn an_outage_longer_than_the_lease_costs_no_node_its_sessions() {
    let server = Server::start();
    let database = Database::on(&server);
    let nodes = [database.open_node("a", 1_000), database.open_node("b", 1_000)];
    for (n, node) in nodes.iter().enumerate() {
        put(node, create(&format!("s{n}"), &["[0]"])).unwrap();
    }
    let tenures = [nodes[0].tenure(), nodes[1].tenure()];
    assert_eq!(server.tell("stop"), "stopped");
    wait(|| nodes.iter().zip(tenures).all(|(node, tenure)| node.hold(tenure) == Hold::Paused));
    assert_eq!(server.tell("start"), "ready");
    wait(|| nodes.iter().zip(tenures).all(|(node, tenure)| node.hold(tenure) == Hold::Held));
    for (n, node) in nodes.iter().enumerate() {
        put(node, go_on(&format!("s{n}"), 1, &["[1]"])).unwrap();
    }
}

/// The first to come back from an outage finds everybody's beats expired, and lets them come back.
#[test]
fn who_comes_back_first_from_an_outage_condemns_nobody() {
    let database = Database::new();
    let port = Server::shared().port();
    let proxies = [Proxy::start(port), Proxy::start(port)];
    let [first, last] = ["first", "last"].map(|name| (name, &proxies[usize::from(name == "last")]));
    let [first, last] =
        [first, last].map(|(name, proxy)| behind(proxy, &database, node(name, 4_000)));
    let (tenure, first_tenure) = (last.tenure(), first.tenure());
    put(&last, create("s", &["[0]"])).unwrap();
    for proxy in &proxies {
        proxy.hold(true);
    }
    let expired = "SELECT count(*) = 2 FROM mainspring_beats WHERE until < clock_timestamp()";
    wait(|| database.sql(expired) == ["t"]);
    proxies[0].hold(false);
    wait(|| first.hold(first_tenure) == Hold::Held);
    // Its turn has ended once it sends the next beat.
    let until = "SELECT until FROM mainspring_beats JOIN mainspring_nodes ON id = node \
                 WHERE name = 'first'";
    let beat = database.sql(until);
    wait(|| database.sql(until) != beat);
    proxies[1].hold(false);
    wait(|| last.hold(tenure) != Hold::Paused);
    assert_eq!(last.hold(tenure), Hold::Held);
    put(&last, go_on("s", 1, &["[1]"])).unwrap();
}

#[test]
fn sessions_end_their_work_before_a_close_that_meets_a_broken_connection() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let journal = behind(&proxy, &database, node("a", 60_000));
    proxy.cut(STORES, Cut::After, 1);
    let (sink, results) = Results::new();
    for n in 0..100 {
        journal.append(Append { sink: sink.clone(), ..create(&format!("s{n}"), &["{}"]) });
    }
    journal.close().unwrap();
    let acks: Vec<Acked> = results.try_iter().flatten().collect();
    assert_eq!(acks.iter().filter(|ack| ack.result.is_ok()).count(), 100);
    assert_eq!(database.sql("SELECT count(*) FROM mainspring_nodes"), ["0"]);
    assert_eq!(database.open().claim(&["agent".to_owned()], 1_000).unwrap().len(), 100);
}

/// Waits for something that another thread brings about.
fn wait(mut until: impl FnMut() -> bool) {
    while !until() {
        std::thread::yield_now();
    }
}

fn acks(results: &Receiver<Vec<Acked>>, count: usize) -> Vec<Acked> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(results.recv().unwrap());
    }
    all
}

/// What is known of [`Chains`].
struct ChainState {
    /// How many events of each session are acknowledged.
    acknowledged: Vec<u64>,
    /// How many appends are on their way.
    pending: u64,
    /// No append begins any more.
    ending: bool,
    /// What went wrong first.
    wrong: Option<String>,
}

impl ChainState {
    fn sum(&self) -> u64 {
        self.acknowledged.iter().sum()
    }
}

/// Sessions of which each has one append on its way, always.
struct Chains {
    this: Weak<Chains>,
    journal: Weak<dyn Journal>,
    sessions: u64,
    state: Mutex<ChainState>,
    acknowledged: std::sync::Condvar,
}

impl Chains {
    fn start(journal: &Arc<dyn Journal>, sessions: u64) -> Arc<Self> {
        let chains = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            journal: Arc::downgrade(journal),
            sessions,
            state: Mutex::new(ChainState {
                acknowledged: vec![0; sessions as usize],
                pending: sessions,
                ending: false,
                wrong: None,
            }),
            acknowledged: std::sync::Condvar::new(),
        });
        for session in 0..sessions {
            chains.append(session, 0);
        }
        chains
    }

    fn text(session: u64, seq: u64) -> String {
        format!("{{\"session\":{session},\"seq\":{seq}}}")
    }

    fn append(&self, session: u64, seq: u64) {
        let name = format!("s{session}");
        let text = Self::text(session, seq);
        let next = match seq {
            0 => create(&name, &[&text]),
            _ => go_on(&name, seq, &[&text]),
        };
        let sink = self.this.upgrade().unwrap();
        let next = Append { token: session << 32 | seq, sink, ..next };
        self.journal.upgrade().unwrap().append(next);
    }

    /// Waits until so many more events are acknowledged.
    fn let_append(&self, count: u64) {
        let state = self.state.lock().unwrap();
        let wanted = state.sum() + count;
        let early = |state: &mut ChainState| state.sum() < wanted && state.wrong.is_none();
        let state = self.acknowledged.wait_while(state, early).unwrap();
        assert_eq!(state.wrong, None);
    }

    fn is_wrong(&self) -> bool {
        self.state.lock().unwrap().wrong.is_some()
    }

    /// Ends all sessions, and compares what is stored with what was acknowledged.
    fn check(&self, journal: &Arc<dyn Journal>) {
        let mut state = self.state.lock().unwrap();
        state.ending = true;
        // A session may have an append on its way also while all that is stored is acknowledged.
        let state = self.acknowledged.wait_while(state, |state| state.pending > 0).unwrap();
        assert_eq!(state.wrong, None);
        for session in 0..self.sessions {
            let acknowledged = state.acknowledged[session as usize];
            let wanted: Vec<String> =
                (0..acknowledged).map(|seq| Self::text(session, seq)).collect();
            assert_eq!(texts(journal, &format!("s{session}")), wanted);
        }
        let events = state.sum();
        assert_eq!(journal.stats().events, events);
    }
}

impl AckSink for Chains {
    fn acked(&self, acks: Vec<Acked>) {
        let mut next = Vec::new();
        let mut state = self.state.lock().unwrap();
        for ack in acks {
            let (session, seq) = (ack.token >> 32, ack.token & 0xffff_ffff);
            state.pending -= 1;
            if let Err(error) = ack.result {
                let wrong = format!("event {seq} of session {session} was refused: {error}");
                state.wrong.get_or_insert(wrong);
                continue;
            }
            let expected = state.acknowledged[session as usize];
            if expected != seq {
                let wrong = format!("event {seq} of session {session} came as {expected}");
                state.wrong.get_or_insert(wrong);
            }
            state.acknowledged[session as usize] = seq + 1;
            if !state.ending {
                state.pending += 1;
                next.push((session, seq + 1));
            }
        }
        drop(state);
        self.acknowledged.notify_all();
        for (session, seq) in next {
            self.append(session, seq);
        }
    }
}
