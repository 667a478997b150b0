//! Several processes on one PostgreSQL database: who owns what, and what becomes of it when one is
//! gone, cut off or slow.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use mainspring_journal::{Append, AppendMode, Hold, Journal, JournalOptions, open};
use mainspring_session::{Epoch, ErrorCode};

use crate::proxy::Proxy;
use crate::server::{Database, Server, node};
use crate::support::{Results, create, finish, go_on, id, ids, put, refused, texts};

const CHILD: &str = "MAINSPRING_JOURNAL_TEST_DATABASE";

fn claim(journal: &Arc<dyn Journal>) -> Vec<String> {
    let heads = journal.claim(&["agent".to_owned()], 1_000).unwrap();
    ids(&heads).into_iter().map(str::to_owned).collect()
}

/// Claims until something comes.
fn await_claim(journal: &Arc<dyn Journal>) -> Vec<String> {
    loop {
        let claimed = claim(journal);
        if !claimed.is_empty() {
            return claimed;
        }
    }
}

fn take_over(session: &str, epoch: u64, seq: u64) -> Append {
    Append { epoch: Epoch(epoch), mode: AppendMode::TakeOver, ..go_on(session, seq, &["[9]"]) }
}

fn released(append: Append) -> Append {
    Append { release: true, ..append }
}

#[test]
fn a_session_that_another_process_runs_is_left_to_it() {
    let database = Database::new();
    let (a, b) = (database.open_node("a", 60_000), database.open_node("b", 60_000));
    assert!(a.is_shared());
    assert_eq!(a.identity(), b.identity());
    put(&a, create("s", &["[0]"])).unwrap();
    assert_eq!(b.head(&id("s")).unwrap().unwrap().owner.as_deref(), Some("a"));

    let failure = put(&b, take_over("s", 2, 1)).unwrap_err();
    assert_eq!(failure.code, ErrorCode::SESSION_OWNED);
    assert!(failure.retryable);
    assert_eq!(
        failure.to_text(),
        "session \"s\" cannot be taken over, \"a\" runs it until its lease ends\n\
         hint: try again later, or stop that process"
    );
    let failure = put(&b, go_on("s", 1, &["[1]"])).unwrap_err();
    assert_eq!(failure.code, ErrorCode::JOURNAL_CONFLICT);
    assert_eq!(
        failure.to_text(),
        "session \"s\" was appended to by a process that does not own it, its owner is \"a\"\n\
         hint: this process let go of it, or its lease has run out"
    );
    assert_eq!(claim(&b), [""; 0]);
    b.release(&[id("s")]).unwrap();
    put(&a, go_on("s", 1, &["[1]"])).unwrap();

    put(&a, released(go_on("s", 2, &["[2]"]))).unwrap();
    assert_eq!(a.head(&id("s")).unwrap().unwrap().owner, None);
    assert_eq!(refused(&a, go_on("s", 3, &["[3]"])), ErrorCode::JOURNAL_CONFLICT);
    put(&b, take_over("s", 2, 3)).unwrap();
    assert_eq!(refused(&a, take_over("s", 3, 4)), ErrorCode::SESSION_OWNED);
    put(&b, Append { epoch: Epoch(2), ..finish("s", 4, &["[4]"]) }).unwrap();

    // A turn that has ended has no owner, so the next turn is anybody's.
    put(&a, take_over("s", 3, 5)).unwrap();
    assert_eq!(texts(&b, "s").len(), 6);
}

#[test]
fn a_claimed_session_is_no_longer_the_old_owners() {
    let database = Database::new();
    let (a, b) = (database.open_node("a", 60_000), database.open_node("b", 60_000));
    put(&a, create("s", &["[0]"])).unwrap();
    a.release(&[id("s")]).unwrap();
    assert_eq!(claim(&b), ["s"]);
    // The epoch is still the same: only the owner tells the two apart.
    assert_eq!(refused(&a, go_on("s", 1, &["[1]"])), ErrorCode::JOURNAL_CONFLICT);
    assert_eq!(refused(&a, take_over("s", 2, 1)), ErrorCode::SESSION_OWNED);
    put(&b, take_over("s", 2, 1)).unwrap();
}

