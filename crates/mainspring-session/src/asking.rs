//! The events about what only a person, or a function in their place, can say of a tool call:
//! whether it may run, and what became of it when its process ended. The other events, and the
//! list of all, are in `event.rs`.

use serde::{Deserialize, Serialize};

use crate::ids::{ApprovalId, CallIndex};

/// A person must decide before a tool call runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRequested {
    /// The call.
    pub call: CallIndex,
    /// Names this request; an answer to another one does not count.
    pub approval: ApprovalId,
}

/// What a person decided about a tool call that waits for approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum ApprovalDecision {
    /// It runs.
    Granted {
        /// The arguments to run it with, if not those the model gave.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arguments: Option<String>,
    },
    /// It does not run, and the model is told this.
    Denied {
        /// Why not.
        message: String,
    },
}

/// A person decided about a tool call that waited for approval. Counts once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalDecided {
    /// The call.
    pub call: CallIndex,
    /// The request that was answered.
    pub approval: ApprovalId,
    /// What was decided.
    #[serde(flatten)]
    pub decision: ApprovalDecision,
    /// Who decided, if they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// An unsafe tool call lost its process: whether it took effect must be found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectUnknown {
    /// The call.
    pub call: CallIndex,
    /// The attempt that was under way.
    pub attempt: u32,
}

/// What became of a call whose process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum EffectOutcome {
    /// It took effect, and this is its result.
    Done {
        /// What the model reads.
        text: String,
    },
    /// It did not take effect: it is run again.
    NotDone,
    /// The tool's own function could not find out: a person must decide.
    Undecided {
        /// Why not.
        message: String,
    },
    /// It is given up, and the model is told this.
    Failed {
        /// What the model reads.
        message: String,
    },
}

/// It was found out, or decided, what became of a call whose process ended. Counts once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectResolved {
    /// The call.
    pub call: CallIndex,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: EffectOutcome,
    /// Who found out or decided: `reconcile` is the tool's own function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}
