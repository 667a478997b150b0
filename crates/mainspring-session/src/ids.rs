//! Identifiers as types of their own, so that none is mistaken for another.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Names a session: 1 to 128 characters out of `A-Z a-z 0-9 . _ : -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct SessionId(Arc<str>);

/// A session id that breaks the rule of [`SessionId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("session id {0:?} is not valid\nhint: use 1 to 128 characters out of A-Z a-z 0-9 . _ : -")]
pub struct InvalidSessionId(String);

impl SessionId {
    /// Most characters that an id may have.
    pub const LENGTH_MAX: usize = 128;

    /// Checks and wraps an id.
    ///
    /// # Errors
    /// [`InvalidSessionId`] if it is empty, too long, or has a character outside the allowed set.
    pub fn new(id: &str) -> Result<Self, InvalidSessionId> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
        if id.is_empty() || id.len() > Self::LENGTH_MAX || !id.chars().all(allowed) {
            return Err(InvalidSessionId(id.chars().take(200).collect()));
        }
        Ok(Self(id.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SessionId {
    type Error = InvalidSessionId;
    fn try_from(id: String) -> Result<Self, Self::Error> {
        Self::new(&id)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.0)
    }
}

/// Position of an event in its session; the first is 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// Counts the owners a session has had; a writer with an older epoch is refused.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Position of a tool call among all tool calls of its session; the first is 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CallIndex(pub u64);

/// The same for every attempt of one tool call, in this process and after a crash: the key that
/// lets the other side recognise a repetition.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EffectId(Arc<str>);

impl EffectId {
    /// Derives the id of a tool call: 32 hex digits of SHA-256 over session, position, tool and
    /// arguments. So a restored older copy of a session that asks for the same again is recognised
    /// as the same, and one that asks for something else at that position is not.
    #[must_use]
    pub fn derive(session: &SessionId, call: CallIndex, tool: &str, arguments: &str) -> Self {
        let index = call.0.to_be_bytes();
        let parts = [session.as_str().as_bytes(), &index, tool.as_bytes(), arguments.as_bytes()];
        Self(digest("mainspring.effect.v2", &parts).into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EffectId({})", self.0)
    }
}

/// Names one request for an approval. A later request for the same call has another id, so that an
/// answer counts once and only for what was asked.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApprovalId(Arc<str>);

impl ApprovalId {
    /// Derives the id of a request: 32 hex digits of SHA-256 over the session, its owner's epoch,
    /// the store it is in and the call.
    #[must_use]
    pub fn derive(session: &SessionId, epoch: Epoch, store: &str, call: CallIndex) -> Self {
        let (epoch, index) = (epoch.0.to_be_bytes(), call.0.to_be_bytes());
        let parts = [session.as_str().as_bytes(), &epoch, store.as_bytes(), &index];
        Self(digest("mainspring.approval.v1", &parts).into())
    }

    /// Wraps an id as somebody gave it.
    #[must_use]
    pub fn named(id: &str) -> Self {
        Self(id.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApprovalId({})", self.0)
    }
}

/// SHA-256 of a stored body, as 64 hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlobHash(Arc<str>);

impl BlobHash {
    /// Hashes a body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(hex(&Sha256::digest(body)).into())
    }

    /// A hash as it stands somewhere: 64 hex digits.
    #[must_use]
    pub fn named(hex: &str) -> Self {
        Self(hex.into())
    }

    /// The hash as 64 hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobHash({})", self.0)
    }
}

/// 32 hex digits of SHA-256 over a purpose and parts, each with its length in front.
fn digest(purpose: &str, parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(purpose.as_bytes());
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hex(&hasher.finalize()[..16])
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
