//! The neutral conversation: one message type for every provider.
//!
//! Codecs in `mainspring-wire` translate it; nothing else knows a provider's spelling.

use serde::{Deserialize, Serialize};

/// A piece of what a user says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Plain text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture, by `https:` or `data:` address.
    Image {
        /// Where the picture is, or the picture itself as a `data:` address.
        url: String,
    },
}

impl Part {
    fn bytes(&self) -> usize {
        match self {
            Part::Text { text } => text.len(),
            Part::Image { .. } => 0,
        }
    }
}

/// A tool call as a model asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The id that pairs the call with its result inside the conversation. Unique in its answer.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as the model wrote them: a JSON text, or any text if `malformed`.
    pub arguments: String,
}

/// One message of the conversation, oldest first in a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    /// What the user, or the engine in the user's place, says.
    User {
        /// Its parts, in order.
        content: Vec<Part>,
    },
    /// What a model said.
    Assistant {
        /// Its text; empty when it only called tools.
        text: String,
        /// The tools it called, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall>,
        /// What it thought before, to be given back to it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reasoning: Vec<Reasoning>,
    },
    /// What a tool answered.
    Tool {
        /// The id of the call that this answers.
        call_id: String,
        /// The tool's name.
        name: String,
        /// The result, or the error for the model to read.
        text: String,
        /// True when the call failed.
        is_error: bool,
    },
}

impl Message {
    /// A user message of one text.
    #[must_use]
    pub fn user(text: impl Into<String>) -> Self {
        Self::User { content: vec![Part::Text { text: text.into() }] }
    }

    /// Bytes of what it says, without pictures.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Message::User { content } => content.iter().map(Part::bytes).sum(),
            Message::Assistant { text, tool_calls, .. } => {
                let calls = tool_calls.iter();
                let calls = calls.map(|call| call.name.len() + call.arguments.len());
                text.len() + calls.sum::<usize>()
            }
            Message::Tool { text, .. } => text.len(),
        }
    }
}

/// In which form an API gives a piece of reasoning and takes it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningKind {
    /// Chat Completions, the field `reasoning_content`: `text`.
    Content,
    /// Chat Completions, the field `reasoning`: `text`.
    Plain,
    /// Chat Completions, an element of `reasoning_details`: `data` is its JSON, `text` what of it
    /// can be read.
    Detail,
    /// Responses, an item whose summary is `text`; `id`, and `data` encrypted.
    Summary,
    /// Responses, an item whose content is `text`; `id`, and `data` if it is encrypted too.
    Item,
    /// Messages, a block of `text` and `signature`.
    Thinking,
    /// Messages, a block of `data` that only the provider can read.
    Redacted,
}

/// A piece of what a model thought before it answered.
///
/// Providers want it back unchanged, and each takes only its own: it goes back to the model of the
/// same name on the same server, and to no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reasoning {
    /// Its form.
    pub kind: ReasoningKind,
    /// Who thought it: `NAME@HOST` of the model.
    pub origin: String,
    /// How many parts of the answer came before it: its text counts as the first, then its tool
    /// calls.
    #[serde(default, skip_serializing_if = "is_none_before")]
    pub after: u32,
    /// What of it can be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The provider's signature of the text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
    /// What only the provider can read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data: String,
    /// The provider's id of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
}

/// What a model answered: text, tool calls, or both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The text; empty when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The tool calls, in the model's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// What it thought before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasoning: Vec<Reasoning>,
}

/// Tokens that one model call used, as the provider counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read, cached ones included.
    #[serde(default)]
    pub input_tokens: u64,
    /// Tokens written, reasoning included.
    #[serde(default)]
    pub output_tokens: u64,
    /// Of the tokens read, those that came from the provider's prompt cache.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    /// Of the tokens read, those that were put into the provider's prompt cache.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_write_tokens: u64,
    /// Of the tokens written, those spent on reasoning.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reasoning_tokens: u64,
}

impl Usage {
    /// Tokens read and written.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }

    /// Adds another call's tokens.
    pub fn add(&mut self, other: Usage) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        self.cache_write_tokens = self.cache_write_tokens.saturating_add(other.cache_write_tokens);
        self.reasoning_tokens = self.reasoning_tokens.saturating_add(other.reasoning_tokens);
    }
}

fn is_none_before(count: &u32) -> bool {
    *count == 0
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