#[test]
fn of_several_processes_that_claim_at_once_each_session_goes_to_one() {
    let database = Database::new();
    let nodes: Vec<_> = (0..4).map(|n| database.open_node(&format!("n{n}"), 60_000)).collect();
    for n in 0..300 {
        put(&nodes[0], released(create(&format!("s{n:03}"), &["{}"]))).unwrap();
    }
    let claimer = |journal: &Arc<dyn Journal>| {
        let mut all = Vec::new();
        while all.len() < 300 {
            let heads = journal.claim(&["agent".to_owned()], 7).unwrap();
            if heads.is_empty() {
                break;
            }
            for head in heads {
                put(journal, take_over(head.id.as_str(), 2, 1)).unwrap();
                all.push(head.id.to_string());
            }
        }
        all
    };
    let claimed: Vec<Vec<String>> = std::thread::scope(|scope| {
        let claimers: Vec<_> =
            nodes.iter().map(|node| scope.spawn(move || claimer(node))).collect();
        claimers.into_iter().map(|claimer| claimer.join().unwrap()).collect()
    });
    // None may see nothing free while another holds the rest; what is left is left to be claimed.
    let mut all: Vec<String> = claimed.concat();
    all.extend(claimer(&nodes[0]));
    all.sort_unstable();
    let wanted: Vec<String> = (0..300).map(|n| format!("s{n:03}")).collect();
    assert_eq!(all, wanted);
}

#[test]
fn of_several_processes_that_take_over_at_once_one_wins() {
    let database = Database::new();
    let nodes: Vec<_> = (0..4).map(|n| database.open_node(&format!("n{n}"), 60_000)).collect();
    for n in 0..20 {
        let name = format!("s{n}");
        put(&nodes[0], released(create(&name, &["{}"]))).unwrap();
        let won: Vec<bool> = std::thread::scope(|scope| {
            let taker = |node| put(node, take_over(&name, 2, 1)).is_ok();
            let takers: Vec<_> =
                nodes.iter().map(|node| scope.spawn(move || taker(node))).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    }
}

#[test]
fn a_process_that_closes_lets_go_at_once() {
    let database = Database::new();
    let (a, b) = (database.open_node("a", 3_600_000), database.open_node("b", 3_600_000));
    let tenure = a.tenure();
    put(&a, create("s", &["[0]"])).unwrap();
    a.close().unwrap();
    assert_eq!(a.hold(tenure), Hold::Lost);
    assert_eq!(claim(&b), ["s"]);
    assert_eq!(database.sql("SELECT name FROM mainspring_nodes"), ["b"]);
    assert_eq!(database.sql("SELECT count(*) FROM mainspring_beats"), ["1"]);
}

/// A process killed for real: the others get its sessions once its lease has ended.
#[test]
fn sessions_of_a_killed_process_go_to_another() {
    if let Ok(url) = std::env::var(CHILD) {
        let journal = open(&url, node("child", 700)).unwrap();
        for n in 0..50 {
            put(&journal, create(&format!("s{n:02}"), &["[0]"])).unwrap();
        }
        put(&journal, finish("s00", 1, &["[1]"])).unwrap();
        println!("ready");
        loop {
            std::thread::park();
        }
    }
    let database = Database::new();
    let heir = database.open_node("heir", 700);
    let name = "postgres_nodes::sessions_of_a_killed_process_go_to_another";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, database.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("ready")));
    assert_eq!(claim(&heir), [""; 0]);
    child.kill().unwrap();
    child.wait().unwrap();
    let wanted: Vec<String> = (1..50).map(|n| format!("s{n:02}")).collect();
    assert_eq!(await_claim(&heir), wanted);
    put(&heir, take_over("s01", 2, 1)).unwrap();
    assert_eq!(database.sql("SELECT name FROM mainspring_nodes WHERE live"), ["heir"]);
}

