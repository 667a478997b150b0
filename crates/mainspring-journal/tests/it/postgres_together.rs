//! Several processes at work on one PostgreSQL database: forks of forks that others prune, batches
//! that want the same sessions, and one append of a batch that the server cannot take.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mainspring_journal::{AckSink, Acked, Append, AppendMode, Journal};
use mainspring_session::{Epoch, ErrorCode};

use crate::server::Database;
use crate::support::{
    Gate, Results, all_ended, create, finish, fork, go_on, id, prune, put, texts,
};

/// Prunes all the while until the work is done.
fn beside_prunings(pruner: &Arc<dyn Journal>, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                pruner.prune(&all_ended()).unwrap();
            }
        });
        let _stop = Stop(&done);
        work();
        done.store(true, Ordering::Relaxed);
        pruning.join().unwrap();
    });
}

/// Lets the other thread end if this one fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_fork_of_a_fork_gets_all_it_shares_or_finds_no_parent() {
    let database = Database::new();
    let (a, b) = (database.open_node("a", 60_000), database.open_node("b", 60_000));
    let mut forks = Vec::new();
    beside_prunings(&b, || {
        for n in 0..60 {
            let (parent, child, grandchild) = (format!("p{n}"), format!("c{n}"), format!("g{n}"));
            put(&a, create(&parent, &["[0]", "[1]"])).unwrap();
            // Before its end nobody prunes it: so some forks are certainly in time.
            let end = || put(&a, finish(&parent, 2, &["[2]"])).unwrap();
            let in_time = n % 2 == 0;
            if !in_time {
                end();
            }
            let forked = put(&a, fork(&child, &parent, 2, &["[\"child\"]"]));
            if in_time {
                assert!(forked.is_ok(), "{forked:?}");
                end();
            }
            match forked {
                Ok(()) => forks.push((child.clone(), "[\"child\"]")),
                Err(failure) => {
                    assert_eq!(failure.code, ErrorCode::SESSION_NOT_FOUND, "{failure:?}");
                    continue;
                }
            }
            // It can go at any moment from now on, and its parent with it.
            put(&a, Append { epoch: Epoch(2), ..finish(&child, 3, &["[3]"]) }).unwrap();
            forks.pop();
            match put(&a, fork(&grandchild, &child, 2, &["[\"grandchild\"]"])) {
                Ok(()) => forks.push((grandchild, "[\"grandchild\"]")),
                Err(failure) => {
                    assert_eq!(failure.code, ErrorCode::SESSION_NOT_FOUND, "{failure:?}");
                }
            }
        }
    });
    for (name, last) in forks {
        assert_eq!(texts(&a, &name), ["[0]", "[1]", last]);
    }
    prune(&b, &all_ended());
    let left = "SELECT count(*) FROM mainspring_log l WHERE NOT EXISTS \
                (SELECT FROM mainspring_sessions s WHERE s.key = l.session_key)";
    assert_eq!(database.sql(left), ["0"]);
}

/// Notes each session's result.
#[derive(Default)]
struct Noted(Mutex<HashMap<u64, Result<(), ErrorCode>>>);

impl AckSink for Noted {
    fn acked(&self, acks: Vec<Acked>) {
        let mut noted = self.0.lock().unwrap();
        for ack in acks {
            let result = ack.result.map_err(|error| error.code().clone());
            assert!(noted.insert(ack.token, result).is_none(), "answered twice");
        }
    }
}

#[test]
fn batches_that_want_the_same_sessions_in_another_order_share_them() {
    const SESSIONS: u64 = 200;
    let database = Database::new();
    let (a, b) = (database.open_node("a", 60_000), database.open_node("b", 60_000));
    for round in 1..=5 {
        for n in 0..SESSIONS {
            let name = format!("s{round}-{n}");
            put(&a, Append { release: true, ..create(&name, &["[0]"]) }).unwrap();
        }
        let noted: Vec<Arc<Noted>> = vec![Arc::default(), Arc::default()];
        let gates = [Gate::close(&a), Gate::close(&b)];
        for (which, journal) in [&a, &b].into_iter().enumerate() {
            for n in 0..SESSIONS {
                let n = if which == 0 { n } else { SESSIONS - 1 - n };
                let take = go_on(&format!("s{round}-{n}"), 1, &["[1]"]);
                let (epoch, mode) = (Epoch(2), AppendMode::TakeOver);
                let sink = noted[which].clone();
                journal.append(Append { epoch, mode, token: n, sink, ..take });
            }
        }
        gates.into_iter().for_each(Gate::open);
        for (journal, name) in [(&a, "last-a"), (&b, "last-b")] {
            put(journal, create(&format!("{name}-{round}"), &["{}"])).unwrap();
        }
        let (first, second) = (noted[0].0.lock().unwrap(), noted[1].0.lock().unwrap());
        for n in 0..SESSIONS {
            match (&first[&n], &second[&n]) {
                (Ok(()), Err(code)) | (Err(code), Ok(())) => {
                    let codes = [ErrorCode::SESSION_OWNED, ErrorCode::JOURNAL_CONFLICT];
                    assert!(codes.contains(code), "{code}");
                }
                both => panic!("session {n}: {both:?}"),
            }
        }
    }
}

#[test]
fn an_append_that_the_server_cannot_take_fails_alone() {
    let database = Database::new();
    let journal = database.open();
    let gate = Gate::close(&journal);
    let (sink, results) = Results::new();
    for n in 0..9 {
        let name = if n == 4 { "zero\0" } else { "agent" };
        let mode = AppendMode::Create { agent: name.to_owned(), origin: None };
        let append = Append { mode, token: n, ..create(&format!("s{n}"), &["{}"]) };
        journal.append(Append { sink: sink.clone(), ..append });
    }
    gate.open();
    let mut failed = Vec::new();
    let mut answered = 0;
    while answered < 9 {
        for ack in results.recv().unwrap() {
            answered += 1;
            failed.extend(ack.result.is_err().then_some(ack.token));
        }
    }
    assert_eq!(failed, [4]);
    assert_eq!(journal.head(&id("s4")).unwrap(), None);
    assert_eq!(journal.open_sessions().unwrap().len(), 9, "with the gate's");
}
