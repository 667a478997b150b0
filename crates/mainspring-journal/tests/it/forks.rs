//! Forks: sessions that begin with the events of another, on every store.

use std::sync::Arc;

use mainspring_journal::{Append, AppendMode, Journal, SessionHead, SessionStatus};
use mainspring_session::{Epoch, ErrorCode, Origin, Seq};

use crate::contract::{check_ranges, on_each_store};
use crate::support::{
    Results, create, events, fork, go_on, id, put, refused, snapshots, texts, with_snapshot,
};

fn parent(journal: &Arc<dyn Journal>, session: &str) -> Option<(String, u64)> {
    let head = journal.head(&id(session)).unwrap().unwrap();
    head.parent.map(|(parent, seq)| (parent.to_string(), seq.0))
}

#[test]
fn a_fork_shares_first_events_and_goes_on_alone() {
    on_each_store(|journal| {
        put(journal, create("p", &["[0]", "[1]", "[2]"])).unwrap();
        put(journal, go_on("p", 3, &["[3]"])).unwrap();
        // In the middle of a block, at the end of one, and at the end of all.
        for (session, seq) in [("middle", 2), ("edge", 3), ("end", 4)] {
            put(journal, fork(session, "p", seq, &["[\"f\"]", "[\"g\"]"])).unwrap();
        }
        put(journal, go_on("p", 4, &["[4]", "[5]"])).unwrap();
        let own = Append { epoch: Epoch(2), ..go_on("middle", 4, &["[\"h\"]"]) };
        put(journal, own).unwrap();

        assert_eq!(texts(journal, "p"), ["[0]", "[1]", "[2]", "[3]", "[4]", "[5]"]);
        let middle = ["[0]", "[1]", "[\"f\"]", "[\"g\"]", "[\"h\"]"];
        let edge = ["[0]", "[1]", "[2]", "[\"f\"]", "[\"g\"]"];
        let end = ["[0]", "[1]", "[2]", "[3]", "[\"f\"]", "[\"g\"]"];
        check_ranges(journal, "middle", &middle.map(String::from));
        check_ranges(journal, "edge", &edge.map(String::from));
        check_ranges(journal, "end", &end.map(String::from));
        let text = |text: &str| text.to_owned();
        let owners = [
            (1, 1_000, 1, text("[1]")),
            (2, 2_000, 2, text("[\"f\"]")),
            (3, 2_000, 2, text("[\"g\"]")),
            (4, 2_000, 2, text("[\"h\"]")),
        ];
        assert_eq!(events(journal, "middle", 1), owners);
    });
}

#[test]
fn the_head_of_a_fork_names_its_parent() {
    on_each_store(|journal| {
        put(journal, create("p", &["[0]", "[1]"])).unwrap();
        let origin = Some(Origin("app:agent".to_owned()));
        let mode = AppendMode::Fork {
            parent: id("p"),
            agent: "support".to_owned(),
            origin: origin.clone(),
        };
        let status = SessionStatus::Waiting;
        put(journal, Append { mode, status, ..fork("f", "p", 1, &["{}", "{}"]) }).unwrap();
        let wanted = SessionHead {
            id: id("f"),
            epoch: Epoch(2),
            next_seq: Seq(3),
            status,
            agent: "support".to_owned(),
            origin,
            parent: Some((id("p"), Seq(1))),
            owner: None,
            created_us: 2_000,
            updated_us: 2_000,
        };
        assert_eq!(journal.head(&id("f")).unwrap(), Some(wanted.clone()));
        assert_eq!(journal.sessions(&Default::default()).unwrap()[0], wanted);
        assert_eq!(parent(journal, "p"), None);
    });
}

#[test]
fn forks_can_be_forked_at_any_event() {
    on_each_store(|journal| {
        put(journal, create("a", &["[0]", "[1]", "[2]", "[3]"])).unwrap();
        put(journal, fork("b", "a", 3, &["[\"b3\"]", "[\"b4\"]", "[\"b5\"]"])).unwrap();
        let deep = Append { epoch: Epoch(3), ..fork("own", "b", 5, &["[\"own\"]"]) };
        put(journal, deep).unwrap();
        put(journal, fork("above", "b", 2, &["[\"above\"]"])).unwrap();
        put(journal, fork("border", "b", 3, &["[\"border\"]"])).unwrap();
        let deeper = Append { epoch: Epoch(4), ..fork("deeper", "own", 6, &["[\"deeper\"]"]) };
        put(journal, deeper).unwrap();

        let own = ["[0]", "[1]", "[2]", "[\"b3\"]", "[\"b4\"]", "[\"own\"]"].map(String::from);
        check_ranges(journal, "own", &own);
        check_ranges(journal, "above", &["[0]", "[1]", "[\"above\"]"].map(String::from));
        check_ranges(journal, "border", &["[0]", "[1]", "[2]", "[\"border\"]"].map(String::from));
        let mut deeper = own.to_vec();
        deeper.push("[\"deeper\"]".to_owned());
        check_ranges(journal, "deeper", &deeper);

        // The parent is the session that the last shared event belongs to.
        let parents = ["own", "above", "border", "deeper"].map(|name| parent(journal, name));
        let wanted = [("b", 5), ("a", 2), ("a", 3), ("own", 6)];
        assert_eq!(parents, wanted.map(|(name, seq)| Some((name.to_owned(), seq))));
    });
}

