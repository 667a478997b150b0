//! Opening a PostgreSQL store: its tables, its versions, what is refused and what is never shown.

use std::sync::Arc;

use mainspring_journal::{Access, Journal, JournalOptions, open};
use mainspring_session::{ErrorCode, Failure};

use crate::server::{Database, Server};
use crate::support::{create, open_failure, put, refused, texts};

fn failure(url: &str) -> Failure {
    open_failure(url, JournalOptions::default())
}

fn read_only() -> JournalOptions {
    JournalOptions { access: Access::ReadOnly, ..JournalOptions::default() }
}

#[test]
fn many_that_open_an_empty_database_at_once_make_its_tables_once() {
    let database = Database::new();
    let journals: Vec<Arc<dyn Journal>> = std::thread::scope(|scope| {
        let openers: Vec<_> = (0..8).map(|_| scope.spawn(|| database.open())).collect();
        openers.into_iter().map(|opener| opener.join().unwrap()).collect()
    });
    assert!(journals.iter().all(|journal| journal.identity() == journals[0].identity()));
    for (n, journal) in journals.iter().enumerate() {
        put(journal, create(&format!("s{n}"), &["{}"])).unwrap();
    }
    assert_eq!(journals[0].open_sessions().unwrap().len(), 8);
    assert_eq!(
        database.sql("SELECT value FROM mainspring_meta WHERE name <> 'id' ORDER BY name"),
        ["1", "2"]
    );
}

#[test]
fn a_store_has_its_name_for_good_and_a_copy_has_another() {
    let database = Database::new();
    let journal = database.open();
    let name = journal.identity().to_owned();
    drop(journal);
    assert_eq!(database.open().identity(), name);
    let copy = Database::copy(&database);
    assert_ne!(copy.open().identity(), name);
    assert_ne!(Database::new().open().identity(), name);
}

#[test]
fn tables_of_a_newer_version_are_used_until_they_say_no() {
    let database = Database::new();
    put(&database.open(), create("s", &["[0]"])).unwrap();
    database.sql("UPDATE mainspring_meta SET value = '7' WHERE name = 'version'");
    assert_eq!(texts(&database.open(), "s"), ["[0]"]);
    assert_eq!(
        database.sql("SELECT value FROM mainspring_meta WHERE name = 'version'"),
        ["7"],
        "left as it is"
    );
    database.sql("UPDATE mainspring_meta SET value = '7' WHERE name = 'reads_from'");
    for options in [JournalOptions::default(), read_only()] {
        let failure = open_failure(&database.url(), options);
        assert_eq!(failure.code, ErrorCode::JOURNAL_NEWER);
        assert!(
            failure.message.ends_with(" has store version 7, this version reads up to 2"),
            "{failure:?}"
        );
    }
}

#[test]
fn tables_that_say_nothing_of_themselves_are_refused() {
    let database = Database::new();
    drop(database.open());
    database.sql("DELETE FROM mainspring_meta WHERE name = 'version'");
    assert_eq!(failure(&database.url()).code, ErrorCode::JOURNAL_CORRUPT);
}

#[test]
fn a_database_without_a_journal_is_not_given_one_by_a_reader() {
    let database = Database::new();
    let failure = open_failure(&database.url(), read_only());
    assert_eq!(failure.code, ErrorCode::JOURNAL_IO);
    assert!(failure.message.ends_with("does not exist, its database has no tables of it"));
    assert_eq!(
        database.sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'mainspring%'"),
        ["0"]
    );
}

