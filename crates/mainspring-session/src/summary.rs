//! Summaries of the oldest part of a conversation: what a model is told, and what its answer becomes.
//!
//! Invariant: nothing here can fail a turn. Where there is no summary, the messages are left out
//! without one.

use std::borrow::Cow;
use std::fmt::Write;

use crate::compact::SUMMARY_BYTES_MAX;
use crate::context::{ActiveSummary, SummaryFailed, SummaryFinished};
use crate::error::{ErrorCode, Failure};
use crate::event::{Event, Timing};
use crate::message::{Message, Part, Usage};
use crate::spec::AgentSpec;
use crate::spending::{charge_of_failure, estimate_summary};
use crate::state::{Phase, State};
use crate::view::cut_middle;

/// What the model that summarises is told to do.
pub const SUMMARY_INSTRUCTIONS: &str = "You shorten the beginning of a conversation between a user \
    and an assistant with tools, so that the assistant can go on without it. Write down, in at most \
    400 words: what the user wants and every condition they gave; what was found out, with exact \
    names, numbers, paths and ids; what was done, and what failed and why; what is still to be done. \
    Invent nothing, answer nothing, call nothing. Write only the summary.";
/// Bytes that one tool result keeps in the text to be summarised.
const RESULT_BYTES_MAX: usize = 2_000;

/// A summary that a model gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Its text.
    pub text: String,
    /// Tokens, as the provider counted them.
    pub usage: Usage,
    /// How long it took.
    pub timing: Timing,
}

/// What the end of a summary leads to; nothing if it is about another one.
pub(crate) fn ended(
    state: &State,
    spec: &AgentSpec,
    step: u32,
    outcome: Result<Summary, Failure>,
) -> Option<Event> {
    let Phase::Summarising(active) = state.phase else { return None };
    if active.step != step {
        return None;
    }
    let failed = |error: Failure| {
        let expected = state.spending.reserved;
        let read = estimate_summary(spec, &active).read;
        let charged = expected.map(|expected| charge_of_failure(&error.code, expected, read));
        Some(Event::SummaryFailed(SummaryFailed { step, error, charged }))
    };
    match outcome {
        Ok(Summary { text, usage, timing }) if !text.trim().is_empty() => {
            let price = spec.models.get(active.tier as usize).and_then(|model| model.price);
            let text = cut_middle(text.trim().to_owned(), SUMMARY_BYTES_MAX);
            let cost_usd = price.map(|price| price.of(usage));
            Some(Event::SummaryFinished(SummaryFinished { step, text, usage, cost_usd, timing }))
        }
        Ok(_) => failed(Failure::new(ErrorCode::MODEL_BAD_RESPONSE, "the summary is empty")),
        Err(error) => failed(error),
    }
}

impl State {
    /// The text to be summarised: the summary so far, and the messages as a script.
    #[must_use]
    pub fn to_summarise(&self, summary: &ActiveSummary) -> String {
        let (from, to) = (summary.messages.0 as usize, summary.messages.1 as usize);
        let mut text = String::new();
        if let Some(before) = &self.context.view.summary {
            let _ = writeln!(text, "Summary of what came before:\n{before}\n");
        }
        let messages = self.messages.get(from..to.min(self.messages.len())).unwrap_or(&[]);
        for message in messages {
            write_line(&mut text, message);
        }
        let bytes_max = usize::try_from(summary.bytes_max).unwrap_or(usize::MAX);
        cut_middle(text, bytes_max)
    }
}

fn write_line(text: &mut String, message: &Message) {
    // Writing to a string cannot fail.
    let _ = match message {
        Message::User { content } => {
            let parts: Vec<_> = content.iter().map(part_text).collect();
            writeln!(text, "User: {}", parts.join("\n"))
        }
        Message::Assistant { text: said, tool_calls, .. } => {
            for call in tool_calls {
                let arguments = cut_middle(call.arguments.clone(), RESULT_BYTES_MAX);
                let _ = writeln!(text, "Assistant calls {}({arguments})", call.name);
            }
            if said.is_empty() { Ok(()) } else { writeln!(text, "Assistant: {said}") }
        }
        Message::Tool { name, text: result, is_error, .. } => {
            let mark = if *is_error { " (error)" } else { "" };
            let result = cut_middle(result.clone(), RESULT_BYTES_MAX);
            writeln!(text, "Result of {name}{mark}: {result}")
        }
    };
}

fn part_text(part: &Part) -> Cow<'_, str> {
    match part {
        Part::Text { text } => Cow::Borrowed(text),
        Part::Image { .. } => Cow::Borrowed("[a picture]"),
    }
}
