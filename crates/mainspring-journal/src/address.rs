//! Reads a journal's address. Keeps secrets out of messages: an address that is not understood is
//! shown by its kind only, since what follows may hold a password.

use std::fmt;
use std::path::PathBuf;

use crate::error::JournalError;

/// Where a journal is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// In this process.
    Memory,
    /// In a file.
    Sqlite(PathBuf),
    /// In a PostgreSQL database.
    Postgres(Secret),
}

/// An address that may hold a password, and so is never shown.
#[derive(PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The address, for the one who connects.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Reads an address; see [`crate::open`] for the forms.
pub(crate) fn parse(url: &str) -> Result<Address, JournalError> {
    if url == "memory:" {
        return Ok(Address::Memory);
    }
    if let Some(rest) = url.strip_prefix("sqlite:") {
        return match rest.strip_prefix("///") {
            None => Err(JournalError::url_invalid("sqlite address without three slashes")),
            Some("" | "/") => Err(JournalError::url_invalid("sqlite address without a file")),
            Some(path) if path.contains('?') => {
                Err(JournalError::url_invalid("sqlite address with parameters"))
            }
            Some(path) => Ok(Address::Sqlite(path.into())),
        };
    }
    if url.starts_with("postgresql:") || url.starts_with("postgres:") {
        return Ok(Address::Postgres(Secret(url.to_owned())));
    }
    match url.split_once(':') {
        _ if url.is_empty() => Err(JournalError::url_invalid("empty address")),
        Some((kind, _)) if !kind.contains('/') => {
            let kind: String = kind.chars().take(40).collect();
            Err(JournalError::url_invalid(&format!("address of kind {kind:?}")))
        }
        _ => Ok(Address::Sqlite(url.into())),
    }
}
