//! Who owns a session: claims and releases, on every store.

use std::sync::Arc;

use mainspring_journal::{
    Access, Append, AppendMode, Hold, Journal, JournalOptions, SessionStatus,
};
use mainspring_session::{Epoch, ErrorCode};

use crate::contract::{on_each_store, on_each_store_with};
use crate::support::{Gate, Place, create, finish, fork, go_on, id, ids, put, refused};

fn claim(journal: &Arc<dyn Journal>, limit: u32) -> Vec<String> {
    let heads = journal.claim(&["agent".to_owned()], limit).unwrap();
    ids(&heads).into_iter().map(str::to_owned).collect()
}

fn take_over(session: &str, epoch: u64, seq: u64) -> Append {
    Append { epoch: Epoch(epoch), mode: AppendMode::TakeOver, ..go_on(session, seq, &["{}"]) }
}

fn released(append: Append) -> Append {
    Append { release: true, ..append }
}

#[test]
fn open_sessions_that_nobody_owns_can_be_claimed_once() {
    on_each_store(|journal| {
        for name in ["a", "b", "c", "d"] {
            put(journal, released(create(name, &["{}"]))).unwrap();
        }
        put(journal, create("mine", &["{}"])).unwrap();
        assert_eq!(claim(journal, 0), [""; 0]);
        let heads = journal.claim(&["agent".to_owned()], 1).unwrap();
        assert_eq!(heads, [journal.head(&id("a")).unwrap().unwrap()]);
        assert_eq!(claim(journal, 2), ["b", "c"]);
        assert_eq!(claim(journal, 9), ["d"]);
        assert_eq!(claim(journal, 9), [""; 0]);

        put(journal, take_over("b", 2, 1)).unwrap();
        assert_eq!(claim(journal, 9), [""; 0]);
        journal.release(&[id("b"), id("d"), id("absent")]).unwrap();
        assert_eq!(claim(journal, 9), ["b", "d"]);
    });
}

#[test]
fn only_sessions_of_the_named_agents_are_claimed() {
    on_each_store(|journal| {
        for (name, agent) in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")] {
            let mode = AppendMode::Create { agent: agent.to_owned(), origin: None };
            put(journal, released(Append { mode, ..create(name, &["{}"]) })).unwrap();
        }
        let claim = |agents: &[&str]| {
            let agents: Vec<String> = agents.iter().map(|&agent| agent.to_owned()).collect();
            let heads = journal.claim(&agents, 9).unwrap();
            ids(&heads).join(" ")
        };
        assert_eq!(claim(&[]), "");
        assert_eq!(claim(&["x", "z"]), "a c d");
        assert_eq!(claim(&["x", "y", "z"]), "b");
    });
}

#[test]
fn an_append_decides_who_owns_its_session() {
    on_each_store(|journal| {
        let waiting = |append| Append { status: SessionStatus::Waiting, ..append };
        put(journal, create("a", &["{}"])).unwrap();
        put(journal, fork("b", "a", 1, &["{}"])).unwrap();
        put(journal, create("c", &["{}"])).unwrap();
        put(journal, create("d", &["{}"])).unwrap();
        assert_eq!(claim(journal, 9), [""; 0], "created, forked");

        put(journal, released(go_on("a", 1, &["{}"]))).unwrap();
        put(journal, waiting(go_on("c", 1, &["{}"]))).unwrap();
        put(journal, finish("d", 1, &["{}"])).unwrap();
        assert_eq!(claim(journal, 9), ["a"], "only released ones that are open");

        // A refused append changes nothing.
        assert_eq!(refused(journal, released(go_on("b", 9, &["{}"]))), ErrorCode::JOURNAL_CONFLICT);
        assert_eq!(claim(journal, 9), [""; 0]);

        put(journal, released(go_on("c", 2, &["{}"]))).unwrap();
        put(journal, go_on("d", 2, &["{}"])).unwrap();
        assert_eq!(claim(journal, 9), ["c"], "gone on with");
        put(journal, released(take_over("a", 2, 2))).unwrap();
        put(journal, go_on("c", 3, &["{}"])).unwrap();
        assert_eq!(claim(journal, 9), ["a"], "taken over and let go of");
    });
}

