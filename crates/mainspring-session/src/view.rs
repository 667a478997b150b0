//! What of a conversation a model gets to read, made from a [`View`].
//!
//! Invariants: a tool call is shown exactly if its result is, whatever ranges a view keeps; two views
//! of one generation differ only in messages at the end of the later one.

use std::borrow::Cow;

use crate::context::{Trim, View};
use crate::message::{Message, Part};
use crate::state::State;
use crate::tokens::Weight;

/// Bytes over its bound from which on a text is cut: the mark that says so has about this many.
const MARK_BYTES: usize = 40;
/// Bytes of a tool's name that a cut call keeps; providers take 64 at most.
const NAME_BYTES_MAX: usize = 64;
const PICTURE_CUT: &str = "[a picture was cut]";

impl State {
    /// The messages that a model gets to read, oldest first.
    #[must_use]
    pub fn sent(&self) -> Vec<Cow<'_, Message>> {
        sent(&self.messages, &self.context.view)
    }

    /// The ranges of the conversation that [`State::sent`] has messages of.
    #[must_use]
    pub fn sent_ranges(&self) -> Vec<(u32, u32)> {
        let count = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let view = &self.context.view;
        let mut ranges = match view.generation {
            0 => vec![(0, count)],
            _ => view.kept.clone(),
        };
        if let Some(last) = ranges.last_mut() {
            last.1 = count;
        }
        ranges
    }
}

impl View {
    /// How a message is cut; none if it is sent as it is.
    fn trim_of(&self, index: usize) -> Option<Trim> {
        let at = self.trimmed.binary_search_by_key(&index, |trim| trim.message as usize).ok()?;
        self.trimmed.get(at).copied()
    }

    /// How many of the first `count` messages are left out.
    fn left_out(&self, count: usize) -> usize {
        let last = self.kept.len().saturating_sub(1);
        let kept: usize = (0..)
            .zip(&self.kept)
            .map(|(at, &(from, to))| {
                let to = if at == last { count } else { to as usize };
                to.saturating_sub(from as usize)
            })
            .sum();
        count.saturating_sub(kept)
    }
}

/// The messages of a view.
pub(crate) fn sent<'a>(all: &'a [Message], view: &View) -> Vec<Cow<'a, Message>> {
    if view.generation == 0 {
        return all.iter().map(Cow::Borrowed).collect();
    }
    let mut out: Vec<Cow<'a, Message>> = Vec::new();
    let last = view.kept.len().saturating_sub(1);
    let mut note = note(all.len(), view);
    for (at, &(from, to)) in view.kept.iter().enumerate() {
        let to = if at == last { all.len() } else { (to as usize).min(all.len()) };
        let from = from as usize;
        for index in from..to {
            let Some(message) = shown(all, view, index, (from, to)) else { continue };
            // The first input says what all is about; what comes after it was left out.
            let first = matches!(message.as_ref(), Message::User { .. }) && out.is_empty();
            if !first {
                out.extend(note.take().filter(|_| out.is_empty()).map(Cow::Owned));
            }
            push(&mut out, message, at > 0 && index == from);
            if let (true, Some(note)) = (first, note.take()) {
                push(&mut out, Cow::Owned(note), true);
            }
        }
    }
    out
}

/// What is said of what was left out, in its place; none if nothing was.
fn note(count: usize, view: &View) -> Option<Message> {
    let left_out = view.left_out(count);
    let text = match &view.summary {
        Some(summary) => format!("[Summary of the conversation since then]\n{summary}"),
        None if left_out == 0 => return None,
        None => format!("[{left_out} messages since then were left out]"),
    };
    Some(Message::user(text))
}

/// Adds a message; at a seam, what the user says joins what the user said before, since many models
/// take no two messages of the user in a row.
fn push<'a>(out: &mut Vec<Cow<'a, Message>>, message: Cow<'a, Message>, seam: bool) {
    if seam
        && let Message::User { content } = message.as_ref()
        && let Some(before) = out.last_mut()
        && matches!(before.as_ref(), Message::User { .. })
    {
        if let Message::User { content: said } = before.to_mut() {
            said.extend(content.iter().cloned());
        }
        return;
    }
    out.push(message);
}