/// A process that is cut off, while others go on: it stops by its own clock before anybody else
/// begins, and what it hands in afterwards is refused.
#[test]
fn a_process_that_is_cut_off_stops_before_another_begins() {
    let database = Database::new();
    let proxy = Proxy::start(Server::shared().port());
    let zombie = open(&database.url_at(proxy.port()), node("zombie", 1_000)).unwrap();
    let heir = database.open_node("heir", 1_000);
    let tenure = zombie.tenure();
    put(&zombie, create("s", &["[0]"])).unwrap();
    put(&zombie, create("t", &["[0]"])).unwrap();
    proxy.hold(true);
    let claimed = await_claim(&heir);
    assert_ne!(zombie.hold(tenure), Hold::Held, "another has begun");
    assert_eq!(claimed, ["s", "t"]);
    put(&heir, take_over("s", 2, 1)).unwrap();

    // What it wants to say reaches the server late.
    let (sink, results) = Results::new();
    for (token, name) in [(0, "s"), (1, "t")] {
        zombie.append(Append { token, sink: sink.clone(), ..go_on(name, 1, &["[\"late\"]"]) });
    }
    proxy.hold(false);
    let mut late = 0;
    while late < 2 {
        for ack in results.recv().unwrap() {
            assert_eq!(*ack.result.unwrap_err().code(), ErrorCode::JOURNAL_CONFLICT);
            late += 1;
        }
    }
    wait(|| zombie.hold(tenure) == Hold::Lost);
    wait(|| zombie.hold(zombie.tenure()) == Hold::Held);
    assert_eq!(zombie.tenure(), tenure + 1);
    // It begins anew, as another.
    put(&zombie, create("u", &["[0]"])).unwrap();
    assert_eq!(zombie.head(&id("u")).unwrap().unwrap().owner.as_deref(), Some("zombie"));
    assert_eq!(refused(&zombie, take_over("t", 2, 1)), ErrorCode::SESSION_OWNED);
    put(&heir, take_over("t", 2, 1)).unwrap();
    assert_eq!(texts(&zombie, "s"), ["[0]", "[9]"]);
}

/// A process is declared dead while its appends are under way: they are stored before, or not at
/// all, and whoever takes over sees them.
#[test]
fn whoever_is_declared_dead_has_ended_its_appends() {
    let database = Database::new();
    let a = database.open_node("a", 60_000);
    let b = database.open_node("b", 60_000);
    put(&a, create("s", &["[0]"])).unwrap();
    // What the reaper does, by hand; then an append of the dead.
    database.sql(
        "DELETE FROM mainspring_beats WHERE node = (SELECT id FROM mainspring_nodes WHERE name = 'a')",
    );
    database.sql("UPDATE mainspring_nodes SET live = false WHERE name = 'a'");
    database.sql("UPDATE mainspring_sessions SET owner = NULL");
    let tenure = a.tenure();
    let failure = put(&a, go_on("s", 1, &["[\"dead\"]"])).unwrap_err();
    assert_eq!(failure.code, ErrorCode::JOURNAL_CONFLICT);
    assert_eq!(a.hold(tenure), Hold::Lost);
    put(&b, take_over("s", 2, 1)).unwrap();
    // A beginning goes on as the next node, and is not refused.
    database.sql("DELETE FROM mainspring_beats");
    database.sql("UPDATE mainspring_nodes SET live = false");
    put(&a, create("t", &["[0]"])).unwrap();
    assert_eq!(a.tenure(), tenure + 2);
}

#[test]
fn a_journal_that_only_reads_is_no_node() {
    let database = Database::new();
    let a = database.open_node("a", 60_000);
    put(&a, create("s", &["[0]"])).unwrap();
    let access = mainspring_journal::Access::ReadOnly;
    let reader = database.open_with(JournalOptions { access, ..node("reader", 60_000) });
    assert_eq!(texts(&reader, "s"), ["[0]"]);
    assert_eq!(refused(&reader, go_on("s", 1, &["[1]"])), ErrorCode::JOURNAL_READ_ONLY);
    let error = reader.claim(&["agent".to_owned()], 1).unwrap_err();
    assert_eq!(*error.code(), ErrorCode::JOURNAL_READ_ONLY);
    assert_ne!(reader.hold(reader.tenure()), Hold::Held);
    reader.close().unwrap();
    assert_eq!(database.sql("SELECT name FROM mainspring_nodes"), ["a"]);
}

/// Waits for something that another thread brings about.
fn wait(mut until: impl FnMut() -> bool) {
    while !until() {
        std::thread::yield_now();
    }
}