#[test]
fn of_many_claims_at_once_each_session_goes_to_one() {
    on_each_store(|journal| {
        for n in 0..200 {
            put(journal, released(create(&format!("s{n:03}"), &["{}"]))).unwrap();
        }
        let claimer = || {
            let mut all = Vec::new();
            loop {
                let some = claim(journal, 7);
                if some.is_empty() {
                    return all;
                }
                for session in &some {
                    put(journal, take_over(session, 2, 1)).unwrap();
                }
                all.extend(some);
            }
        };
        let mut claimed = std::thread::scope(|scope| {
            let claimers: Vec<_> = (0..4).map(|_| scope.spawn(claimer)).collect();
            claimers.into_iter().flat_map(|claimer| claimer.join().unwrap()).collect::<Vec<_>>()
        });
        claimed.sort_unstable();
        let wanted: Vec<String> = (0..200).map(|n| format!("s{n:03}")).collect();
        assert_eq!(claimed, wanted);
    });
}

#[test]
fn what_is_owned_may_be_acted_on() {
    on_each_store(|journal| {
        let tenure = journal.tenure();
        put(journal, create("s", &["{}"])).unwrap();
        assert_eq!(journal.hold(tenure), Hold::Held);
        assert_eq!(journal.tenure(), tenure);
    });
}

#[test]
fn a_store_of_one_process_has_no_owners_to_tell() {
    let place = Place::new();
    let memory = mainspring_journal::open("memory:", JournalOptions::default()).unwrap();
    for journal in [memory, place.open()] {
        put(&journal, create("s", &["{}"])).unwrap();
        assert!(!journal.is_shared());
        assert_eq!((journal.tenure(), journal.hold(1)), (1, Hold::Held));
        assert_eq!(journal.head(&id("s")).unwrap().unwrap().owner, None);
    }
}

/// A process that is gone owns nothing: whoever opens the file next may claim what was open.
#[test]
fn open_sessions_of_a_closed_journal_can_be_claimed() {
    let place = Place::new();
    let journal = place.open();
    put(&journal, create("a", &["{}"])).unwrap();
    put(&journal, create("b", &["{}"])).unwrap();
    put(&journal, finish("b", 1, &["{}"])).unwrap();
    assert_eq!(claim(&journal, 9), [""; 0]);
    drop(journal);
    assert_eq!(claim(&place.open(), 9), ["a"]);
}

#[test]
fn nothing_is_claimed_through_a_journal_that_only_reads() {
    let place = Place::new();
    put(&place.open(), create("a", &["{}"])).unwrap();
    let read_only = JournalOptions { access: Access::ReadOnly, ..JournalOptions::default() };
    let journal = place.open_with(read_only);
    let error = journal.claim(&["agent".to_owned()], 9).unwrap_err();
    assert_eq!(*error.code(), ErrorCode::JOURNAL_READ_ONLY);
    journal.release(&[id("a")]).unwrap();
}

/// Several appends of one session in one commit: the last one decides.
#[test]
fn the_last_append_of_a_commit_decides_who_owns_its_session() {
    on_each_store_with(JournalOptions::default(), |journal| {
        put(journal, released(create("warm", &["{}"]))).unwrap();
        if journal.identity().starts_with("memory") {
            return;
        }
        let gate = Gate::close(journal);
        let appends = [
            create("kept", &["{}"]),
            released(go_on("kept", 1, &["{}"])),
            go_on("kept", 2, &["{}"]),
            create("left", &["{}"]),
            go_on("left", 1, &["{}"]),
            released(go_on("left", 2, &["{}"])),
        ];
        for append in appends {
            journal.append(append);
        }
        gate.open();
        put(journal, finish("gate", 1, &["{}"])).unwrap();
        // Where others could have taken it meanwhile, whoever let go of it has to take it over.
        let kept = journal.is_shared().then_some("kept");
        let expected: Vec<&str> = ["warm"].into_iter().chain(kept).chain(["left"]).collect();
        assert_eq!(claim(journal, 9), expected);
    });
}
