//! Every error of a journal, worded in one place. Cheap to clone, because one failed commit
//! answers many appends.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use mainspring_session::{Epoch, ErrorCode, Failure, Seq, SessionId};
use rusqlite::ffi;
use tokio_postgres::error::SqlState;

use crate::postgres;

/// Why a journal refused or failed.
#[derive(Clone)]
pub struct JournalError(Arc<Inner>);

struct Inner {
    failure: Failure,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl JournalError {
    /// The error as plain data.
    #[must_use]
    pub fn failure(&self) -> Failure {
        self.0.failure.clone()
    }

    /// Which kind of failure.
    #[must_use]
    pub fn code(&self) -> &ErrorCode {
        &self.0.failure.code
    }

    /// An error that a store outside of this crate answers with.
    #[must_use]
    pub fn of(failure: Failure) -> Self {
        Self::new(failure)
    }

    fn new(failure: Failure) -> Self {
        Self(Arc::new(Inner { failure, source: None }))
    }

    fn caused(failure: Failure, source: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { failure, source: Some(Box::new(source)) }))
    }
}

/// Appends that are refused for what they are.
impl JournalError {
    pub(crate) fn exists(session: &SessionId) -> Self {
        let message = format!("session \"{session}\" cannot be created, it exists already");
        let failure = Failure::new(ErrorCode::JOURNAL_CONFLICT, message);
        Self::new(failure.with_hint("choose another session id, or continue the session"))
    }

    pub(crate) fn bad_start(session: &SessionId, epoch: Epoch, seq: Seq) -> Self {
        let message = format!(
            "session \"{session}\" cannot be created with epoch {} at event {}, it begins with \
             epoch 1 at event 0",
            epoch.0, seq.0
        );
        Self::new(Failure::new(ErrorCode::JOURNAL_CONFLICT, message))
    }

    pub(crate) fn not_found(session: &SessionId) -> Self {
        let message = format!("session \"{session}\" is not in the journal");
        Self::new(
            Failure::new(ErrorCode::SESSION_NOT_FOUND, message)
                .with_hint("`mainspring sessions` lists the ones that are"),
        )
    }

    pub(crate) fn wrong_epoch(session: &SessionId, seen: Epoch, allowed: Epoch) -> Self {
        let message = format!(
            "session \"{session}\" was appended to with epoch {}, the journal allows epoch {}",
            seen.0, allowed.0
        );
        let failure = Failure::new(ErrorCode::JOURNAL_CONFLICT, message);
        Self::new(failure.with_hint("another owner took the session over, load it again"))
    }

    pub(crate) fn wrong_seq(session: &SessionId, seen: Seq, allowed: Seq) -> Self {
        let message = format!(
            "session \"{session}\" was appended to at event {}, the next is event {}",
            seen.0, allowed.0
        );
        let failure = Failure::new(ErrorCode::JOURNAL_CONFLICT, message);
        Self::new(failure.with_hint("another writer appended to the session, load it again"))
    }

    pub(crate) fn bad_fork(session: &SessionId, parent: &SessionId, seen: Seq, has: Seq) -> Self {
        let message = format!(
            "session \"{session}\" cannot share {} events with session \"{parent}\", 1 to {} are \
             allowed",
            seen.0, has.0
        );
        let failure = Failure::new(ErrorCode::JOURNAL_CONFLICT, message);
        Self::new(failure.with_hint("fork at an event that the parent has"))
    }

    pub(crate) fn bad_fork_epoch(
        session: &SessionId,
        parent: &SessionId,
        seen: Epoch,
        allowed: Epoch,
    ) -> Self {
        let message = format!(
            "session \"{session}\" cannot be forked from session \"{parent}\" with epoch {}, the \
             last shared event allows epoch {}",
            seen.0, allowed.0
        );
        Self::new(Failure::new(ErrorCode::JOURNAL_CONFLICT, message))
    }

    pub(crate) fn malformed(session: &SessionId, count: u32, lines: usize) -> Self {
        let message = format!(
            "append to session \"{session}\" says {count} events and has {lines} lines, at least \
             1 and as many lines as events are allowed"
        );
        Self::new(Failure::new(ErrorCode::INTERNAL, message))
    }

