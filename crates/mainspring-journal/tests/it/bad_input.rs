//! Addresses, folders and files that cannot be used: each is one clear error, and nothing that
//! was there is changed.

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use mainspring_journal::{Access, JournalOptions, open};
use mainspring_session::{ErrorCode, Seq};

use crate::support::{Place, create, fork, go_on, id, open_failure, put, texts};

fn read_only() -> JournalOptions {
    JournalOptions { access: Access::ReadOnly, ..JournalOptions::default() }
}

#[test]
fn an_address_of_no_known_store_is_refused() {
    let cases = [
        ("", "empty address"),
        ("mysql://user:secret@host/db", "address of kind \"mysql\""),
        ("sqlite:file.db", "sqlite address without three slashes"),
        ("sqlite://file.db", "sqlite address without three slashes"),
        ("sqlite:///", "sqlite address without a file"),
        ("sqlite:////", "sqlite address without a file"),
        ("sqlite:///a.db?mode=ro", "sqlite address with parameters"),
        ("memory://", "address of kind \"memory\""),
        (":memory:", "address of kind \"\""),
    ];
    for (url, what) in cases {
        let failure = open_failure(url, JournalOptions::default());
        assert_eq!(failure.code, ErrorCode::JOURNAL_URL_INVALID, "{url}");
        assert_eq!(
            failure.to_text(),
            format!(
                "journal address names no known store: {what}\nhint: use sqlite:///relative.db, \
                 sqlite:////absolute/path.db, a plain path, postgresql://user:password@host/database, \
                 or memory:"
            )
        );
    }
}

#[test]
fn a_missing_folder_is_named_and_not_made() {
    let place = Place::new();
    let path = place.folder().join("absent/journal.db");
    let failure = open_failure(path.to_str().unwrap(), JournalOptions::default());
    assert_eq!(failure.code, ErrorCode::JOURNAL_IO);
    assert_eq!(
        failure.to_text(),
        format!(
            "journal {} cannot be made, its folder is missing\n\
             hint: make the folder first, or choose another path",
            path.display()
        )
    );
    assert!(!place.folder().join("absent").exists());
}

#[test]
fn reading_a_missing_file_makes_none() {
    let place = Place::new();
    let failure = open_failure(&place.url(), read_only());
    assert_eq!(failure.code, ErrorCode::JOURNAL_IO);
    assert_eq!(
        failure.to_text(),
        format!(
            "journal {} does not exist\n\
             hint: check the path; a journal is made by the first run that writes to it",
            place.file().display()
        )
    );
    assert_eq!(fs::read_dir(place.folder()).unwrap().count(), 0);
}

#[test]
fn a_folder_is_not_a_journal() {
    let place = Place::new();
    for options in [JournalOptions::default(), read_only()] {
        let failure = open_failure(place.folder().to_str().unwrap(), options);
        assert_eq!(failure.code, ErrorCode::JOURNAL_IO);
        assert_eq!(
            failure.to_text(),
            format!("journal {} is not a file", place.folder().display())
        );
    }
}

/// Files cannot be made in `/sys`, by no user at all, so this holds for root too.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    let failure = open_failure("/sys/journal.db", JournalOptions::default());
    assert_eq!(failure.code, ErrorCode::JOURNAL_READ_ONLY);
    assert!(
        failure.message.starts_with("journal /sys/journal.db.lock could not be opened: "),
        "{failure:?}"
    );
    let hint = "check the rights of the file and its folder, or choose another path";
    assert_eq!(failure.hint.as_deref(), Some(hint));
}

/// A write version above 2 in the file's header makes SQLite treat the file as read-only,
/// whoever the user is.
#[test]
fn a_file_that_cannot_be_written_is_refused_and_can_be_read() {
    let place = Place::new();
    put(&place.open(), create("s", &["{}"])).unwrap();
    let mut file = fs::OpenOptions::new().write(true).open(place.file()).unwrap();
    file.seek(SeekFrom::Start(18)).unwrap();
    file.write_all(&[3]).unwrap();
    drop(file);
    let failure = open_failure(&place.url(), JournalOptions::default());
    assert_eq!(failure.code, ErrorCode::JOURNAL_READ_ONLY);
    assert_eq!(failure.message, format!("journal {} cannot be written", place.file().display()));
    assert_eq!(texts(&place.open_with(read_only()), "s"), ["{}"]);
}

