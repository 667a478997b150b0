//! One connection to the server, used by one thread at a time, and what can go wrong with it.
//!
//! Invariant: every wait has an end. A connection that was given up in the middle of a statement
//! is never used again; whether the statement took effect is then unknown, and the caller's to
//! find out. Statements are unnamed and take one round trip, so that a pooler may hand each to
//! another connection of its own.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row};

use super::place::Place;
use crate::error::JournalError;

/// A value for a statement, with its type.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// How long a connection that is closed in good order is waited for.
const GOODBYE: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct Link {
    runtime: Option<Runtime>,
    client: Option<Client>,
    driver: Option<JoinHandle<()>>,
    /// When what is going on must have ended.
    until: Instant,
    broken: bool,
}

/// Why a statement failed, by what to do about it.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Connect anew and try again; whether a statement took effect is unknown.
    Broken(Cause),
    /// Try the same again; nothing took effect.
    Again(Cause),
    /// Trying again does not help; nothing took effect.
    Refused(Cause),
}

/// What the server or the connection said.
#[derive(Debug)]
pub(crate) enum Cause {
    Driver(tokio_postgres::Error),
    System(std::io::Error),
    Slow(Duration),
    /// The server gave a row that is not what was stored.
    Strange(String),
}

impl Link {
    /// Connects; everything until [`Link::allow`] must be done within this time.
    pub(super) fn connect(place: &Place, within: Duration) -> Result<Self, Trouble> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Trouble::Refused(Cause::System(error)))?;
        let made = runtime.block_on(async { timeout(within, connect(place)).await });
        let (client, driver) = match made {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => {
                runtime.shutdown_background();
                return Err(Trouble::connecting(error));
            }
            Err(_) => {
                runtime.shutdown_background();
                return Err(Trouble::Broken(Cause::Slow(within)));
            }
        };
        Ok(Self {
            runtime: Some(runtime),
            client: Some(client),
            driver: Some(driver),
            until: Instant::now() + within,
            broken: false,
        })
    }

    /// Gives what follows so much time from now on.
    pub(super) fn allow(&mut self, within: Duration) {
        self.until = Instant::now() + within;
    }

    /// Whether it may be used for another statement.
    pub(super) fn is_sound(&self) -> bool {
        !self.broken && self.client.as_ref().is_some_and(|client| !client.is_closed())
    }

    /// Runs a statement and gives its rows.
    pub(super) fn query(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Trouble> {
        let params: Vec<Param<'_>> =
            params.iter().map(|(value, kind)| (*value, kind.clone())).collect();
        self.run(async |client| client.query_typed(sql, &params).await)
    }

    /// Runs a statement and gives how many rows it changed.
    pub(super) fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, Trouble> {
        let params: Vec<Param<'_>> =
            params.iter().map(|(value, kind)| (*value, kind.clone())).collect();
        self.run(async |client| client.execute_typed(sql, &params).await)
    }

    /// Runs statements without values.
    pub(super) fn batch(&mut self, sql: &str) -> Result<(), Trouble> {
        self.run(async |client| client.batch_execute(sql).await)
    }

    /// Runs statements as one transaction.
    pub(super) fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        // Said in full, since a server may have other defaults.
        self.batch("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")?;
        let done = work(self);
        let end = match &done {
            Ok(_) => self.batch("COMMIT"),
            Err(_) if self.is_sound() => self.batch("ROLLBACK"),
            Err(_) => Ok(()),
        };
        match (done, end) {
            (Ok(value), Ok(())) => Ok(value),
            (Ok(_), Err(trouble)) => Err(trouble),
            (Err(trouble), ended) => {
                // Without an end of the transaction the connection is of no use.
                self.broken |= ended.is_err();
                Err(trouble)
            }
        }
    }

    /// Ends the connection in good order.
    pub(super) fn close(mut self) {
        drop(self.client.take());
        if let (Some(runtime), Some(driver)) = (&self.runtime, self.driver.take()) {
            // The server notices the end of a connection in any case.
            let _ = runtime.block_on(async { timeout(GOODBYE, driver).await });
        }
    }

    fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Trouble> {
        let (Some(runtime), Some(client)) = (&self.runtime, &self.client) else {
            unreachable!("a link has both until it is closed, which takes it away");
        };
        let within = self.until.saturating_duration_since(Instant::now());
        let done = runtime.block_on(async { timeout(within, work(client)).await });
        let done = match done {
            Ok(done) => done.map_err(Trouble::running),
            Err(_) => Err(Trouble::Broken(Cause::Slow(within))),
        };
        self.broken |= matches!(done, Err(Trouble::Broken(_)));
        done
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it is not allowed everywhere.
            runtime.shutdown_background();
        }
    }
}

