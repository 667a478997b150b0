//! What a PostgreSQL store does when two things happen to it at once: an append and the death of its
//! node, a pruning and the forks and blobs that need what it would remove.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mainspring_journal::{Append, AppendMode, Hold, Journal, SessionQuery, SessionStatus};
use mainspring_session::{BlobHash, Epoch, ErrorCode, Seq};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls};

use crate::server::{Database, node};
use crate::support::{Results, all_ended, create, go_on, id, put, texts};

/// A transaction of somebody else, open until the test ends it.
struct Other {
    runtime: Runtime,
    client: Client,
}

impl Other {
    fn begin(database: &Database) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&database.url(), NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute("BEGIN").await.unwrap();
            client
        });
        Self { runtime, client }
    }

    /// Runs a statement; gives the code of its failure.
    fn run(&self, sql: &str) -> Result<(), String> {
        let done = self.runtime.block_on(self.client.batch_execute(sql));
        done.map_err(|error| error.code().unwrap().code().to_owned())
    }
}

fn await_true(database: &Database, question: &str) {
    while database.sql(question) != ["t"] {
        std::thread::yield_now();
    }
}

/// Whether an append is under way and waits for a lock.
const APPEND_WAITS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity \
    WHERE datname = current_database() AND wait_event_type = 'Lock' \
    AND query LIKE 'WITH me AS%logged AS%')";

#[test]
fn a_node_is_not_declared_dead_while_its_append_is_under_way() {
    let database = Database::new();
    let journal = database.open_with(node("a", 60_000));
    put(&journal, create("s", &["[0]"])).unwrap();
    let lock = Other::begin(&database);
    lock.run("SELECT FROM mainspring_sessions WHERE id = 's' FOR UPDATE").unwrap();
    let (sink, results) = Results::new();
    journal.append(Append { sink, ..go_on("s", 1, &["[1]"]) });
    await_true(&database, APPEND_WAITS);

    let reaper = Other::begin(&database);
    reaper.run("SET LOCAL lock_timeout = '50ms'").unwrap();
    let declared = reaper.run("UPDATE mainspring_nodes SET live = false");
    assert_eq!(declared.unwrap_err(), "55P03", "it waits for the append");
    lock.run("COMMIT").unwrap();
    assert!(results.recv().unwrap()[0].result.is_ok());
    assert_eq!(texts(&journal, "s"), ["[0]", "[1]"]);
}

#[test]
fn an_append_that_waited_while_its_node_was_declared_dead_is_not_stored() {
    let database = Database::new();
    let journal = database.open_with(node("a", 60_000));
    let tenure = journal.tenure();
    put(&journal, create("s", &["[0]"])).unwrap();
    let reaper = Other::begin(&database);
    reaper.run("UPDATE mainspring_nodes SET live = false").unwrap();
    let (sink, results) = Results::new();
    // The session's row still names the node: only that it is dead speaks against it.
    journal.append(Append { sink, ..go_on("s", 1, &["[late]"]) });
    await_true(&database, APPEND_WAITS);
    reaper.run("COMMIT").unwrap();
    let result = results.recv().unwrap().remove(0).result;
    assert_eq!(*result.unwrap_err().code(), ErrorCode::JOURNAL_CONFLICT);
    assert_eq!(texts(&journal, "s"), ["[0]"]);
    assert_eq!(journal.hold(tenure), Hold::Lost);
}

#[test]
fn a_claim_of_a_node_that_is_dead_takes_nothing() {
    let database = Database::new();
    let journal = database.open_with(node("a", 60_000));
    put(&journal, Append { release: true, ..create("s", &["[0]"]) }).unwrap();
    database.sql("UPDATE mainspring_nodes SET live = false");
    assert_eq!(journal.claim(&["agent".to_owned()], 9).unwrap(), []);
    assert_eq!(database.sql("SELECT count(owner) FROM mainspring_sessions"), ["0"]);
}

#[test]
fn two_that_write_one_session_store_one_of_their_appends() {
    let database = Database::new();
    let nodes = [database.open_with(node("a", 60_000)), database.open_with(node("b", 60_000))];
    put(&nodes[0], Append { release: true, ..create("s", &["[0]"]) }).unwrap();
    for epoch in 2..60 {
        let seq = epoch - 1;
        let text = |who: usize| format!("[{epoch},{who}]");
        let results: Vec<bool> = std::thread::scope(|scope| {
            let take = |who: usize| Append {
                epoch: Epoch(epoch),
                mode: AppendMode::TakeOver,
                release: true,
                ..go_on("s", seq, &[&text(who)])
            };
            let nodes = &nodes;
            let tries: Vec<_> = (0..2)
                .map(|who| scope.spawn(move || put(&nodes[who], take(who)).is_ok()))
                .collect();
            tries.into_iter().map(|done| done.join().unwrap()).collect()
        });
        let winner = results.iter().position(|won| *won).expect("one of them wins");
        assert_eq!(results.iter().filter(|won| **won).count(), 1);
        assert_eq!(texts(&nodes[0], "s").last(), Some(&text(winner)));
    }
}

/// Prunes until `work` has ended.
fn prune_meanwhile(pruners: &[Arc<dyn Journal>], work: impl FnOnce() + Send) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for journal in pruners {
            scope.spawn(|| {
                while !ended.load(Ordering::Acquire) {
                    journal.prune(&all_ended()).unwrap();
                }
            });
        }
        // Also when the work fails, or the test would never end.
        let worker = scope.spawn(work);
        let done = worker.join();
        ended.store(true, Ordering::Release);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

