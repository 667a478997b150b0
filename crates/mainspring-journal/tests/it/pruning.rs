//! What a pruning removes and keeps, on every store; and the SQLite file's own part in it.

use std::sync::Arc;

use mainspring_journal::{
    Access, AckSink, Acked, Append, AppendMode, Journal, JournalLimits, JournalOptions, PruneQuery,
    PruneReport, SessionQuery, SessionStatus,
};
use mainspring_session::{BlobHash, Epoch, ErrorCode, Seq};

use crate::contract::{check_ranges, on_each_store, on_each_store_with};
use crate::support::{
    Place, Results, all_ended, create, finish, fork, go_on, id, ids, prune, put, refused,
    snapshots, texts, with_snapshot,
};

fn ended(append: Append) -> Append {
    Append { status: SessionStatus::Finished, ..append }
}

fn listed(journal: &Arc<dyn Journal>) -> Vec<String> {
    let heads = journal.sessions(&SessionQuery::default()).unwrap();
    ids(&heads).into_iter().map(str::to_owned).collect()
}

fn with_blobs(append: Append, bodies: &[&str]) -> Append {
    let blobs = bodies.iter().map(|body| (BlobHash::of(body.as_bytes()), body.as_bytes().into()));
    Append { blobs: blobs.collect(), ..append }
}

fn has(journal: &Arc<dyn Journal>, body: &str) -> bool {
    journal.blob(&BlobHash::of(body.as_bytes())).unwrap().is_some()
}

fn gone(journal: &Arc<dyn Journal>, session: &str) {
    assert_eq!(journal.head(&id(session)).unwrap(), None);
    let error = journal.load(&id(session), Seq(0)).unwrap_err();
    assert_eq!(*error.code(), ErrorCode::SESSION_NOT_FOUND);
    let error = journal.snapshots(&id(session), None).unwrap_err();
    assert_eq!(*error.code(), ErrorCode::SESSION_NOT_FOUND);
    assert_eq!(refused(journal, go_on(session, 1, &["{}"])), ErrorCode::SESSION_NOT_FOUND);
    assert_eq!(refused(journal, fork("new", session, 1, &["{}"])), ErrorCode::SESSION_NOT_FOUND);
}

#[test]
fn ended_sessions_that_match_are_removed() {
    use SessionStatus::{Cancelled, Failed, Finished, Open, Waiting};
    let statuses = [Open, Waiting, Finished, Failed, Cancelled];
    let all = PruneQuery { statuses: statuses.to_vec(), ..all_ended() };
    let cases = [
        (all.clone(), vec!["s1", "s0"]),
        (PruneQuery { statuses: vec![Failed, Open], ..all.clone() }, vec!["s4", "s2", "s1", "s0"]),
        (PruneQuery { statuses: vec![], ..all.clone() }, vec!["s4", "s3", "s2", "s1", "s0"]),
        (PruneQuery { before_us: 1_003, ..all.clone() }, vec!["s4", "s3", "s1", "s0"]),
        (PruneQuery { agent: Some("odd".to_owned()), ..all }, vec!["s4", "s2", "s1", "s0"]),
    ];
    for (query, kept) in cases {
        on_each_store(|journal| {
            for (n, status) in statuses.into_iter().enumerate() {
                let agent = if n % 2 == 1 { "odd" } else { "even" };
                let mode = AppendMode::Create { agent: agent.to_owned(), origin: None };
                let append = create(&format!("s{n}"), &["[0]", "[1]"]);
                let at_us = 1_000 + n as i64;
                put(journal, with_snapshot(Append { at_us, status, mode, ..append })).unwrap();
            }
            let report = prune(journal, &query);
            assert_eq!(listed(journal), kept, "{query:?}");
            let sessions = 5 - kept.len() as u64;
            let wanted = PruneReport { sessions, events: 2 * sessions, ..PruneReport::default() };
            assert_eq!(report, wanted, "{query:?}");
            for session in (0..5).map(|n| format!("s{n}")) {
                if kept.contains(&session.as_str()) {
                    assert_eq!(texts(journal, &session), ["[0]", "[1]"]);
                } else {
                    gone(journal, &session);
                }
            }
            assert_eq!(prune(journal, &query), PruneReport::default(), "nothing is left to do");
        });
    }
}

#[test]
fn a_dry_run_changes_nothing() {
    on_each_store(|journal| {
        let session = create("s", &["[0]"]);
        put(journal, ended(with_snapshot(with_blobs(session, &["body"])))).unwrap();
        let report = journal.prune(&PruneQuery { dry_run: true, ..all_ended() }).unwrap();
        let wanted = PruneReport { sessions: 1, kept_for_forks: 0, events: 1, blobs: 1 };
        assert_eq!(report, wanted);
        assert_eq!(texts(journal, "s"), ["[0]"]);
        assert_eq!(snapshots(journal, "s", None).len(), 1);
        assert!(has(journal, "body"));
    });
}