    pub(crate) fn too_large(session: &SessionId, bytes: usize, bytes_max: usize) -> Self {
        let message =
            format!("append to session \"{session}\" has {bytes} bytes, limit {bytes_max} bytes");
        let failure = Failure::new(ErrorCode::named("journal_limit_reached"), message);
        Self::new(
            failure.with_hint("return less from tools, or raise JournalLimits.append_bytes_max"),
        )
    }

    pub(crate) fn overloaded(bytes: usize, bytes_max: usize) -> Self {
        let message = format!("journal has {bytes} bytes waiting to be written, limit {bytes_max}");
        let failure = Failure::new(ErrorCode::ENGINE_OVERLOADED, message);
        Self::new(failure.with_hint("try again once the disk has caught up"))
    }

    pub(crate) fn access_read_only(name: &str) -> Self {
        let message = format!("journal {name} was opened for reading and takes no events");
        Self::new(Failure::new(ErrorCode::JOURNAL_READ_ONLY, message))
    }

    pub(crate) fn within_sink(name: &str, doing: &str) -> Self {
        let message = format!("journal {name} cannot be {doing} from within a sink");
        let failure = Failure::new(ErrorCode::INTERNAL, message);
        Self::new(failure.with_hint("do it from another thread than the one that takes results"))
    }

    pub(crate) fn closed(name: &str) -> Self {
        let message = format!("journal {name} is closed");
        Self::new(Failure::new(ErrorCode::ENGINE_CLOSED, message))
    }

    pub(crate) fn writer_panicked(name: &str) -> Self {
        let message = format!("journal {name} hit a broken invariant while writing");
        Self::new(Failure::new(ErrorCode::JOURNAL_IO, message))
    }
}

/// Journals that cannot be opened or read.
impl JournalError {
    pub(crate) fn url_invalid(what: &str) -> Self {
        let message = format!("journal address names no known store: {what}");
        let failure = Failure::new(ErrorCode::JOURNAL_URL_INVALID, message);
        Self::new(failure.with_hint(
            "use sqlite:///relative.db, sqlite:////absolute/path.db, a plain path, \
             postgresql://user:password@host/database, or memory:",
        ))
    }

    pub(crate) fn no_folder(path: &Path) -> Self {
        let message = format!("journal {} cannot be made, its folder is missing", path.display());
        let hint = "make the folder first, or choose another path";
        Self::new(Failure::new(ErrorCode::JOURNAL_IO, message).with_hint(hint))
    }

    pub(crate) fn missing(path: &Path) -> Self {
        let message = format!("journal {} does not exist", path.display());
        let hint = "check the path; a journal is made by the first run that writes to it";
        Self::new(Failure::new(ErrorCode::JOURNAL_IO, message).with_hint(hint))
    }

    pub(crate) fn not_a_file(path: &Path) -> Self {
        let message = format!("journal {} is not a file", path.display());
        Self::new(Failure::new(ErrorCode::JOURNAL_IO, message))
    }

    pub(crate) fn locked(path: &Path, pid: &str) -> Self {
        let message = format!("journal {} is in use by process {pid}", path.display());
        let failure = Failure::new(ErrorCode::JOURNAL_LOCKED, message);
        Self::new(failure.with_hint("end that process first, or open the journal for reading only"))
    }

    pub(crate) fn file_read_only(path: &Path) -> Self {
        let message = format!("journal {} cannot be written", path.display());
        Self::new(Failure::new(ErrorCode::JOURNAL_READ_ONLY, message).with_hint(READ_ONLY_HINT))
    }

    pub(crate) fn not_a_journal(path: &Path) -> Self {
        let message = format!("file {} is a database, but not a journal", path.display());
        let failure = Failure::new(ErrorCode::JOURNAL_CORRUPT, message);
        Self::new(failure.with_hint("choose another path"))
    }

    pub(crate) fn newer_store(path: &Path, seen: i64, supported: i64) -> Self {
        let message = format!(
            "journal {} has store version {seen}, this version reads up to {supported}",
            path.display()
        );
        Self::new(Failure::new(ErrorCode::JOURNAL_NEWER, message).with_hint(NEWER_HINT))
    }