#[test]
fn a_fork_must_be_new_and_follow_on_from_its_parent() {
    on_each_store(|journal| {
        put(journal, create("p", &["[0]", "[1]"])).unwrap();
        let take =
            Append { epoch: Epoch(2), mode: AppendMode::TakeOver, ..go_on("p", 2, &["[2]"]) };
        put(journal, take).unwrap();
        let at = |seq, epoch| Append { epoch: Epoch(epoch), ..fork("f", "p", seq, &["{}"]) };
        let cases = [
            (
                at(0, 1),
                "session \"f\" cannot share 0 events with session \"p\", 1 to 3 are allowed\n\
                        hint: fork at an event that the parent has",
            ),
            (
                at(4, 3),
                "session \"f\" cannot share 4 events with session \"p\", 1 to 3 are allowed\n\
                        hint: fork at an event that the parent has",
            ),
            (
                at(2, 1),
                "session \"f\" cannot be forked from session \"p\" with epoch 1, the last \
                        shared event allows epoch 2",
            ),
            (
                at(2, 3),
                "session \"f\" cannot be forked from session \"p\" with epoch 3, the last \
                        shared event allows epoch 2",
            ),
            (
                at(3, 2),
                "session \"f\" cannot be forked from session \"p\" with epoch 2, the last \
                        shared event allows epoch 3",
            ),
            (
                fork("p", "p", 1, &["{}"]),
                "session \"p\" cannot be created, it exists already\n\
                 hint: choose another session id, or continue the session",
            ),
        ];
        for (append, message) in cases {
            let failure = put(journal, append).unwrap_err();
            assert_eq!(failure.to_text(), message);
            assert_eq!(failure.code, ErrorCode::JOURNAL_CONFLICT);
        }
        let failure = put(journal, fork("f", "absent", 1, &["{}"])).unwrap_err();
        assert_eq!(failure.code, ErrorCode::SESSION_NOT_FOUND);
        assert_eq!(failure.message, "session \"absent\" is not in the journal");
        assert_eq!(journal.head(&id("f")).unwrap(), None);

        put(journal, at(3, 3)).unwrap();
        assert_eq!(refused(journal, at(3, 3)), ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(refused(journal, create("f", &["{}"])), ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(refused(journal, go_on("f", 4, &["{}"])), ErrorCode::JOURNAL_CONFLICT);
    });
}

#[test]
fn a_session_can_be_forked_by_the_next_append() {
    on_each_store(|journal| {
        let (sink, results) = Results::new();
        let appends = [
            create("p", &["[0]", "[1]"]),
            fork("f", "p", 1, &["[\"f\"]"]),
            Append { epoch: Epoch(3), ..fork("g", "f", 2, &["[\"g\"]"]) },
        ];
        for append in appends {
            journal.append(Append { sink: sink.clone(), ..append });
        }
        drop(sink);
        let acks: Vec<_> = results.iter().take(3).flatten().collect();
        assert!(acks.iter().all(|ack| ack.result.is_ok()), "{acks:?}");
        let mut done = acks.len();
        while done < 3 {
            done += results.recv().unwrap().len();
        }
        assert_eq!(texts(journal, "g"), ["[0]", "[\"f\"]", "[\"g\"]"]);
    });
}

#[test]
fn a_fork_has_the_snapshots_of_what_it_shares() {
    on_each_store(|journal| {
        put(journal, with_snapshot(create("p", &["[0]", "[1]"]))).unwrap();
        put(journal, with_snapshot(go_on("p", 2, &["[2]", "[3]"]))).unwrap();
        put(journal, with_snapshot(go_on("p", 4, &["[4]"]))).unwrap();
        put(journal, with_snapshot(fork("f", "p", 3, &["[\"f\"]"]))).unwrap();
        put(journal, fork("late", "p", 4, &["[\"l\"]"])).unwrap();
        let deep = Append { epoch: Epoch(3), ..fork("g", "f", 4, &["[\"g\"]"]) };
        put(journal, with_snapshot(deep)).unwrap();
        let of = |session: &str, seq: u64| (seq, format!("{session} {seq}"));
        assert_eq!(snapshots(journal, "f", None), [of("p", 2), of("f", 4)]);
        assert_eq!(snapshots(journal, "f", Some(3)), [of("p", 2)]);
        assert_eq!(snapshots(journal, "late", None), [of("p", 2), of("p", 4)]);
        assert_eq!(snapshots(journal, "g", None), [of("p", 2), of("f", 4), of("g", 5)]);
        check_ranges(journal, "g", &["[0]", "[1]", "[2]", "[\"f\"]", "[\"g\"]"].map(String::from));
    });
}