/// A message as it is sent; none if it is a result without its call, or is not kept.
fn shown<'a>(
    all: &'a [Message],
    view: &View,
    index: usize,
    (from, to): (usize, usize),
) -> Option<Cow<'a, Message>> {
    let message = all.get(index)?;
    let mut message = match message {
        Message::Tool { .. } => {
            let owner = all[..index].iter().rposition(|it| !matches!(it, Message::Tool { .. }))?;
            let kept = (owner >= from && owner < to) || is_kept(view, owner, all.len());
            kept.then_some(Cow::Borrowed(message))?
        }
        Message::Assistant { text, tool_calls, reasoning } => {
            let has_result = |at: &usize| {
                let result = index + 1 + at;
                result < to || result >= all.len() || is_kept(view, result, all.len())
            };
            if (0..tool_calls.len()).all(|at| has_result(&at)) {
                Cow::Borrowed(message)
            } else {
                let kept = (0..tool_calls.len()).filter(has_result);
                Cow::Owned(Message::Assistant {
                    text: text.clone(),
                    tool_calls: kept.map(|at| tool_calls[at].clone()).collect(),
                    reasoning: reasoning.clone(),
                })
            }
        }
        Message::User { .. } => Cow::Borrowed(message),
    };
    if let Some(trim) = view.trim_of(index) {
        message = Cow::Owned(trimmed(message.into_owned(), trim.bytes as usize));
    }
    Some(message)
}

fn is_kept(view: &View, index: usize, count: usize) -> bool {
    let last = view.kept.len().saturating_sub(1);
    let at = view.kept.partition_point(|&(from, _)| from as usize <= index);
    let Some(at) = at.checked_sub(1) else { return false };
    let end = if at == last { count } else { view.kept[at].1 as usize };
    index < end
}

/// A message with each of its texts cut to so many bytes.
pub(crate) fn trimmed(message: Message, bytes: usize) -> Message {
    match message {
        Message::User { content } => {
            let texts: Vec<_> = content
                .into_iter()
                .map(|part| match part {
                    Part::Text { text } => text,
                    Part::Image { .. } => PICTURE_CUT.to_owned(),
                })
                .collect();
            Message::user(cut_middle(texts.join("\n"), bytes))
        }
        Message::Assistant { text, mut tool_calls, mut reasoning } => {
            for call in &mut tool_calls {
                call.arguments = cut_middle(std::mem::take(&mut call.arguments), bytes);
                call.name.truncate(call.name.floor_char_boundary(NAME_BYTES_MAX));
            }
            // A provider takes its model's thoughts back whole or not at all.
            let thoughts: usize = reasoning.iter().map(|it| it.text.len() + it.data.len()).sum();
            if thoughts > bytes {
                reasoning.clear();
            }
            Message::Assistant { text: cut_middle(text, bytes), tool_calls, reasoning }
        }
        Message::Tool { call_id, name, text, is_error } => {
            Message::Tool { call_id, name, text: cut_middle(text, bytes), is_error }
        }
    }
}

/// Whether [`trimmed`] makes a message shorter.
pub(crate) fn exceeds(message: &Message, bytes: usize) -> bool {
    let long = |text: &str| text.len() > bytes + MARK_BYTES;
    match message {
        Message::User { content } => {
            let images = content.iter().any(|part| matches!(part, Part::Image { .. }));
            let text: usize = content.iter().map(part_bytes).sum();
            images || content.len() > 1 && text > bytes || text > bytes + MARK_BYTES
        }
        Message::Assistant { text, tool_calls, reasoning } => {
            let thoughts: usize = reasoning.iter().map(|it| it.text.len() + it.data.len()).sum();
            let calls = tool_calls
                .iter()
                .any(|call| long(&call.arguments) || call.name.len() > NAME_BYTES_MAX);
            long(text) || calls || thoughts > bytes
        }
        Message::Tool { text, .. } => long(text),
    }
}

fn part_bytes(part: &Part) -> usize {
    match part {
        Part::Text { text } => text.len() + 1,
        Part::Image { .. } => PICTURE_CUT.len() + 1,
    }
}

/// A text without its middle, on character boundaries, that says so.
pub(crate) fn cut_middle(text: String, bytes_max: usize) -> String {
    if text.len() <= bytes_max.saturating_add(MARK_BYTES) {
        return text;
    }
    let head = text.floor_char_boundary(bytes_max / 2);
    let tail = text.ceil_char_boundary(text.len() - bytes_max / 2);
    format!("{}\n[... {} bytes cut ...]\n{}", &text[..head], tail - head, &text[tail..])
}

/// The weight of a view's messages.
pub(crate) fn weight(all: &[Message], view: &View) -> Weight {
    sent(all, view).iter().fold(Weight::default(), |sum, it| sum.plus(Weight::of(it)))
}
