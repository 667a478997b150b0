//! One writing process for each file: an exclusive lock on `FILE.lock`, which the system lets go
//! of when the process ends, however it ends. The lock file stays, since removing it would let two
//! processes lock two files of one name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::JournalError;

/// Holds the lock until dropped.
pub(super) struct OwnerLock {
    file: File,
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        // Closing would do, but for a moment every process that is being started has a copy of the
        // descriptor, and the lock would last as long as the copy.
        let _ = self.file.unlock();
    }
}

impl OwnerLock {
    /// Takes the lock for a journal, and writes down which process has it.
    pub(super) fn take(journal: &Path) -> Result<Self, JournalError> {
        let path = lock_path(journal);
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|error| JournalError::io(&path, "opened", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::locked(journal, &read_pid(&mut file)));
            }
            Err(TryLockError::Error(error)) => {
                return Err(JournalError::io(&path, "locked", error));
            }
        }
        // The number only serves a message, so a full disk must not keep a journal shut.
        let _ = write_pid(&mut file);
        Ok(Self { file })
    }
}

fn lock_path(journal: &Path) -> PathBuf {
    let mut path = journal.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(std::process::id().to_string().as_bytes())
}

fn read_pid(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(20).read_to_string(&mut text);
    match read {
        Ok(_) if !text.is_empty() => text,
        _ => "of unknown number".to_owned(),
    }
}
