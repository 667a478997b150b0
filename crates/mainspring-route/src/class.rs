//! What a step is for, as far as the runtime knows without asking anybody.

use serde::{Deserialize, Serialize};

/// What a step is for: the best single thing to know about how hard it is.
///
/// # Source
/// Task class alone gives APGR 0.638 on MMLU, more than any prompt model of the same data
/// (`bench/routing.py`).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum StepClass {
    /// Decide what to do next.
    Plan,
    /// Fill in the arguments of a tool call.
    ToolArgs,
    /// Say the same in fewer words.
    Summarise,
    /// Find given things in a text.
    Extract,
    /// Say whether something is right.
    Judge,
    /// The answer that the turn is for.
    Answer,
    /// Write or change a program.
    Code,
    /// Anything else in a conversation.
    #[default]
    Chat,
}

impl StepClass {
    /// All classes, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Plan,
        Self::ToolArgs,
        Self::Summarise,
        Self::Extract,
        Self::Judge,
        Self::Answer,
        Self::Code,
        Self::Chat,
    ];

    /// The class as it is written in logs and weights files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::ToolArgs => "tool_args",
            Self::Summarise => "summarise",
            Self::Extract => "extract",
            Self::Judge => "judge",
            Self::Answer => "answer",
            Self::Code => "code",
            Self::Chat => "chat",
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }
}