type Made = (Client, JoinHandle<()>);

async fn connect(place: &Place) -> Result<Made, tokio_postgres::Error> {
    let Some(connector) = &place.tls.connector else { return connect_plain(&place.config).await };
    match place.config.connect(connector.clone()).await {
        Ok((client, connection)) => Ok((client, drive(connection))),
        Err(error) if place.tls.optional && is_tls(&error) => {
            let mut config = place.config.clone();
            connect_plain(config.ssl_mode(SslMode::Disable)).await
        }
        Err(error) => Err(error),
    }
}

async fn connect_plain(config: &Config) -> Result<Made, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    Ok((client, drive(connection)))
}

/// Whether the two ends could not agree on encryption.
fn is_tls(error: &tokio_postgres::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<rustls::Error>() {
            return true;
        }
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        source = cause.source();
    }
    false
}

fn drive<S, T>(connection: tokio_postgres::Connection<S, T>) -> JoinHandle<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        // The statement that was under way hears of it.
        let _ = connection.await;
    })
}

impl Trouble {
    /// Sorts a failure to connect.
    fn connecting(error: tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) if is_passing(code) => Self::Broken(Cause::Driver(error)),
            Some(_) => Self::Refused(Cause::Driver(error)),
            None => Self::Broken(Cause::Driver(error)),
        }
    }

    /// Sorts a failure of a statement.
    fn running(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            // What could not be put into a message was not sent; all else cuts the connection.
            return match is_unsent(&error) {
                true => Self::Refused(Cause::Driver(error)),
                false => Self::Broken(Cause::Driver(error)),
            };
        };
        let code = db.code();
        if [
            &SqlState::T_R_SERIALIZATION_FAILURE,
            &SqlState::T_R_DEADLOCK_DETECTED,
            &SqlState::LOCK_NOT_AVAILABLE,
        ]
        .contains(&code)
        {
            Self::Again(Cause::Driver(error))
        } else if is_passing(code) || matches!(db.severity(), "FATAL" | "PANIC") {
            Self::Broken(Cause::Driver(error))
        } else {
            Self::Refused(Cause::Driver(error))
        }
    }

    /// What happened.
    pub(super) fn cause(&self) -> &Cause {
        let (Self::Broken(cause) | Self::Again(cause) | Self::Refused(cause)) = self;
        cause
    }

    /// The error to show when nothing more is tried.
    pub(super) fn into_error(self, name: &str, doing: &str) -> JournalError {
        let (Self::Broken(cause) | Self::Again(cause) | Self::Refused(cause)) = self;
        JournalError::postgres(name, doing, cause)
    }
}

/// Whether a server says something that another try, on another connection, may not meet again:
/// it starts, stops or is full (57P01 to 57P03, 53300), a standby was reached (25006), the
/// statement was cancelled by somebody, or the connection is in trouble (class 08).
fn is_passing(code: &SqlState) -> bool {
    let passing = [
        &SqlState::ADMIN_SHUTDOWN,
        &SqlState::CRASH_SHUTDOWN,
        &SqlState::CANNOT_CONNECT_NOW,
        &SqlState::TOO_MANY_CONNECTIONS,
        &SqlState::READ_ONLY_SQL_TRANSACTION,
        &SqlState::QUERY_CANCELED,
        &SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    passing.contains(&code) || code.code().starts_with("08")
}

impl Cause {
    /// The server's code, if it was the server that spoke.
    pub(crate) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Driver(error) => error.code(),
            _ => None,
        }
    }

    /// Whether it was a value that could not be taken: not text, too large and the like. Another
    /// statement may be taken then. (Classes 22 and 54, or the driver before it sent anything.)
    pub(super) fn is_about_values(&self) -> bool {
        match (self, self.code()) {
            (_, Some(code)) => code.code().starts_with("22") || code.code().starts_with("54"),
            (Self::Driver(error), None) => is_unsent(error),
            _ => false,
        }
    }
}

/// Whether a message could not be made, and so nothing was sent.
fn is_unsent(error: &tokio_postgres::Error) -> bool {
    let text = error.to_string();
    text.starts_with("error serializing") || text.starts_with("error encoding")
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(error) => match error.as_db_error() {
                Some(db) => write!(f, "{} (SQLSTATE {})", db.message(), db.code().code()),
                None => {
                    write!(f, "{error}")?;
                    let mut source = error.source();
                    while let Some(cause) = source {
                        write!(f, ": {cause}")?;
                        source = cause.source();
                    }
                    Ok(())
                }
            },
            Self::System(error) => write!(f, "{error}"),
            Self::Slow(within) => write!(f, "no answer within {} ms", within.as_millis()),
            Self::Strange(what) => f.write_str(what),
        }
    }
}

impl Error for Cause {}