#[test]
fn the_id_of_a_pruned_session_is_free() {
    on_each_store(|journal| {
        for round in 0..3 {
            put(journal, create("other", &["{}"])).ok();
            let text = format!("[{round}]");
            put(journal, with_snapshot(create("s", &[&text]))).unwrap();
            put(journal, fork(&format!("f{round}"), "s", 1, &["[\"f\"]"])).unwrap();
            put(journal, finish("s", 1, &["[1]"])).unwrap();
            let report = prune(journal, &all_ended());
            let wanted = PruneReport { sessions: 1, kept_for_forks: 1, events: 1, blobs: 0 };
            assert_eq!(report, wanted);
            gone(journal, "s");
        }
        for round in 0..3 {
            let fork = format!("f{round}");
            assert_eq!(texts(journal, &fork), [format!("[{round}]"), "[\"f\"]".to_owned()]);
            assert_eq!(snapshots(journal, &fork, None), [(1, "s 1".to_owned())]);
            assert_eq!(journal.head(&id(&fork)).unwrap().unwrap().parent, None);
        }
        assert_eq!(listed(journal), ["f2", "f1", "f0", "other"]);
    });
}

#[test]
fn what_forks_share_stays_until_the_last_is_gone() {
    on_each_store(|journal| {
        let one = |seq, text| with_snapshot(go_on("p", seq, &[text]));
        put(journal, with_snapshot(with_blobs(create("p", &["[0]"]), &["early"]))).unwrap();
        put(journal, one(1, "[1]")).unwrap();
        put(journal, one(2, "[2]")).unwrap();
        put(journal, with_blobs(one(3, "[3]"), &["late"])).unwrap();
        put(journal, fork("short", "p", 1, &["[\"s\"]"])).unwrap();
        put(journal, fork("long", "p", 3, &["[\"l\"]"])).unwrap();
        put(journal, ended(one(4, "[4]"))).unwrap();

        let report = prune(journal, &all_ended());
        assert_eq!(report, PruneReport { sessions: 1, kept_for_forks: 1, events: 2, blobs: 0 });
        gone(journal, "p");
        assert_eq!(listed(journal), ["long", "short"]);
        check_ranges(journal, "long", &["[0]", "[1]", "[2]", "[\"l\"]"].map(String::from));
        check_ranges(journal, "short", &["[0]", "[\"s\"]"].map(String::from));
        let of = |seq: u64| (seq, format!("p {seq}"));
        assert_eq!(snapshots(journal, "long", None), [of(1), of(2), of(3)]);
        assert!(has(journal, "early") && has(journal, "late"));

        // With the longer fork goes what only that one shared.
        let epoch = Epoch(2);
        put(journal, Append { epoch, ..finish("long", 4, &["{}"]) }).unwrap();
        let report = prune(journal, &all_ended());
        assert_eq!(report, PruneReport { sessions: 1, kept_for_forks: 0, events: 4, blobs: 0 });
        assert_eq!(texts(journal, "short"), ["[0]", "[\"s\"]"]);

        put(journal, Append { epoch, ..finish("short", 2, &["{}"]) }).unwrap();
        let report = prune(journal, &all_ended());
        assert_eq!(report, PruneReport { sessions: 1, kept_for_forks: 0, events: 3, blobs: 2 });
        assert!(!has(journal, "early") && !has(journal, "late"));
        assert_eq!(listed(journal), [""; 0]);
    });
}

#[test]
fn a_line_of_forks_goes_with_its_last_one() {
    on_each_store(|journal| {
        put(journal, ended(with_blobs(create("a", &["[0]"]), &["body"]))).unwrap();
        put(journal, ended(fork("b", "a", 1, &["[1]"]))).unwrap();
        let third = Append { epoch: Epoch(3), ..fork("c", "b", 2, &["[2]"]) };
        put(journal, third).unwrap();
        let report = prune(journal, &all_ended());
        assert_eq!(report, PruneReport { sessions: 2, kept_for_forks: 2, events: 0, blobs: 0 });
        assert_eq!(texts(journal, "c"), ["[0]", "[1]", "[2]"]);
        assert_eq!(listed(journal), ["c"]);

        put(journal, Append { epoch: Epoch(3), ..finish("c", 3, &["[3]"]) }).unwrap();
        let report = prune(journal, &all_ended());
        assert_eq!(report, PruneReport { sessions: 1, kept_for_forks: 0, events: 4, blobs: 1 });
        assert_eq!(listed(journal), [""; 0]);
    });
}