#[test]
fn a_file_that_is_no_database_is_left_as_it_is() {
    let place = Place::new();
    let text = "not a database ".repeat(1_000);
    fs::write(place.file(), &text).unwrap();
    for options in [JournalOptions::default(), read_only()] {
        let failure = open_failure(&place.url(), options);
        assert_eq!(failure.code, ErrorCode::JOURNAL_CORRUPT);
        assert!(failure.message.ends_with("file is not a database"), "{failure:?}");
    }
    assert_eq!(fs::read_to_string(place.file()).unwrap(), text);
}

#[test]
fn another_programs_database_is_left_as_it_is() {
    for sql in ["CREATE TABLE other (a)", "CREATE TABLE meta (name, value)"] {
        let place = Place::new();
        place.tamper(sql);
        let before = fs::read(place.file()).unwrap();
        for options in [JournalOptions::default(), read_only()] {
            let failure = open_failure(&place.url(), options);
            assert_eq!(failure.code, ErrorCode::JOURNAL_CORRUPT);
            assert_eq!(
                failure.message,
                format!("file {} is a database, but not a journal", place.file().display())
            );
        }
        assert!(fs::read(place.file()).unwrap() == before, "the file has changed");
    }
}

#[test]
fn a_journal_of_a_newer_version_is_refused() {
    let place = Place::new();
    put(&place.open(), create("s", &["{}"])).unwrap();
    place.tamper("UPDATE meta SET value = 4 WHERE name LIKE '%version'");
    for options in [JournalOptions::default(), read_only()] {
        let failure = open_failure(&place.url(), options);
        assert_eq!(failure.code, ErrorCode::JOURNAL_NEWER);
        assert_eq!(
            failure.to_text(),
            format!(
                "journal {} has store version 4, this version reads up to 3\n\
                 hint: use the version of mainspring that wrote it, or a newer one",
                place.file().display()
            )
        );
    }
}

/// A version that is to come may append to a session that this one has begun.
#[test]
fn events_of_a_newer_format_are_refused_wherever_they_are() {
    let place = Place::new();
    let journal = place.open();
    put(&journal, create("s", &["[0]"])).unwrap();
    put(&journal, go_on("s", 1, &["[1]", "[2]"])).unwrap();
    put(&journal, go_on("s", 3, &["[3]"])).unwrap();
    drop(journal);
    place.tamper("UPDATE log SET schema = 4 WHERE first_seq = 1");
    let journal = place.open();
    let read = |from, until| {
        let records = journal.load_range(&id("s"), Seq(from), Some(Seq(until)));
        records.map(|records| records.len()).map_err(|error| error.failure())
    };
    for (from, until) in [(0, 4), (1, 4), (2, 4), (0, 2), (2, 3)] {
        let failure = read(from, until).unwrap_err();
        assert_eq!(failure.code, ErrorCode::JOURNAL_NEWER);
        assert_eq!(
            failure.to_text(),
            "session \"s\" has event format 4, this version reads up to 3\n\
             hint: use the version of mainspring that wrote it, or a newer one"
        );
    }
    assert_eq!(read(0, 1), Ok(1));
    assert_eq!(read(3, 4), Ok(1));
}

/// A reader that has a snapshot begins behind all events, and must still not go on with them.
#[test]
fn a_session_that_a_newer_version_has_gone_on_with_is_refused_from_any_position() {
    let place = Place::new();
    let journal = place.open();
    put(&journal, create("s", &["[0]"])).unwrap();
    put(&journal, go_on("s", 1, &["[1]", "[2]"])).unwrap();
    put(&journal, fork("f", "s", 3, &["[3]"])).unwrap();
    drop(journal);
    place.tamper("UPDATE log SET schema = 4 WHERE first_seq = 1");
    let journal = place.open();
    for from in 0..6 {
        let error = journal.load(&id("s"), Seq(from)).unwrap_err();
        assert_eq!(*error.code(), ErrorCode::JOURNAL_NEWER, "from {from}");
    }
    assert_eq!(journal.load_range(&id("s"), Seq(0), Some(Seq(1))).unwrap().len(), 1);
    let error = journal.load(&id("f"), Seq(2)).unwrap_err();
    assert_eq!(*error.code(), ErrorCode::JOURNAL_NEWER, "what a fork shares");
}

