//! Group commit: many appends in one commit, one call for each sink, and the bounds of both.

use std::sync::{Arc, Weak};

use mainspring_journal::{
    AckSink, Acked, Append, Journal, JournalLimits, JournalOptions, SessionStatus,
};
use mainspring_session::{Epoch, ErrorCode, Seq};

use crate::support::{Gate, Place, Results, create, go_on, id, put, refused, texts};

fn with_limits(limits: JournalLimits) -> JournalOptions {
    JournalOptions { limits, ..JournalOptions::default() }
}

#[test]
fn a_thousand_appends_of_many_threads_share_one_commit_and_one_call() {
    let journal = Place::new().open();
    let gate = Gate::close(&journal);
    let (sink, results) = Results::new();
    std::thread::scope(|scope| {
        for thread in 0..10_u64 {
            let (journal, sink) = (&journal, &sink);
            scope.spawn(move || {
                for n in 0..100 {
                    let token = thread * 100 + n;
                    let append = create(&format!("s{token}"), &["{}"]);
                    journal.append(Append { token, sink: sink.clone(), ..append });
                }
            });
        }
    });
    gate.open();
    let acks = results.recv().unwrap();
    assert!(acks.iter().all(|ack| ack.result.is_ok()));
    let mut tokens: Vec<u64> = acks.iter().map(|ack| ack.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..1_000).collect::<Vec<_>>());
    assert_eq!(journal.stats().commits, 2, "one for the gate, one for the thousand");
    assert_eq!(journal.stats().events, 1_001);
}

#[test]
fn appends_without_a_gate_share_commits_too() {
    let journal = Place::new().open();
    let (sink, results) = Results::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (journal, sink) = (&journal, &sink);
            scope.spawn(move || {
                for n in 0..125 {
                    let append = create(&format!("s{thread}-{n}"), &["{}"]);
                    journal.append(Append { sink: sink.clone(), ..append });
                }
            });
        }
    });
    let mut acked = 0;
    while acked < 1_000 {
        acked += results.recv().unwrap().len();
    }
    let commits = journal.stats().commits;
    assert!(commits < 500, "{commits} commits for 1,000 appends");
}