    pub(crate) fn newer_events(session: &SessionId, seen: u64, supported: u32) -> Self {
        let message = format!(
            "session \"{session}\" has event format {seen}, this version reads up to {supported}"
        );
        Self::new(Failure::new(ErrorCode::JOURNAL_NEWER, message).with_hint(NEWER_HINT))
    }

    pub(crate) fn corrupt_session(session: &SessionId, seq: Seq, what: &str) -> Self {
        let message = format!("session \"{session}\" cannot be read at event {}: {what}", seq.0);
        Self::new(Failure::new(ErrorCode::JOURNAL_CORRUPT, message))
    }

    pub(crate) fn old_sqlite(seen: i32, least: i32) -> Self {
        let message = format!("SQLite has version number {seen}, at least {least} is needed");
        Self::new(Failure::new(ErrorCode::JOURNAL_IO, message))
    }

    /// A failed call of the operating system.
    pub(crate) fn io(path: &Path, doing: &str, source: io::Error) -> Self {
        let message = format!("journal {} could not be {doing}: {source}", path.display());
        let failure = match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Failure::new(ErrorCode::JOURNAL_READ_ONLY, message).with_hint(READ_ONLY_HINT)
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Failure::new(ErrorCode::JOURNAL_FULL, message).with_hint(FULL_HINT)
            }
            _ => Failure::new(ErrorCode::JOURNAL_IO, message),
        };
        Self::caused(failure, source)
    }

    /// A failed call of SQLite.
    pub(crate) fn sqlite(path: &Path, doing: &str, source: rusqlite::Error) -> Self {
        let message = format!("journal {} could not be {doing}: {source}", path.display());
        let Some(error) = source.sqlite_error() else {
            // SQLite gave a row, and what is in it is not what was stored.
            return Self::caused(Failure::new(ErrorCode::JOURNAL_CORRUPT, message), source);
        };
        let failure = match error.extended_code & 0xff {
            ffi::SQLITE_FULL => Failure::new(ErrorCode::JOURNAL_FULL, message).with_hint(FULL_HINT),
            ffi::SQLITE_READONLY | ffi::SQLITE_PERM => {
                Failure::new(ErrorCode::JOURNAL_READ_ONLY, message).with_hint(READ_ONLY_HINT)
            }
            ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => {
                Failure::new(ErrorCode::JOURNAL_CORRUPT, message)
                    .with_hint("the file is damaged or is no journal; put back a copy of it")
            }
            ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => {
                Failure::new(ErrorCode::JOURNAL_LOCKED, message)
                    .with_hint("another program holds the file; end it and try again")
            }
            ffi::SQLITE_IOERR => Failure::new(ErrorCode::JOURNAL_IO, message).with_hint(IO_HINT),
            _ => Failure::new(ErrorCode::JOURNAL_IO, message),
        };
        Self::caused(failure, source)
    }
}

/// Journals in a PostgreSQL database, named by host, port and database alone.
impl JournalError {
    pub(crate) fn owned(session: &SessionId, owner: &str) -> Self {
        let message = format!(
            "session \"{session}\" cannot be taken over, {owner:?} runs it until its lease ends"
        );
        let failure = Failure::new(ErrorCode::SESSION_OWNED, message);
        Self::new(failure.with_hint("try again later, or stop that process"))
    }

    pub(crate) fn not_owner(session: &SessionId, owner: &str) -> Self {
        let message = format!(
            "session \"{session}\" was appended to by a process that does not own it, its owner \
             is {owner:?}"
        );
        let failure = Failure::new(ErrorCode::JOURNAL_CONFLICT, message);
        Self::new(failure.with_hint("this process let go of it, or its lease has run out"))
    }

    pub(crate) fn postgres_no_lease(name: &str) -> Self {
        let message = format!("journal {name} gives this process no lease");
        let failure = Failure::new(ErrorCode::JOURNAL_IO, message);
        Self::new(failure.with_hint("check that the server can be reached and is not overloaded"))
    }

