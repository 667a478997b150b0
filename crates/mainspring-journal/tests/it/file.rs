//! The SQLite file: what outlives the process, who may open it, and how it is named.

use std::fs;

use mainspring_journal::{
    Access, Append, Durability, JournalOptions, SessionQuery, SessionStatus, open,
};
use mainspring_session::{BlobHash, ErrorCode, Seq};

use crate::support::{Place, create, events, go_on, id, open_failure, put, refused, texts};

fn read_only() -> JournalOptions {
    JournalOptions { access: Access::ReadOnly, ..JournalOptions::default() }
}

#[test]
fn everything_is_there_after_reopening() {
    let place = Place::new();
    let journal = place.open();
    let hash = BlobHash::of(b"body");
    let blobs = vec![(hash.clone(), b"body".as_slice().into())];
    put(&journal, Append { blobs, ..create("a", &["[0]", "[1]"]) }).unwrap();
    put(&journal, Append { status: SessionStatus::Finished, ..create("b", &["{}"]) }).unwrap();
    let (heads, before) =
        (journal.sessions(&SessionQuery::default()).unwrap(), events(&journal, "a", 0));
    drop(journal);

    let journal = place.open();
    assert_eq!(journal.sessions(&SessionQuery::default()).unwrap(), heads);
    assert_eq!(events(&journal, "a", 0), before);
    assert_eq!(journal.blob(&hash).unwrap().unwrap(), b"body");
    assert_eq!(refused(&journal, create("a", &["{}"])), ErrorCode::JOURNAL_CONFLICT);
    put(&journal, go_on("a", 2, &["[2]"])).unwrap();
    put(&journal, create("c", &["{}"])).unwrap();
    assert_eq!(texts(&journal, "a"), ["[0]", "[1]", "[2]"]);
}

#[test]
fn the_weaker_durability_stores_the_same() {
    let place = Place::new();
    let options = JournalOptions { durability: Durability::Normal, ..JournalOptions::default() };
    put(&place.open_with(options), create("s", &["{}"])).unwrap();
    assert_eq!(texts(&place.open(), "s"), ["{}"]);
}

#[test]
fn closing_leaves_one_complete_file() {
    let place = Place::new();
    let journal = place.open();
    put(&journal, create("s", &["{}"])).unwrap();
    journal.close().unwrap();
    let mut names: Vec<String> = fs::read_dir(place.folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["journal.db", "journal.db.lock"]);
}

#[test]
fn a_second_writer_is_refused_until_the_first_is_gone() {
    let place = Place::new();
    let first = place.open();
    let failure = open_failure(&place.url(), JournalOptions::default());
    assert_eq!(failure.code, ErrorCode::JOURNAL_LOCKED);
    assert_eq!(
        failure.to_text(),
        format!(
            "journal {} is in use by process {}\n\
             hint: end that process first, or open the journal for reading only",
            place.file().display(),
            std::process::id()
        )
    );
    put(&first, create("s", &["{}"])).unwrap();
    first.close().unwrap();
    assert_eq!(texts(&place.open(), "s"), ["{}"]);
}

#[test]
fn a_second_writer_under_another_name_is_refused_too() {
    let place = Place::new();
    let _first = place.open();
    let linked = place.folder().join("linked.db");
    std::os::unix::fs::symlink(place.file(), &linked).unwrap();
    let failure = open_failure(linked.to_str().unwrap(), JournalOptions::default());
    assert_eq!(failure.code, ErrorCode::JOURNAL_LOCKED);
}

#[test]
fn a_reader_sees_what_the_writer_beside_it_stores() {
    let place = Place::new();
    let writer = place.open();
    put(&writer, create("s", &["[0]"])).unwrap();
    let reader = place.open_with(read_only());
    assert_eq!(texts(&reader, "s"), ["[0]"]);
    for seq in 1..50 {
        put(&writer, go_on("s", seq, &["{}"])).unwrap();
        assert_eq!(reader.head(&id("s")).unwrap().unwrap().next_seq, Seq(seq + 1));
    }
    assert_eq!(refused(&reader, go_on("s", 50, &["{}"])), ErrorCode::JOURNAL_READ_ONLY);
    writer.close().unwrap();
    assert_eq!(texts(&reader, "s").len(), 50);
    reader.close().unwrap();
    assert_eq!(texts(&place.open(), "s").len(), 50);
}

#[test]
fn a_reader_needs_no_writer_and_hinders_none() {
    let place = Place::new();
    put(&place.open(), create("s", &["{}"])).unwrap();
    let reader = place.open_with(read_only());
    assert_eq!(texts(&reader, "s"), ["{}"]);
    let writer = place.open();
    put(&writer, go_on("s", 1, &["[1]"])).unwrap();
    assert_eq!(texts(&reader, "s"), ["{}", "[1]"]);
}

#[test]
fn a_plain_path_and_a_url_name_the_same_file() {
    let place = Place::new();
    let path = place.file();
    put(&open(path.to_str().unwrap(), JournalOptions::default()).unwrap(), create("s", &["{}"]))
        .unwrap();
    assert_eq!(texts(&place.open(), "s"), ["{}"]);
}

#[test]
fn a_relative_url_starts_at_the_current_folder() {
    let place = Place::new();
    let here = std::env::current_dir().unwrap();
    let up = "../".repeat(here.components().count() - 1);
    let relative = format!("sqlite:///{up}{}", place.file().strip_prefix("/").unwrap().display());
    put(&open(&relative, JournalOptions::default()).unwrap(), create("s", &["{}"])).unwrap();
    assert_eq!(texts(&place.open(), "s"), ["{}"]);
}

#[test]
fn every_memory_journal_is_its_own() {
    let first = open("memory:", JournalOptions::default()).unwrap();
    put(&first, create("s", &["{}"])).unwrap();
    let second = open("memory:", JournalOptions::default()).unwrap();
    assert_eq!(second.head(&id("s")).unwrap(), None);
}

#[test]
fn a_journal_keeps_its_name_and_a_copy_has_another() {
    let place = Place::new();
    let journal = place.open();
    put(&journal, create("s", &["{}"])).unwrap();
    let name = journal.identity().to_owned();
    assert_eq!(place.open_with(read_only()).identity(), name, "for a reader beside it");
    journal.compact().unwrap();
    drop(journal);
    assert_eq!(place.open().identity(), name, "opened again");

    let copy = place.folder().join("copy.db");
    fs::copy(place.file(), &copy).unwrap();
    let named = |path: &std::path::Path| {
        open(path.to_str().unwrap(), JournalOptions::default()).unwrap().identity().to_owned()
    };
    assert_ne!(named(&copy), name, "a copy");
    let moved = place.folder().join("moved.db");
    fs::rename(place.file(), &moved).unwrap();
    assert_eq!(named(&moved), name, "under another name");
    fs::rename(&copy, place.file()).unwrap();
    assert_ne!(named(&place.file()), name, "a copy in its place");
}