#[test]
fn a_parent_and_its_ended_forks_go_in_one_pruning() {
    on_each_store(|journal| {
        put(journal, ended(create("p", &["[0]", "[1]"]))).unwrap();
        put(journal, ended(fork("f", "p", 1, &["[1]"]))).unwrap();
        put(journal, ended(fork("g", "f", 1, &["[1]"]))).unwrap();
        let report = prune(journal, &all_ended());
        assert_eq!(report, PruneReport { sessions: 3, kept_for_forks: 0, events: 4, blobs: 0 });
        assert_eq!(listed(journal), [""; 0]);
    });
}

#[test]
fn a_blob_stays_as_long_as_a_session_names_it() {
    on_each_store(|journal| {
        put(journal, ended(with_blobs(create("a", &["{}"]), &["x", "y", "shared"]))).unwrap();
        // Named twice by one session, and by another after it was stored.
        put(journal, ended(with_blobs(go_on("a", 1, &["{}"]), &["x"]))).unwrap();
        put(journal, with_blobs(create("b", &["{}"]), &["shared", "z"])).unwrap();
        let report = prune(journal, &all_ended());
        assert_eq!((report.sessions, report.blobs), (1, 2));
        assert_eq!(
            ["x", "y", "shared", "z"].map(|body| has(journal, body)),
            [false, false, true, true]
        );
        // What was swept can be stored again.
        put(journal, with_blobs(create("c", &["{}"]), &["x"])).unwrap();
        put(journal, finish("b", 1, &["{}"])).unwrap();
        let report = prune(journal, &all_ended());
        assert_eq!((report.sessions, report.blobs), (1, 2));
        assert_eq!(["x", "shared", "z"].map(|body| has(journal, body)), [true, false, false]);
    });
}

#[test]
fn a_pruning_in_many_small_steps_is_the_same() {
    let limits = JournalLimits { prune_sessions_max: 1, ..JournalLimits::default() };
    on_each_store_with(JournalOptions { limits, ..JournalOptions::default() }, |journal| {
        for n in 0..50 {
            let blobs = [format!("blob {}", n / 3), "all".to_owned()];
            let blobs: Vec<&str> = blobs.iter().map(String::as_str).collect();
            put(journal, with_blobs(create(&format!("s{n}"), &["{}"]), &blobs)).unwrap();
            if n % 5 != 0 {
                put(journal, finish(&format!("s{n}"), 1, &["{}"])).unwrap();
            }
        }
        let report = prune(journal, &all_ended());
        assert_eq!(report, PruneReport { sessions: 40, kept_for_forks: 0, events: 80, blobs: 7 });
        assert_eq!(listed(journal).len(), 10);
        assert!(has(journal, "all"));
    });
}

#[test]
fn appends_go_on_beside_a_pruning() {
    let limits = JournalLimits { prune_sessions_max: 2, ..JournalLimits::default() };
    on_each_store_with(JournalOptions { limits, ..JournalOptions::default() }, |journal| {
        for n in 0..300 {
            put(journal, ended(create(&format!("old{n}"), &["{}"]))).unwrap();
        }
        let pruned = std::thread::scope(|scope| {
            let pruner = scope.spawn(|| journal.prune(&all_ended()).unwrap());
            for seq in 0..100 {
                let append = if seq == 0 { create("s", &["{}"]) } else { go_on("s", seq, &["{}"]) };
                put(journal, append).unwrap();
            }
            pruner.join().unwrap()
        });
        assert_eq!(pruned.sessions, 300);
        assert_eq!(listed(journal), ["s"]);
        assert_eq!(texts(journal, "s").len(), 100);
    });
}

/// A fork comes before its parent goes, and keeps what it shares, or it finds no parent.
#[test]
fn forks_beside_a_pruning_keep_what_they_share() {
    let limits = JournalLimits { prune_sessions_max: 2, ..JournalLimits::default() };
    on_each_store_with(JournalOptions { limits, ..JournalOptions::default() }, |journal| {
        for n in 0..200 {
            let old = create(&format!("old{n}"), &["[0]", "[1]"]);
            put(journal, ended(with_blobs(old, &[&format!("body {n}")]))).unwrap();
        }
        // The newest go first, so that the two meet.
        let (report, forked) =
            std::thread::scope(|scope| {
                let pruner = scope.spawn(|| journal.prune(&all_ended()).unwrap());
                let put_fork =
                    |n: &i32| {
                        let append = fork(&format!("fork{n}"), &format!("old{n}"), 1, &["[\"f\"]"]);
                        let result = put(journal, append);
                        assert!(result.as_ref().err().is_none_or(|failure| {
                            failure.code == ErrorCode::SESSION_NOT_FOUND
                        }));
                        result.is_ok()
                    };
                let forked: Vec<i32> = (0..200).filter(put_fork).collect();
                (pruner.join().unwrap(), forked)
            });
        let count = forked.len() as u64;
        let (events, blobs) = (2 * 200 - 2 * count, 200 - count);
        // The block with the fork point stays whole.
        assert_eq!(report, PruneReport { sessions: 200, kept_for_forks: count, events, blobs });
        let query = SessionQuery { limit: 1_000, ..SessionQuery::default() };
        assert_eq!(journal.sessions(&query).unwrap().len(), forked.len());
        for n in 0..200 {
            assert_eq!(has(journal, &format!("body {n}")), forked.contains(&n));
        }
        for n in &forked {
            assert_eq!(texts(journal, &format!("fork{n}")), ["[0]", "[\"f\"]"]);
        }
    });
}