#[test]
fn a_commit_holds_no_more_than_its_limits() {
    let by_events = JournalLimits { batch_events_max: 10, ..JournalLimits::default() };
    let by_bytes = JournalLimits { batch_bytes_max: 50, ..JournalLimits::default() };
    for limits in [by_events, by_bytes] {
        let journal = Place::new().open_with(with_limits(limits));
        let gate = Gate::close(&journal);
        let (sink, results) = Results::new();
        for n in 0..20 {
            // 5 events in 24 bytes.
            let append = create(&format!("s{n}"), &["[10]", "[11]", "[12]", "[13]", "[14]"]);
            journal.append(Append { sink: sink.clone(), ..append });
        }
        // More than a commit may hold, so it has one of its own.
        let large = create("large", &["[1234567890123456789012345678901234567890123456789]"; 11]);
        journal.append(Append { sink, ..large });
        gate.open();
        let calls: Vec<usize> = (0..11).map(|_| results.recv().unwrap().len()).collect();
        assert_eq!(calls, [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
        assert_eq!(journal.stats().commits, 12);
    }
}

#[test]
fn a_refusal_leaves_the_rest_of_its_commit_alone() {
    let journal = Place::new().open();
    let gate = Gate::close(&journal);
    let (sink, results) = Results::new();
    let appends = [
        create("a", &["[0]"]),
        create("a", &["[\"again\"]"]),
        go_on("a", 1, &["[1]"]),
        go_on("a", 1, &["[\"late\"]"]),
        go_on("b", 0, &["[\"absent\"]"]),
        Append { epoch: Epoch(2), ..go_on("a", 2, &["[\"stale\"]"]) },
        Append { status: SessionStatus::Finished, ..go_on("a", 2, &["[2]"]) },
    ];
    for (token, append) in appends.into_iter().enumerate() {
        journal.append(Append { token: token as u64, sink: sink.clone(), ..append });
    }
    gate.open();
    let acks = results.recv().unwrap();
    let taken: Vec<u64> =
        acks.iter().filter(|ack| ack.result.is_ok()).map(|ack| ack.token).collect();
    assert_eq!((acks.len(), taken), (7, vec![0, 2, 6]));
    assert_eq!(texts(&journal, "a"), ["[0]", "[1]", "[2]"]);
    assert_eq!(journal.head(&id("b")).unwrap(), None);
}

#[test]
fn each_sink_has_one_call_for_each_commit() {
    let journal = Place::new().open();
    let gate = Gate::close(&journal);
    let sinks: Vec<_> = (0..3).map(|_| Results::new()).collect();
    for n in 0..9 {
        let sink = sinks[n % 3].0.clone();
        journal.append(Append { token: n as u64, sink, ..create(&format!("s{n}"), &["{}"]) });
    }
    gate.open();
    for (n, (_, results)) in sinks.iter().enumerate() {
        let tokens: Vec<u64> = results.recv().unwrap().iter().map(|ack| ack.token).collect();
        assert_eq!(tokens, [n as u64, n as u64 + 3, n as u64 + 6]);
    }
}

#[test]
fn a_full_queue_refuses_at_once_and_takes_again_later() {
    let limits = JournalLimits { queue_bytes_max: 10, ..JournalLimits::default() };
    let journal = Place::new().open_with(with_limits(limits));
    let gate = Gate::close(&journal);
    let (sink, results) = Results::new();
    // The first is taken whatever its size, since nothing else waits.
    journal.append(Append { sink, ..create("a", &["[1234567]"]) });
    let failure = put(&journal, create("b", &["{}"])).unwrap_err();
    assert_eq!(failure.code, ErrorCode::ENGINE_OVERLOADED);
    assert!(failure.retryable);
    assert_eq!(
        failure.to_text(),
        "journal has 9 bytes waiting to be written, limit 10\n\
         hint: try again once the disk has caught up"
    );
    gate.open();
    assert!(results.recv().unwrap()[0].result.is_ok());
    put(&journal, create("b", &["{}"])).unwrap();
}

#[test]
fn the_fence_holds_when_heads_do_not_fit_in_memory() {
    let limits = JournalLimits { cached_heads_max: 2, ..JournalLimits::default() };
    let journal = Place::new().open_with(with_limits(limits));
    for seq in 0..4 {
        for session in ["a", "b", "c", "d", "e"] {
            let append = match seq {
                0 => create(session, &["{}"]),
                _ => go_on(session, seq, &["{}"]),
            };
            put(&journal, append).unwrap();
            assert_eq!(
                refused(&journal, go_on(session, seq, &["{}"])),
                ErrorCode::JOURNAL_CONFLICT
            );
            assert_eq!(refused(&journal, create(session, &["{}"])), ErrorCode::JOURNAL_CONFLICT);
        }
    }
}

struct Panicking;

impl AckSink for Panicking {
    fn acked(&self, _: Vec<Acked>) {
        panic!("a sink that panics, as a test of the journal");
    }
}

#[test]
fn a_sink_that_panics_costs_nobody_else_a_result() {
    let journal = Place::new().open();
    let gate = Gate::close(&journal);
    let (sink, results) = Results::new();
    journal.append(Append { sink: Arc::new(Panicking), ..create("a", &["[0]"]) });
    journal.append(Append { sink, ..create("b", &["{}"]) });
    gate.open();
    assert!(results.recv().unwrap()[0].result.is_ok());
    put(&journal, go_on("a", 1, &["[1]"])).unwrap();
    assert_eq!(texts(&journal, "a"), ["[0]", "[1]"]);
}

/// Appends the next event of its session from within the call, then closes the journal.
struct Chained {
    journal: Weak<dyn Journal>,
    done: Arc<Results>,
}

impl AckSink for Chained {
    fn acked(&self, acks: Vec<Acked>) {
        let Some(journal) = self.journal.upgrade() else { return };
        let seq = acks[0].token + 1;
        if seq == 5 {
            journal.close().unwrap();
            self.done.acked(acks);
            return;
        }
        let sink = Arc::new(Chained { journal: self.journal.clone(), done: self.done.clone() });
        journal.append(Append { token: seq, sink, ..go_on("s", seq, &["{}"]) });
    }
}

#[test]
fn a_sink_may_append_and_close() {
    let place = Place::new();
    let journal = place.open();
    let (done, results) = Results::new();
    let sink = Arc::new(Chained { journal: Arc::downgrade(&journal), done });
    journal.append(Append { sink, ..create("s", &["{}"]) });
    results.recv().unwrap();
    journal.close().unwrap();
    drop(journal);
    assert_eq!(place.open().head(&id("s")).unwrap().unwrap().next_seq, Seq(5));
}

#[test]
fn closing_stores_what_was_handed_in() {
    let place = Place::new();
    let journal = place.open();
    let (sink, results) = Results::new();
    for n in 0..500 {
        journal.append(Append { sink: sink.clone(), ..create(&format!("s{n}"), &["{}"]) });
    }
    journal.close().unwrap();
    let acks: Vec<Acked> = results.try_iter().flatten().collect();
    assert_eq!(acks.iter().filter(|ack| ack.result.is_ok()).count(), 500);
    assert_eq!(place.open().open_sessions().unwrap().len(), 500);
}