    pub(crate) fn postgres_url_invalid(what: &str) -> Self {
        let message = format!("journal address cannot be used: {what}");
        let failure = Failure::new(ErrorCode::JOURNAL_URL_INVALID, message);
        Self::new(failure.with_hint(
            "use postgresql://USER:PASSWORD@HOST:PORT/DATABASE with the parameters of libpq; \
             sslmode is disable, allow, prefer, require, verify-ca or verify-full",
        ))
    }

    pub(crate) fn postgres_missing(name: &str) -> Self {
        let message = format!("journal {name} does not exist, its database has no tables of it");
        let hint = "check the address; a journal is made by the first run that writes to it";
        Self::new(Failure::new(ErrorCode::JOURNAL_IO, message).with_hint(hint))
    }

    pub(crate) fn postgres_newer(name: &str, seen: i64, supported: i64) -> Self {
        let message = format!(
            "journal {name} has store version {seen}, this version reads up to {supported}"
        );
        Self::new(Failure::new(ErrorCode::JOURNAL_NEWER, message).with_hint(NEWER_HINT))
    }

    pub(crate) fn postgres_tls(name: &str, source: rustls::Error) -> Self {
        let message = format!("journal {name} cannot be spoken to with TLS: {source}");
        Self::caused(Failure::new(ErrorCode::JOURNAL_IO, message), source)
    }

    pub(crate) fn postgres_tls_file(name: &str, file: &Path, what: &str) -> Self {
        let message = format!(
            "journal {name} cannot be opened, the certificates in {} cannot be used: {what}",
            file.display()
        );
        let failure = Failure::new(ErrorCode::JOURNAL_IO, message);
        Self::new(failure.with_hint("give a file with certificates in PEM form in sslrootcert"))
    }

    /// A failed call of PostgreSQL.
    pub(crate) fn postgres(name: &str, doing: &str, source: postgres::Cause) -> Self {
        let message = format!("journal {name} could not be {doing}: {source}");
        let code = source.code().map_or("", SqlState::code);
        let (kind, hint) = match (code, &source) {
            ("53100", _) => (ErrorCode::JOURNAL_FULL, FULL_HINT),
            ("42501", _) => (ErrorCode::JOURNAL_READ_ONLY, RIGHTS_HINT),
            ("25006", _) => (ErrorCode::JOURNAL_READ_ONLY, STANDBY_HINT),
            ("3D000", _) => (ErrorCode::JOURNAL_IO, "make the database first"),
            ("XX001" | "XX002", _) | (_, postgres::Cause::Strange(_)) => {
                (ErrorCode::JOURNAL_CORRUPT, "the database is damaged; put back a copy of it")
            }
            (code, _) if code.starts_with("28") => {
                (ErrorCode::JOURNAL_IO, "check user and password of the address")
            }
            ("", _) => (ErrorCode::JOURNAL_IO, SERVER_HINT),
            (code, _) if code.starts_with("08") || code.starts_with("57P") || code == "53300" => {
                (ErrorCode::JOURNAL_IO, SERVER_HINT)
            }
            _ => (ErrorCode::JOURNAL_IO, LOG_HINT),
        };
        Self::caused(Failure::new(kind, message).with_hint(hint), source)
    }
}

const READ_ONLY_HINT: &str = "check the rights of the file and its folder, or choose another path";
const FULL_HINT: &str = "free some space; no acknowledged event is lost";
const IO_HINT: &str =
    "check the disk and the limit on file sizes (`ulimit -f`); no acknowledged event is lost";
const RIGHTS_HINT: &str = "let the owner of the database open the journal once, and grant this user \
                           SELECT, INSERT, UPDATE and DELETE on the tables mainspring_*";
const STANDBY_HINT: &str =
    "name the server that takes writes, or open the journal for reading only";
const SERVER_HINT: &str =
    "check that the server runs and can be reached; no acknowledged event is lost";
const LOG_HINT: &str = "the server's log says more; no acknowledged event is lost";
const NEWER_HINT: &str = "use the version of mainspring that wrote it, or a newer one";

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.failure.to_text())
    }
}

impl fmt::Debug for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalError").field("failure", &self.0.failure).finish()
    }
}

impl Error for JournalError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        error.failure()
    }
}