fn finished(append: Append) -> Append {
    Append { status: SessionStatus::Finished, ..append }
}

#[test]
fn a_blob_that_is_named_while_it_is_swept_stays() {
    let database = Database::new();
    let journal = database.open_with(node("a", 60_000));
    let pruners = [database.open_with(node("b", 60_000)), database.open_with(node("c", 60_000))];
    let body: Arc<[u8]> = b"named by one session at a time".to_vec().into();
    let hash = BlobHash::of(&body);
    prune_meanwhile(&pruners, || {
        for n in 0..300 {
            let blobs = vec![(hash.clone(), body.clone())];
            put(&journal, finished(Append { blobs, ..create(&format!("f{n}"), &["{}"]) })).unwrap();
            let name = format!("o{n}");
            let blobs = vec![(hash.clone(), body.clone())];
            put(&journal, Append { blobs, ..create(&name, &["{}"]) }).unwrap();
            assert_eq!(journal.blob(&hash).unwrap().as_deref(), Some(&body[..]), "round {n}");
            put(&journal, finished(go_on(&name, 1, &["{}"]))).unwrap();
        }
    });
    journal.prune(&all_ended()).unwrap();
    assert_eq!(journal.blob(&hash).unwrap(), None);
    for table in ["sessions", "log", "blobs", "blob_refs"] {
        assert_eq!(database.sql(&format!("SELECT count(*) FROM mainspring_{table}")), ["0"]);
    }
}

#[test]
fn a_sweep_sees_what_an_append_names_that_it_has_waited_for() {
    let database = Database::new();
    let journal = database.open_with(node("a", 60_000));
    let body: Arc<[u8]> = b"kept".to_vec().into();
    let hash = BlobHash::of(&body);
    let blobs = vec![(hash.clone(), body.clone())];
    put(&journal, finished(Append { blobs, ..create("ended", &["{}"]) })).unwrap();
    put(&journal, create("open", &["{}"])).unwrap();
    // What the statement of an append does with a blob that is stored already.
    let append = Other::begin(&database);
    append.run("SELECT FROM mainspring_blobs FOR KEY SHARE").unwrap();
    append
        .run(
            "INSERT INTO mainspring_blob_refs (session_key, blob_key) \
             SELECT s.key, b.key FROM mainspring_sessions s, mainspring_blobs b WHERE s.id = 'open'",
        )
        .unwrap();
    std::thread::scope(|scope| {
        let pruning = scope.spawn(|| journal.prune(&all_ended()).unwrap());
        await_true(
            &database,
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
             AND wait_event_type = 'Lock' AND query LIKE '%mainspring_blobs%')",
        );
        append.run("COMMIT").unwrap();
        let report = pruning.join().unwrap();
        assert_eq!((report.sessions, report.blobs), (1, 0));
    });
    assert_eq!(journal.blob(&hash).unwrap().as_deref(), Some(&body[..]));
}

#[test]
fn a_fork_of_a_session_that_is_pruned_has_all_it_shares_or_is_refused() {
    let database = Database::new();
    let journal = database.open_with(node("a", 60_000));
    let pruners = [database.open_with(node("b", 60_000)), database.open_with(node("c", 60_000))];
    prune_meanwhile(&pruners, || {
        for n in 0..200 {
            let name = |part: &str| format!("{part}{n}");
            // Every other one is pruned only after its first fork: some are certainly in time.
            let in_time = n % 2 == 0;
            let start = create(&name("p"), &["[0]", "[1]", "[2]"]);
            put(&journal, if in_time { start } else { finished(start) }).unwrap();
            let mut parent = name("p");
            for (part, seq) in [("x", 3), ("y", 2), ("z", 1)] {
                let mode = AppendMode::Fork {
                    parent: id(&parent),
                    agent: "agent".to_owned(),
                    origin: None,
                };
                let start = create(&name(part), &["[\"own\"]"]);
                let fork = Append { epoch: Epoch(2), expected_seq: Seq(seq), mode, ..start };
                let forked = put(&journal, fork);
                if in_time && part == "x" {
                    assert!(forked.is_ok(), "{forked:?}");
                    put(&journal, finished(go_on(&name("p"), 3, &["[3]"]))).unwrap();
                }
                match forked {
                    Ok(()) => {
                        let mut wanted: Vec<String> = (0..seq).map(|n| format!("[{n}]")).collect();
                        wanted.push("[\"own\"]".to_owned());
                        assert_eq!(texts(&journal, &name(part)), wanted);
                        let end = go_on(&name(part), seq + 1, &["[9]"]);
                        put(&journal, finished(Append { epoch: Epoch(2), ..end })).unwrap();
                        parent = name(part);
                    }
                    Err(failure) => assert_eq!(failure.code, ErrorCode::SESSION_NOT_FOUND),
                }
            }
        }
    });
    journal.prune(&all_ended()).unwrap();
    assert_eq!(journal.sessions(&SessionQuery::default()).unwrap(), []);
    for table in ["sessions", "log"] {
        let left = database.sql(&format!("SELECT count(*) FROM mainspring_{table}"));
        assert_eq!(left, ["0"], "nothing retired is left behind in {table}");
    }
}
