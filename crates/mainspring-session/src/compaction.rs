//! How an agent's conversation is kept within what its models can read, as data.

use serde::{Deserialize, Serialize};

/// What to do when a conversation outgrows a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compaction {
    /// Whether anything is done at all; without it, a conversation that is too long fails.
    pub enabled: bool,
    /// How full a model's window is after a compaction, in per cent. Default 60.
    pub target_percent: u32,
    /// Bytes that an old tool result keeps. Default 1,000.
    pub result_bytes: u32,
    /// Whether a model is asked for a summary of what is left out. Default yes.
    pub summarise: bool,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { enabled: true, target_percent: 60, result_bytes: 1_000, summarise: true }
    }
}

impl Compaction {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
