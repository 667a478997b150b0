//! The contract of [`Journal`], run against every store.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use mainspring_journal::{
    Append, AppendMode, Journal, JournalLimits, JournalOptions, PruneQuery, SessionHead,
    SessionQuery, SessionStatus, open,
};
use mainspring_session::{BlobHash, Epoch, ErrorCode, Event, Origin, SCHEMA_VERSION, Seq};

use crate::server::Database;
use crate::support::{
    Place, all_ended, create, events, finish, go_on, id, ids, put, refused, snapshots, texts,
    with_snapshot,
};

/// Runs a test on a new, empty store of each kind.
pub fn on_each_store(test: impl Fn(&Arc<dyn Journal>)) {
    on_each_store_with(JournalOptions::default(), test);
}

/// The same with options.
pub fn on_each_store_with(options: JournalOptions, test: impl Fn(&Arc<dyn Journal>)) {
    test(&open("memory:", options.clone()).unwrap());
    test(&Place::new().open_with(options.clone()));
    test(&Database::new().open_with(options));
}

#[test]
fn events_come_back_in_order_with_time_and_owner() {
    on_each_store(|journal| {
        put(journal, create("s", &[r#"{"n":0}"#, r#"{"n":1}"#])).unwrap();
        put(journal, go_on("s", 2, &[r#"{"n":2}"#])).unwrap();
        let text = |n: u32| format!(r#"{{"n":{n}}}"#);
        assert_eq!(
            events(journal, "s", 0),
            [(0, 1_000, 1, text(0)), (1, 1_000, 1, text(1)), (2, 2_000, 1, text(2))]
        );
    });
}

#[test]
fn load_starts_at_any_position() {
    on_each_store(|journal| {
        put(journal, create("s", &["[0]", "[1]", "[2]"])).unwrap();
        put(journal, create("other", &["[9]"])).unwrap();
        put(journal, go_on("s", 3, &["[3]"])).unwrap();
        put(journal, go_on("s", 4, &["[4]", "[5]"])).unwrap();
        for from in 0..8 {
            let found: Vec<u64> = events(journal, "s", from).iter().map(|event| event.0).collect();
            let wanted: Vec<u64> = (from..6).collect();
            assert_eq!(found, wanted, "from {from}");
        }
    });
}

#[test]
fn unknown_kinds_and_fields_survive_byte_for_byte() {
    let odd = [
        r#"{"kind":"from_the_future","b":1,"a":[1.50,1e3,{"x":null}],"a":"twice"}"#,
        r#"{ "kind" : "session_cancelled", "reason":"é ☃ \u2028 \n", "extra": -0.0 }"#,
        "{\"kind\":\"input_received\",\"content\":[],\"big\":123456789012345678901234567890}",
    ];
    on_each_store(|journal| {
        put(journal, create("s", &odd)).unwrap();
        assert_eq!(texts(journal, "s"), odd);
        let first = journal.load(&id("s"), Seq(0)).unwrap().remove(0);
        assert_eq!(first.event().unwrap(), Event::Unknown);
    });
}

#[test]
fn head_follows_the_last_append() {
    on_each_store(|journal| {
        let mode = AppendMode::Create {
            agent: "support".to_owned(),
            origin: Some(Origin("app:agent".to_owned())),
        };
        put(journal, Append { mode, ..create("s", &["{}", "{}"]) }).unwrap();
        let mut expected = SessionHead {
            id: id("s"),
            epoch: Epoch(1),
            next_seq: Seq(2),
            status: SessionStatus::Open,
            agent: "support".to_owned(),
            origin: Some(Origin("app:agent".to_owned())),
            parent: None,
            owner: journal.is_shared().then(|| "test".to_owned()),
            created_us: 1_000,
            updated_us: 1_000,
        };
        assert_eq!(journal.head(&id("s")).unwrap(), Some(expected.clone()));

        put(journal, Append { status: SessionStatus::Failed, ..go_on("s", 2, &["{}"]) }).unwrap();
        expected.next_seq = Seq(3);
        expected.status = SessionStatus::Failed;
        expected.owner = None;
        expected.updated_us = 2_000;
        assert_eq!(journal.head(&id("s")).unwrap(), Some(expected));
        assert_eq!(journal.head(&id("absent")).unwrap(), None);
    });
}

#[test]
fn create_needs_a_new_session_at_its_beginning() {
    on_each_store(|journal| {
        let late = Append { expected_seq: Seq(1), ..create("s", &["{}"]) };
        let old = Append { epoch: Epoch(2), ..create("s", &["{}"]) };
        assert_eq!(refused(journal, late), ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(refused(journal, old), ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(journal.head(&id("s")).unwrap(), None);

        put(journal, create("s", &["[1]"])).unwrap();
        let failure = put(journal, create("s", &["[2]"])).unwrap_err();
        assert_eq!(
            failure.to_text(),
            "session \"s\" cannot be created, it exists already\n\
             hint: choose another session id, or continue the session"
        );
        assert_eq!(texts(journal, "s"), ["[1]"]);
    });
}

#[test]
fn continue_needs_a_session() {
    on_each_store(|journal| {
        let failure = put(journal, go_on("s", 0, &["{}"])).unwrap_err();
        assert_eq!(failure.code, ErrorCode::SESSION_NOT_FOUND);
        assert_eq!(
            failure.to_text(),
            "session \"s\" is not in the journal\n\
             hint: `mainspring sessions` lists the ones that are"
        );
        let error = journal.load(&id("s"), Seq(0)).unwrap_err();
        assert_eq!(*error.code(), ErrorCode::SESSION_NOT_FOUND);
    });
}

#[test]
fn a_wrong_position_is_refused() {
    on_each_store(|journal| {
        put(journal, create("s", &["[0]", "[1]"])).unwrap();
        let failure = put(journal, go_on("s", 1, &["[x]"])).unwrap_err();
        assert_eq!(failure.code, ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(
            failure.to_text(),
            "session \"s\" was appended to at event 1, the next is event 2\n\
             hint: another writer appended to the session, load it again"
        );
        assert_eq!(refused(journal, go_on("s", 3, &["[x]"])), ErrorCode::JOURNAL_CONFLICT);
        put(journal, go_on("s", 2, &["[2]"])).unwrap();
        assert_eq!(texts(journal, "s"), ["[0]", "[1]", "[2]"]);
    });
}

#[test]
fn taking_over_fences_the_old_owner() {
    on_each_store(|journal| {
        put(journal, create("s", &["[0]"])).unwrap();
        let take = |epoch, seq| Append {
            epoch: Epoch(epoch),
            mode: AppendMode::TakeOver,
            ..go_on("s", seq, &["[\"taken\"]"])
        };
        assert_eq!(refused(journal, take(1, 1)), ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(refused(journal, take(3, 1)), ErrorCode::JOURNAL_CONFLICT);
        put(journal, take(2, 1)).unwrap();

        let failure = put(journal, go_on("s", 2, &["[\"old owner\"]"])).unwrap_err();
        assert_eq!(failure.code, ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(
            failure.to_text(),
            "session \"s\" was appended to with epoch 1, the journal allows epoch 2\n\
             hint: another owner took the session over, load it again"
        );
        assert_eq!(refused(journal, take(2, 2)), ErrorCode::JOURNAL_CONFLICT);
        put(journal, Append { epoch: Epoch(2), ..go_on("s", 2, &["[2]"]) }).unwrap();
        let owners: Vec<u64> = events(journal, "s", 0).iter().map(|event| event.2).collect();
        assert_eq!(owners, [1, 2, 2]);
    });
}

#[test]
fn of_many_takers_one_wins() {
    on_each_store(|journal| {
        put(journal, create("s", &["{}"])).unwrap();
        let results: Vec<bool> = std::thread::scope(|scope| {
            let taker = || {
                let take = Append {
                    epoch: Epoch(2),
                    mode: AppendMode::TakeOver,
                    ..go_on("s", 1, &["{}"])
                };
                put(journal, take).is_ok()
            };
            let takers: Vec<_> = (0..8).map(|_| scope.spawn(taker)).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|won| **won).count(), 1);
    });
}

#[test]
fn blobs_are_stored_once_with_their_append() {
    on_each_store(|journal| {
        let body: Arc<[u8]> = vec![7; 100_000].into();
        let hash = BlobHash::of(&body);
        let blobs = vec![(hash.clone(), body.clone())];
        let refused_append = Append { blobs: blobs.clone(), ..go_on("absent", 0, &["{}"]) };
        refused(journal, refused_append);
        assert_eq!(journal.blob(&hash).unwrap(), None);

        put(journal, Append { blobs: blobs.clone(), ..create("a", &["{}"]) }).unwrap();
        put(journal, Append { blobs, ..create("b", &["{}"]) }).unwrap();
        assert_eq!(journal.blob(&hash).unwrap().as_deref(), Some(&body[..]));
        assert_eq!(journal.blob(&BlobHash::of(b"other")).unwrap(), None);
    });
}

#[test]
fn open_sessions_are_those_with_a_turn_to_continue() {
    use SessionStatus::{Cancelled, Failed, Finished, Open};
    on_each_store(|journal| {
        let first = [("a", Open), ("b", Finished), ("c", Open), ("d", Failed), ("e", Cancelled)];
        for (name, status) in first {
            put(journal, Append { status, ..create(name, &["{}"]) }).unwrap();
        }
        for (name, status) in [("a", Finished), ("d", Open), ("c", Open)] {
            put(journal, Append { status, ..go_on(name, 1, &["{}"]) }).unwrap();
        }
        let open = journal.open_sessions().unwrap();
        let found: Vec<(&str, u64)> =
            open.iter().map(|head| (head.id.as_str(), head.next_seq.0)).collect();
        assert_eq!(found, [("c", 2), ("d", 2)]);
    });
}

#[test]
fn sessions_are_listed_newest_first_page_by_page() {
    let limits = JournalLimits { sessions_page_max: 3, ..JournalLimits::default() };
    let options = JournalOptions { limits, ..JournalOptions::default() };
    on_each_store_with(options, |journal| {
        for n in 0..7 {
            let status = if n % 2 == 0 { SessionStatus::Open } else { SessionStatus::Finished };
            put(journal, Append { status, ..create(&format!("s{n}"), &["{}"]) }).unwrap();
        }
        put(journal, Append { status: SessionStatus::Open, ..go_on("s0", 1, &["{}"]) }).unwrap();
        let page = |status, limit, before: Option<&str>| -> Vec<String> {
            let query = SessionQuery { status, limit, before: before.map(id) };
            let heads = journal.sessions(&query).unwrap();
            heads.iter().map(|head| head.id.to_string()).collect()
        };
        assert_eq!(page(None, 2, None), ["s6", "s5"]);
        assert_eq!(page(None, 2, Some("s5")), ["s4", "s3"]);
        assert_eq!(page(None, 100, None), ["s6", "s5", "s4"], "no more than a page");
        assert_eq!(page(None, 100, Some("s0")), [""; 0]);
        assert_eq!(page(Some(SessionStatus::Open), 2, Some("s6")), ["s4", "s2"]);
        assert_eq!(page(Some(SessionStatus::Finished), 2, None), ["s5", "s3"]);
        assert_eq!(page(Some(SessionStatus::Failed), 2, None), [""; 0]);

        let lost = SessionQuery { before: Some(id("absent")), ..SessionQuery::default() };
        let error = journal.sessions(&lost).unwrap_err();
        assert_eq!(*error.code(), ErrorCode::SESSION_NOT_FOUND);
    });
}

#[test]
fn waiting_sessions_are_listed_apart_from_open_ones() {
    let waiting = |append| Append { status: SessionStatus::Waiting, ..append };
    on_each_store(|journal| {
        for name in ["a", "b", "c", "d"] {
            put(journal, create(name, &["{}"])).unwrap();
        }
        for name in ["a", "c", "d"] {
            put(journal, waiting(go_on(name, 1, &["{}"]))).unwrap();
        }
        put(journal, finish("d", 2, &["{}"])).unwrap();
        let page = |status, before: Option<&str>| {
            let query = SessionQuery { status, limit: 2, before: before.map(id) };
            journal.sessions(&query).unwrap()
        };
        assert_eq!(ids(&page(Some(SessionStatus::Waiting), None)), ["c", "a"]);
        assert_eq!(ids(&page(Some(SessionStatus::Waiting), Some("c"))), ["a"]);
        assert_eq!(ids(&page(Some(SessionStatus::Open), None)), ["b"]);
        assert_eq!(ids(&page(None, None)), ["d", "c"]);
        assert_eq!(ids(&journal.open_sessions().unwrap()), ["b"]);
        assert_eq!(journal.head(&id("a")).unwrap().unwrap().status, SessionStatus::Waiting);

        put(journal, go_on("a", 2, &["{}"])).unwrap();
        assert_eq!(ids(&page(Some(SessionStatus::Waiting), None)), ["c"]);
        assert_eq!(ids(&journal.open_sessions().unwrap()), ["a", "b"]);
    });
}

#[test]
fn each_event_says_in_which_format_it_was_written() {
    on_each_store(|journal| {
        put(journal, create("s", &["[0]", "[1]"])).unwrap();
        let records = journal.load(&id("s"), Seq(0)).unwrap();
        let schemas: Vec<u32> = records.iter().map(|record| record.schema).collect();
        assert_eq!(schemas, [SCHEMA_VERSION; 2]);
    });
}

#[test]
fn every_range_of_a_session_can_be_read() {
    on_each_store(|journal| {
        put(journal, create("s", &["[0]", "[1]", "[2]"])).unwrap();
        put(journal, with_snapshot(go_on("s", 3, &["[3]", "[4]"]))).unwrap();
        put(journal, go_on("s", 5, &["[5]"])).unwrap();
        put(journal, with_snapshot(go_on("s", 6, &["[6]"]))).unwrap();
        put(journal, go_on("s", 7, &["[7]", "[8]"])).unwrap();
        check_ranges(journal, "s", &texts(journal, "s"));
        assert_eq!(texts(journal, "s").len(), 9);
    });
}

/// Reads every range of a session and compares it with all of its events.
pub fn check_ranges(journal: &Arc<dyn Journal>, session: &str, all: &[String]) {
    let end = all.len();
    for from in 0..end + 2 {
        for until in 0..end + 2 {
            let (from_seq, until_seq) = (Seq(from as u64), Some(Seq(until as u64)));
            let found = journal.load_range(&id(session), from_seq, until_seq).unwrap();
            let found: Vec<(u64, &str)> =
                found.iter().map(|record| (record.seq.0, record.json.get())).collect();
            let numbered = all.iter().enumerate().map(|(seq, text)| (seq as u64, text.as_str()));
            let wanted: Vec<(u64, &str)> =
                numbered.skip(from).take(until.saturating_sub(from)).collect();
            assert_eq!(found, wanted, "{session} from {from} until {until}");
        }
    }
}

#[test]
fn snapshots_come_back_up_to_a_position() {
    on_each_store(|journal| {
        put(journal, with_snapshot(create("s", &["[0]", "[1]"]))).unwrap();
        put(journal, go_on("s", 2, &["[2]"])).unwrap();
        put(journal, with_snapshot(go_on("s", 3, &["[3]"]))).unwrap();
        put(journal, with_snapshot(create("other", &["[0]"]))).unwrap();
        refused(journal, with_snapshot(go_on("s", 3, &["[x]"])));
        let first = (2, "s 2".to_owned());
        let both = vec![first.clone(), (4, "s 4".to_owned())];
        for (until, wanted) in [
            (None, both.clone()),
            (Some(9), both.clone()),
            (Some(4), both),
            (Some(3), vec![first.clone()]),
            (Some(2), vec![first]),
            (Some(1), vec![]),
        ] {
            assert_eq!(snapshots(journal, "s", until), wanted, "until {until:?}");
        }
        let error = journal.snapshots(&id("absent"), None).unwrap_err();
        assert_eq!(*error.code(), ErrorCode::SESSION_NOT_FOUND);
    });
}

#[test]
fn a_snapshot_counts_towards_the_size_of_its_append() {
    let limits = JournalLimits { append_bytes_max: 100, ..JournalLimits::default() };
    let options = JournalOptions { limits, ..JournalOptions::default() };
    on_each_store_with(options, |journal| {
        let append = |bytes| Append { snapshot: Some(vec![0; bytes]), ..create("s", &["{}"]) };
        assert_eq!(refused(journal, append(99)).as_str(), "journal_limit_reached");
        put(journal, append(98)).unwrap();
        assert_eq!(journal.stats().bytes, 100);
    });
}

#[test]
fn a_store_has_a_name_of_its_own() {
    let names = RefCell::new(Vec::new());
    on_each_store(|journal| names.borrow_mut().push(journal.identity().to_owned()));
    on_each_store(|journal| names.borrow_mut().push(journal.identity().to_owned()));
    let names = names.into_inner();
    assert!(names.iter().all(|name| name.len() >= 32), "{names:?}");
    let different: HashSet<&String> = names.iter().collect();
    assert_eq!(different.len(), names.len(), "{names:?}");
}

#[test]
fn an_append_that_is_too_large_is_refused_alone() {
    let limits = JournalLimits { append_bytes_max: 1_000, ..JournalLimits::default() };
    let options = JournalOptions { limits, ..JournalOptions::default() };
    on_each_store_with(options, |journal| {
        put(journal, create("s", &["{}"])).unwrap();
        let long = format!("[\"{}\"]", "x".repeat(996));
        put(journal, go_on("s", 1, &[&long])).unwrap();
        let longer = format!("[\"{}\"]", "x".repeat(997));
        let failure = put(journal, go_on("s", 2, &[&longer])).unwrap_err();
        assert_eq!(
            failure.to_text(),
            "append to session \"s\" has 1001 bytes, limit 1000 bytes\n\
             hint: return less from tools, or raise JournalLimits.append_bytes_max"
        );
        assert_eq!(failure.code.as_str(), "journal_limit_reached");
        let body: Arc<[u8]> = vec![0; 999].into();
        let blobs = vec![(BlobHash::of(&body), body)];
        let with_blob = Append { blobs, ..go_on("s", 2, &["{}"]) };
        assert_eq!(refused(journal, with_blob).as_str(), "journal_limit_reached");
    });
}

#[test]
fn a_block_that_is_not_what_it_says_is_refused() {
    on_each_store(|journal| {
        let wrong_count = Append { count: 3, ..create("s", &["{}", "{}"]) };
        let none = Append { count: 0, events: Vec::new(), ..create("s", &["{}"]) };
        let empty = Append { count: 1, events: Vec::new(), ..create("s", &["{}"]) };
        for append in [wrong_count, none, empty] {
            assert_eq!(refused(journal, append), ErrorCode::INTERNAL);
        }
        assert_eq!(journal.head(&id("s")).unwrap(), None);
    });
}

#[test]
fn a_session_of_a_newer_event_format_is_refused_from_its_beginning() {
    on_each_store(|journal| {
        put(journal, create("s", &[r#"{"kind":"session_started","schema":4}"#, "[1]"])).unwrap();
        let failure = journal.load(&id("s"), Seq(0)).unwrap_err().failure();
        assert_eq!(failure.code, ErrorCode::JOURNAL_NEWER);
        assert_eq!(
            failure.to_text(),
            "session \"s\" has event format 4, this version reads up to 3\n\
             hint: use the version of mainspring that wrote it, or a newer one"
        );
        assert_eq!(events(journal, "s", 1).len(), 1);
    });
}

#[test]
fn stats_count_what_was_stored() {
    on_each_store(|journal| {
        put(journal, create("s", &["[1]", "[2]"])).unwrap();
        refused(journal, create("s", &["[3]"]));
        put(journal, go_on("s", 2, &["[3]"])).unwrap();
        let stats = journal.stats();
        assert_eq!((stats.commits, stats.appends, stats.events, stats.bytes), (2, 2, 3, 10));
    });
}

#[test]
fn a_closed_journal_refuses_everything_and_closes_again() {
    on_each_store(|journal| {
        put(journal, create("s", &["{}"])).unwrap();
        journal.close().unwrap();
        journal.close().unwrap();
        assert_eq!(refused(journal, go_on("s", 1, &["{}"])), ErrorCode::ENGINE_CLOSED);
        let closed = |error: mainspring_journal::JournalError| {
            assert_eq!(*error.code(), ErrorCode::ENGINE_CLOSED);
        };
        closed(journal.load(&id("s"), Seq(0)).unwrap_err());
        closed(journal.head(&id("s")).unwrap_err());
        closed(journal.sessions(&SessionQuery::default()).unwrap_err());
        closed(journal.open_sessions().unwrap_err());
        closed(journal.blob(&BlobHash::of(b"")).unwrap_err());
        closed(journal.snapshots(&id("s"), None).unwrap_err());
        closed(journal.claim(&["agent".to_owned()], 1).unwrap_err());
        closed(journal.release(&[id("s")]).unwrap_err());
        closed(journal.prune(&all_ended()).unwrap_err());
        closed(journal.prune(&PruneQuery { dry_run: true, ..all_ended() }).unwrap_err());
        closed(journal.compact().unwrap_err());
    });
}