#[test]
fn a_user_without_rights_is_told_which_are_missing() {
    let database = Database::new();
    let user = format!("user_of_{}", database.name());
    database.sql(&format!("CREATE ROLE {user} LOGIN"));
    let url = database.url().replace("postgres@", &format!("{user}@"));
    let missing = failure(&url);
    assert_eq!(missing.code, ErrorCode::JOURNAL_READ_ONLY);
    assert!(missing.message.contains("permission denied"), "{missing:?}");
    assert!(missing.hint.as_ref().unwrap().contains("let the owner"), "{missing:?}");

    let owners = database.open();
    put(&owners, create("s", &["[0]"])).unwrap();
    assert_eq!(failure(&url).code, ErrorCode::JOURNAL_READ_ONLY);
    database.sql(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}"));
    assert_eq!(failure(&url).code, ErrorCode::JOURNAL_READ_ONLY);
    let reader = open(&url, read_only()).unwrap();
    assert_eq!(texts(&reader, "s"), ["[0]"]);
    database.sql(&format!("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {user}"));
    let journal = open(&url, JournalOptions::default()).unwrap();
    put(&journal, create("t", &["[0]"])).unwrap();
    // Rights that go while it is open.
    database.sql(&format!("REVOKE INSERT ON mainspring_log FROM {user}"));
    assert_eq!(refused(&journal, create("u", &["[0]"])), ErrorCode::JOURNAL_READ_ONLY);
    drop((journal, reader));
    database.sql(&format!("DROP OWNED BY {user}; DROP ROLE {user}"));
}

#[test]
fn a_password_is_never_shown() {
    let database = Database::new();
    let port = Server::shared().port();
    let name = database.name();
    // One test at a time makes this user.
    database.sql("CREATE ROLE with_password LOGIN SUPERUSER PASSWORD 'right'");
    let right = format!("postgresql://with_password:right@127.0.0.1:{port}/{name}");
    drop(open(&right, JournalOptions::default()).unwrap());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = nobody.local_addr().unwrap().port();
    drop(nobody);
    let cases = [
        (format!("with_password:secret@127.0.0.1:{port}/{name}"), ErrorCode::JOURNAL_IO),
        (format!("with_password:secret@127.0.0.1:{port}/absent"), ErrorCode::JOURNAL_IO),
        (format!("postgres:secret@127.0.0.1:{port}/absent"), ErrorCode::JOURNAL_IO),
        (format!("postgres:secret@127.0.0.1:{closed}/{name}"), ErrorCode::JOURNAL_IO),
        ("postgres:secret@host.invalid/db".to_owned(), ErrorCode::JOURNAL_IO),
        ("postgres:secret@127.0.0.1:port/db".to_owned(), ErrorCode::JOURNAL_URL_INVALID),
        (format!("postgres:sec%ret@127.0.0.1:{closed}/db"), ErrorCode::JOURNAL_IO),
        ("postgres:secret@127.0.0.1/db?secret=1".to_owned(), ErrorCode::JOURNAL_URL_INVALID),
        ("postgres:a?b=secret@127.0.0.1/db".to_owned(), ErrorCode::JOURNAL_URL_INVALID),
        ("u:p@127.0.0.1/db?sslmode=secret".to_owned(), ErrorCode::JOURNAL_URL_INVALID),
        ("u:p@127.0.0.1/db?password=secret&port=x".to_owned(), ErrorCode::JOURNAL_URL_INVALID),
    ];
    for (rest, code) in cases {
        for kind in ["postgres", "postgresql"] {
            let url = format!("{kind}://{rest}");
            let failure = failure(&url);
            assert_eq!(failure.code, code, "{url}: {failure:?}");
            let text = failure.to_text();
            let shown = text.replace("parameter \"secret\"", "");
            assert!(!shown.contains("secret") && !text.contains("sec%ret"), "{url}: {text}");
        }
    }
    database.sql("DROP OWNED BY with_password; DROP ROLE with_password");
}

#[test]
fn what_is_wrong_with_an_address_is_said() {
    let port = Server::shared().port();
    let url = format!("postgresql://postgres@127.0.0.1:{port}/absent?sslmode=disable");
    assert_eq!(
        failure(&url).to_text(),
        format!(
            "journal postgresql://127.0.0.1:{port}/absent could not be opened: database \
             \"absent\" does not exist (SQLSTATE 3D000)\nhint: make the database first"
        )
    );
    let cases = [
        ("?sslmode=maybe", "another sslmode"),
        ("?wrong=1", "the parameter \"wrong\""),
        ("?sslrootcert=%zz", "a broken %-sequence"),
        ("?sslmode=verify-ca", "sslmode verify-ca and no file in sslrootcert"),
    ];
    for (rest, what) in cases {
        let failure = failure(&format!("postgresql://localhost/db{rest}"));
        assert_eq!(failure.code, ErrorCode::JOURNAL_URL_INVALID);
        assert!(failure.message.contains(what), "{failure:?}");
    }
}

