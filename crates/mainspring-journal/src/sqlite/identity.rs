//! What names one journal file: a random number that is stored in it, and the file's inode and
//! birth time, which a copy does not take along.

use std::fs::Metadata;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::JournalError;

/// Names the file at a path. `store` is its stored number; an empty name if it has none yet.
pub(super) fn name(path: &Path, store: Option<&[u8]>) -> Result<String, JournalError> {
    let Some(store) = store else { return Ok(String::new()) };
    let file = path.metadata().map_err(|error| JournalError::io(path, "found", error))?;
    // Some file systems keep no birth time; the inode has to do there.
    let born =
        file.created().ok().and_then(|time: SystemTime| time.duration_since(UNIX_EPOCH).ok());
    let store: String = store.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{store}-{}-{}", inode(&file), born.map_or(0, |age| age.as_nanos())))
}

#[cfg(unix)]
fn inode(file: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> u64 {
    0
}
