//! Files of version 1, of which `tests/fixtures/journal-v1.db` is one that the build of that time
//! has written: brought up to date when opened for writing, read as they are otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainspring_journal::{
    Access, Append, AppendMode, Journal, JournalOptions, PruneQuery, PruneReport, SessionQuery,
    SessionStatus,
};
use mainspring_session::{Amount, BlobHash, Epoch, ErrorCode, Seq};

use crate::support::{
    Place, all_ended, create, fork, go_on, id, ids, open_failure, prune, put, snapshots, texts,
};

const SESSIONS: [(&str, usize); 4] =
    [("cancelled", 11), ("interrupted", 8), ("bad-calls", 11), ("finished", 18)];

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/journal-v1.db")
}

/// A folder with a copy of the old file.
fn old() -> Place {
    let place = Place::new();
    fs::copy(fixture(), place.file()).unwrap();
    place
}

fn read_only() -> JournalOptions {
    JournalOptions { access: Access::ReadOnly, ..JournalOptions::default() }
}

fn sql<T: rusqlite::types::FromSql>(place: &Place, sql: &str) -> Vec<T> {
    let connection = rusqlite::Connection::open(place.file()).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(|row| row.unwrap()).collect()
}

/// Everything that the old sessions are, as the file's own rows say it.
fn check_sessions(journal: &Arc<dyn Journal>) {
    let heads = journal.sessions(&SessionQuery::default()).unwrap();
    assert_eq!(ids(&heads), SESSIONS.map(|(name, _)| name));
    for (head, (name, count)) in heads.iter().zip(SESSIONS) {
        assert_eq!(head.next_seq, Seq(count as u64));
        assert_eq!((&head.agent[..], &head.parent, &head.owner), ("clerk", &None, &None));
        let key = match name {
            "finished" => 1,
            "bad-calls" => 2,
            "interrupted" => 3,
            _ => 4,
        };
        let old = rusqlite::Connection::open(fixture()).unwrap();
        let mut rows =
            old.prepare("SELECT body FROM log WHERE session_key = ?1 ORDER BY id").unwrap();
        let bodies = rows.query_map([key], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        let bodies: Vec<String> =
            bodies.map(|body| String::from_utf8(body.unwrap()).unwrap()).collect();
        assert_eq!(texts(journal, name).join("\n"), bodies.join("\n"));
        let records = journal.load(&id(name), Seq(3)).unwrap();
        assert_eq!(records.len(), count - 3);
        assert!(records.iter().all(|record| record.schema == 1));
        assert_eq!(snapshots(journal, name, None), []);
    }
}

#[test]
fn an_old_file_is_brought_up_to_date_and_goes_on() {
    let place = old();
    let journal = place.open();
    assert_eq!(sql::<i64>(&place, "SELECT value FROM meta WHERE name LIKE '%version'"), [3]);
    check_sessions(&journal);
    assert_eq!(ids(&journal.claim(&["clerk".to_owned()], 9).unwrap()), ["interrupted"]);
    let (epoch, mode) = (Epoch(2), AppendMode::TakeOver);
    put(&journal, Append { epoch, mode, ..go_on("interrupted", 8, &["[8]"]) }).unwrap();
    put(&journal, fork("fork", "bad-calls", 4, &["[4]"])).unwrap();
    drop(journal);

    let journal = place.open();
    let records = journal.load(&id("interrupted"), Seq(7)).unwrap();
    let schemas: Vec<u32> = records.iter().map(|record| record.schema).collect();
    assert_eq!(schemas, [1, mainspring_session::SCHEMA_VERSION]);
    assert_eq!(texts(&journal, "fork")[..4], texts(&journal, "bad-calls")[..4]);
    assert!(journal.identity().len() > 32);
}

/// Which sessions have named the blobs of that time is not known, so those stay for good.
#[test]
fn the_blobs_of_an_old_file_are_never_swept() {
    let place = old();
    let journal = place.open();
    let hashes: Vec<String> = sql(&place, "SELECT hash FROM blobs");
    let body = journal.blob(&serde_json::from_value::<BlobHash>(hashes[0].clone().into()).unwrap());
    let body: Arc<[u8]> = body.unwrap().unwrap().into();
    let blobs = vec![(BlobHash::of(&body), body), (BlobHash::of(b"new"), b"new".as_slice().into())];
    let status = SessionStatus::Finished;
    put(&journal, Append { blobs, status, ..create("new", &["{}"]) }).unwrap();
    let report = prune(&journal, &all_ended());
    assert_eq!(report, PruneReport { sessions: 4, kept_for_forks: 0, events: 41, blobs: 1 });
    assert_eq!(sql::<String>(&place, "SELECT hash FROM blobs"), hashes);
    assert_eq!(ids(&journal.sessions(&SessionQuery::default()).unwrap()), ["interrupted"]);
}

#[test]
fn an_old_file_is_read_as_it_is() {
    let place = old();
    let before = fs::read(place.file()).unwrap();
    let journal = place.open_with(read_only());
    check_sessions(&journal);
    assert_eq!(ids(&journal.open_sessions().unwrap()), ["interrupted"]);
    let query = |status| SessionQuery { status: Some(status), ..SessionQuery::default() };
    assert_eq!(ids(&journal.sessions(&query(SessionStatus::Waiting)).unwrap()), [""; 0]);
    assert_eq!(ids(&journal.sessions(&query(SessionStatus::Cancelled)).unwrap()), ["cancelled"]);
    let dry = journal.prune(&PruneQuery { dry_run: true, ..all_ended() }).unwrap();
    assert_eq!(dry, PruneReport { sessions: 3, kept_for_forks: 0, events: 40, blobs: 0 });
    assert_eq!(journal.identity(), "");
    journal.close().unwrap();
    assert!(fs::read(place.file()).unwrap() == before, "the file has changed");
}

#[test]
fn a_reader_goes_on_when_another_process_brings_the_file_up_to_date() {
    let place = old();
    let reader = place.open_with(read_only());
    check_sessions(&reader);
    let writer = place.open();
    put(&writer, fork("fork", "finished", 2, &["[2]"])).unwrap();
    let snapshot = Some(b"state".to_vec());
    put(&writer, Append { snapshot, epoch: Epoch(2), ..go_on("fork", 3, &["[3]"]) }).unwrap();
    assert_eq!(texts(&reader, "fork"), texts(&writer, "fork"));
    assert_eq!(texts(&reader, "fork").len(), 4);
    assert_eq!(snapshots(&reader, "fork", None), [(4, "state".to_owned())]);
    let head = reader.head(&id("fork")).unwrap().unwrap();
    assert_eq!(head.parent, Some((id("finished"), Seq(2))));
}

/// A file as version 2 of the tables had it.
fn second() -> Place {
    let place = Place::new();
    drop(place.open());
    place.tamper("DROP TABLE budgets; UPDATE meta SET value = 2 WHERE name LIKE '%version'");
    place
}

#[test]
fn a_file_of_version_2_is_read_as_it_is_and_gets_its_accounts_when_it_is_written() {
    let place = second();
    let accounts: [Arc<str>; 1] = ["acme".into()];
    let reader = place.open_with(read_only());
    assert_eq!(reader.spent(&accounts).unwrap(), [Amount::default()]);
    assert_eq!(sql::<i64>(&place, "SELECT value FROM meta WHERE name LIKE '%version'"), [2]);
    let writer = place.open();
    put(&writer, crate::support::charged(create("s", &["{}"]), "acme", 7)).unwrap();
    let spent = [Amount { usd_nanos: 7, tokens: 70, calls: 1 }];
    assert_eq!(writer.spent(&accounts).unwrap(), spent);
    assert_eq!(reader.spent(&accounts).unwrap(), spent, "the reader goes on");
}

#[test]
fn a_reader_of_version_1_goes_on_when_an_older_version_brings_the_file_to_version_2() {
    let place = old();
    let reader = place.open_with(read_only());
    check_sessions(&reader);
    drop(place.open());
    place.tamper("DROP TABLE budgets; UPDATE meta SET value = 2 WHERE name LIKE '%version'");
    check_sessions(&reader);
    assert_eq!(reader.spent(&["acme".into()]).unwrap(), [Amount::default()]);
    drop(place.open());
    assert_eq!(reader.spent(&["acme".into()]).unwrap(), [Amount::default()]);
    check_sessions(&reader);
}

#[test]
fn an_old_file_becomes_the_same_as_a_new_one() {
    let (old, new) = (old(), Place::new());
    drop(old.open());
    drop(new.open());
    let tables = "SELECT type || name || coalesce(sql, '') FROM sqlite_schema ORDER BY 1";
    assert_eq!(sql::<String>(&old, tables), sql::<String>(&new, tables));
}

/// Bringing up to date writes no stored row again: what it writes is in the write-ahead log.
#[test]
fn a_large_old_file_costs_no_more_than_a_small_one() {
    let place = old();
    place.tamper(
        "WITH RECURSIVE n (n) AS (SELECT 100 UNION ALL SELECT n + 1 FROM n WHERE n < 5000)
         INSERT INTO log SELECT n, 9, 0, 0, 1, 1, 0, zeroblob(2000) FROM n;
         INSERT INTO blobs (hash, body) SELECT 'hash' || id, zeroblob(1000) FROM log;
         INSERT INTO sessions SELECT id, 1, 1, id, 1, 0, 0, 's' || id, 'agent', NULL FROM log
         WHERE id >= 100;",
    );
    assert!(place.file().metadata().unwrap().len() > 15_000_000);
    let journal = place.open();
    let written = place.folder().join("journal.db-wal").metadata().unwrap().len();
    assert!(written < 40 * 16_384, "{written} bytes");
    assert_eq!(texts(&journal, "finished").len(), 18);
}

#[test]
fn an_upgrade_without_room_changes_nothing() {
    let place = old();
    let limits =
        mainspring_journal::JournalLimits { database_bytes_max: Some(1), ..Default::default() };
    let failure = open_failure(&place.url(), JournalOptions { limits, ..Default::default() });
    assert_eq!(failure.code, ErrorCode::JOURNAL_FULL);
    assert!(failure.message.contains("could not be brought up to date"), "{failure:?}");
    assert_eq!(sql::<i64>(&place, "SELECT value FROM meta"), [1]);
    check_sessions(&place.open());
}