#[test]
fn tls_checks_what_its_mode_says() {
    let database = Database::new();
    let ca = Server::shared().tell("ca");
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.crt");
    std::fs::write(&other, OTHER_CERTIFICATE).unwrap();
    let other = other.to_str().unwrap();
    let broken = folder.path().join("broken.crt");
    std::fs::write(&broken, "no certificate").unwrap();
    let broken = broken.to_str().unwrap();
    let cases = [
        ("localhost", "disable", None, Some(false)),
        ("127.0.0.1", "prefer", None, Some(true)),
        ("127.0.0.1", "allow", None, Some(true)),
        ("127.0.0.1", "require", None, Some(true)),
        ("127.0.0.1", "require", Some(&*ca), Some(true)),
        ("127.0.0.1", "require", Some(other), None),
        ("127.0.0.1", "verify-ca", Some(&*ca), Some(true)),
        ("localhost", "verify-ca", Some(other), None),
        ("localhost", "verify-full", Some(&*ca), Some(true)),
        ("127.0.0.1", "verify-full", Some(&*ca), None),
        ("localhost", "verify-full", Some(other), None),
        ("localhost", "verify-full", None, None),
        ("localhost", "verify-full", Some(broken), None),
    ];
    for (host, mode, root, encrypted) in cases {
        let mut url = database.url().replace("127.0.0.1", host);
        url = url.replace("sslmode=disable", &format!("sslmode={mode}"));
        if let Some(root) = root {
            url += &format!("&sslrootcert={root}");
        }
        match (open(&url, JournalOptions::default()), encrypted) {
            (Ok(journal), Some(encrypted)) => {
                let count = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                             WHERE datname = current_database() \
                             AND application_name = 'mainspring' AND ssl";
                assert_eq!(database.sql(count) != ["0"], encrypted, "{host} {mode} {root:?}");
                journal.close().unwrap();
            }
            (Err(error), None) => {
                assert_eq!(*error.code(), ErrorCode::JOURNAL_IO, "{host} {mode} {root:?}");
            }
            (Ok(_), None) => panic!("{host} {mode} {root:?} should be refused"),
            (Err(error), Some(_)) => panic!("{host} {mode} {root:?}: {error}"),
        }
    }
}

/// The engine reads from threads of its own, but nothing says that others do.
#[test]
fn it_may_be_used_within_an_asynchronous_runtime() {
    let database = Database::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let journal = database.open();
        put(&journal, create("s", &["[0]"])).unwrap();
        assert_eq!(texts(&journal, "s"), ["[0]"]);
        journal.close().unwrap();
    });
}

/// Valid for long, and for no server of these tests.
const OTHER_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBkTCCATegAwIBAgIUWBGgO03PXGK3Wzmmf0E9ZbP2bgwwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHYW5vdGhlcjAgFw0yNjExMjUwMDQ4MDhaGA8yMTI2MTEwMTAw
NDgwOFowEjEQMA4GA1UEAwwHYW5vdGhlcjBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABH5eDdtAb7BLYODsGlYonMDcNPyseN3m1S13Qoei/TgmGvg2gQrkJVdsQfPp
PF61i9+nLoWxQbntgYJMpmAxTpijaTBnMB0GA1UdDgQWBBTYDepbC7dJEmibZ6Ut
QFrVsaozEzAfBgNVHSMEGDAWgBTYDepbC7dJEmibZ6UtQFrVsaozEzAPBgNVHRMB
Af8EBTADAQH/MBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAKBggqhkjOPQQDAgNIADBF
AiEA0mDkwepx1Ueo3RwS0WgvTmKyXwgS5QtVhRKCzYDenWMCIBECwu4zJnh5vx4A
y+gKaA1iQW5sEkZmNjxHN36DE4y+
-----END CERTIFICATE-----
";