#[test]
fn compacting_changes_no_session() {
    on_each_store(|journal| {
        let text = format!("{{\"text\":\"{}\"}}", "x".repeat(10_000));
        for n in 0..100 {
            put(journal, with_snapshot(create(&format!("s{n}"), &[&text]))).unwrap();
            if n % 10 != 0 {
                put(journal, finish(&format!("s{n}"), 1, &["{}"])).unwrap();
            }
        }
        put(journal, fork("fork", "s0", 1, &["[1]"])).unwrap();
        prune(journal, &all_ended());
        let name = journal.identity().to_owned();
        let report = journal.compact().unwrap();
        assert!(report.bytes_after <= report.bytes_before, "{report:?}");
        assert_eq!(journal.identity(), name);
        assert_eq!(listed(journal).len(), 11);
        assert_eq!(texts(journal, "fork"), [text.as_str(), "[1]"]);
        put(journal, go_on("s10", 1, &["[1]"])).unwrap();
        assert_eq!(texts(journal, "s10"), [text.as_str(), "[1]"]);
        assert_eq!(snapshots(journal, "s10", None).len(), 1);
    });
}

#[test]
fn compacting_gives_room_back_to_the_system() {
    let place = Place::new();
    let journal = place.open();
    let text = format!("[\"{}\"]", "x".repeat(100_000));
    for n in 0..30 {
        put(&journal, ended(create(&format!("s{n}"), &[&text]))).unwrap();
    }
    journal.prune(&all_ended()).unwrap();
    let report = journal.compact().unwrap();
    assert!(report.bytes_before > 3_000_000, "{report:?}");
    assert!(report.bytes_after < 500_000, "{report:?}");
    assert_eq!(place.file().metadata().unwrap().len(), report.bytes_after);
    // The copy of a later commit is again kept in memory, and the file goes on as before.
    put(&journal, create("s", &["{}"])).unwrap();
    drop(journal);
    assert_eq!(texts(&place.open(), "s"), ["{}"]);
}

#[test]
fn a_journal_that_only_reads_counts_and_removes_nothing() {
    let place = Place::new();
    put(&place.open(), ended(create("s", &["{}"]))).unwrap();
    let read_only = JournalOptions { access: Access::ReadOnly, ..JournalOptions::default() };
    let journal = place.open_with(read_only);
    let dry = journal.prune(&PruneQuery { dry_run: true, ..all_ended() }).unwrap();
    assert_eq!(dry.sessions, 1);
    let refusals = [journal.prune(&all_ended()).err(), journal.compact().err()];
    for error in refusals {
        assert_eq!(*error.unwrap().code(), ErrorCode::JOURNAL_READ_ONLY);
    }
    assert_eq!(texts(&journal, "s"), ["{}"]);
}

/// Prunes from within the call that brings its result.
struct PruningSink {
    journal: Arc<dyn Journal>,
    done: Arc<Results>,
}

impl AckSink for PruningSink {
    fn acked(&self, acks: Vec<Acked>) {
        let refused = [self.journal.prune(&all_ended()).err(), self.journal.compact().err()];
        let answers =
            refused.into_iter().map(|error| Acked { token: 0, result: error.map_or(Ok(()), Err) });
        self.done.acked(acks.into_iter().chain(answers).collect());
    }
}

#[test]
fn a_sink_is_told_that_it_cannot_prune() {
    let place = Place::new();
    let journal = place.open();
    let (done, results) = Results::new();
    let sink = Arc::new(PruningSink { journal: journal.clone(), done });
    journal.append(Append { sink, ..create("s", &["{}"]) });
    let answers: Vec<_> = results
        .recv()
        .unwrap()
        .into_iter()
        .map(|ack| ack.result.map_err(|e| e.failure()))
        .collect();
    assert!(answers[0].is_ok());
    let hint = "hint: do it from another thread than the one that takes results";
    let name = format!("journal {}", place.file().display());
    for (answer, doing) in answers[1..].iter().zip(["pruned", "compacted"]) {
        let failure = answer.as_ref().unwrap_err();
        let text = format!("{name} cannot be {doing} from within a sink\n{hint}");
        assert_eq!((&failure.code, failure.to_text()), (&ErrorCode::INTERNAL, text));
    }
}