#[test]
fn damaged_forks_are_refused() {
    let damages = [
        "UPDATE sessions SET parent_row = 99 WHERE id = 'f'",
        "UPDATE sessions SET parent_key = 99 WHERE id = 'f'",
        "UPDATE sessions SET parent_key = key WHERE id = 'f'",
        "DELETE FROM sessions WHERE id = 's'",
        "DELETE FROM log WHERE first_seq = 0",
    ];
    for sql in damages {
        let place = Place::new();
        let journal = place.open();
        put(&journal, create("s", &["[0]"])).unwrap();
        put(&journal, go_on("s", 1, &["[1]"])).unwrap();
        put(&journal, fork("f", "s", 2, &["[2]"])).unwrap();
        drop(journal);
        place.tamper(sql);
        let journal = place.open();
        let failure = journal.load(&id("f"), Seq(0)).unwrap_err().failure();
        assert_eq!(failure.code, ErrorCode::JOURNAL_CORRUPT, "{sql}");
        assert!(failure.message.ends_with("the events before are missing"), "{failure:?}");
        assert_eq!(journal.load(&id("f"), Seq(2)).unwrap().len(), 1);
        assert_eq!(journal.snapshots(&id("f"), None).unwrap(), []);
    }
}

#[test]
fn damaged_sessions_are_refused_and_others_read() {
    let damages = [
        ("DELETE FROM log WHERE first_seq = 0", "event 1: the events before are missing"),
        ("DELETE FROM log WHERE first_seq = 1", "event 2: the events before are missing"),
        ("DELETE FROM log WHERE first_seq = 2", "event 0: the events before are missing"),
        ("UPDATE log SET prev = id WHERE first_seq = 2", "event 2: the events before are missing"),
        ("UPDATE log SET prev = 1 WHERE first_seq = 2", "event 2: the events before are missing"),
        ("UPDATE log SET body = x'ff' WHERE first_seq = 1", "event 1: stored text is not UTF-8"),
        (
            "UPDATE log SET body = x'5b' WHERE first_seq = 1",
            "event 1: stored text is not JSON: EOF while parsing a list at line 1 column 1",
        ),
        (
            "UPDATE log SET count = 2 WHERE first_seq = 2",
            "event 3: stored block should have 2 events",
        ),
        ("UPDATE log SET first_seq = 5 WHERE first_seq = 2", "event 5: gap"),
    ];
    for (sql, what) in damages {
        let place = Place::new();
        let journal = place.open();
        put(&journal, create("well", &["{}"])).unwrap();
        put(&journal, create("s", &["[0]"])).unwrap();
        put(&journal, go_on("s", 1, &["[1]"])).unwrap();
        put(&journal, go_on("s", 2, &["[2]"])).unwrap();
        drop(journal);
        place.tamper(&format!("{sql} AND session_key = 2"));
        let journal = place.open();
        let failure = journal.load(&id("s"), Seq(0)).unwrap_err().failure();
        assert_eq!(failure.code, ErrorCode::JOURNAL_CORRUPT, "{sql}");
        assert_eq!(failure.message, format!("session \"s\" cannot be read at {what}"), "{sql}");
        assert_eq!(texts(&journal, "well"), ["{}"]);
    }
}

#[test]
fn a_head_that_cannot_be_understood_is_refused() {
    let place = Place::new();
    put(&place.open(), create("s", &["{}"])).unwrap();
    for sql in [
        "UPDATE sessions SET status = 9",
        "UPDATE sessions SET status = 0, next_seq = -1",
        "UPDATE sessions SET next_seq = 1, agent = x'00'",
    ] {
        place.tamper(sql);
        let error = place.open().head(&id("s")).unwrap_err();
        assert_eq!(*error.code(), ErrorCode::JOURNAL_CORRUPT, "{sql}");
    }
}

#[test]
fn a_refused_opening_leaves_the_journal_free() {
    let place = Place::new();
    put(&place.open(), create("s", &["{}"])).unwrap();
    place.tamper("UPDATE meta SET value = 4 WHERE name LIKE '%version'");
    open_failure(&place.url(), JournalOptions::default());
    place.tamper("UPDATE meta SET value = 3 WHERE name LIKE '%version'");
    assert!(open(&place.url(), JournalOptions::default()).is_ok());
}
