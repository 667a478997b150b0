//! Whether the values of a tool call's arguments come from what the model was told.
//!
//! A number must occur as a number, a text with its words; what a model may well choose by itself
//! (switches, small and round numbers, single lower-case words such as units) does not count.

use std::collections::BTreeSet;

use serde_json::Value;

/// Values of one answer's arguments that are looked at.
const VALUES_MAX: usize = 256;
/// Of each text that values may come from, the end is looked at.
const SOURCE_BYTES_MAX: usize = 64 * 1024;
/// Least share of a text's words that must occur.
const WORDS_SHARE: f64 = 0.5;
/// Depth to which arguments are looked into.
const DEPTH_MAX: usize = 16;

/// How many argument values were looked for, and how many were found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Grounded {
    pub(crate) values: u32,
    pub(crate) found: u32,
}

/// Looks for the arguments' values in the texts.
pub(crate) fn ground(arguments: &[&str], question: &str, context: &[&str]) -> Grounded {
    let mut grounded = Grounded::default();
    let values: Vec<Value> =
        arguments.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
    if values.is_empty() {
        return grounded;
    }
    let sources: Vec<&str> = std::iter::once(question).chain(context.iter().copied()).collect();
    let known = words_of(&sources);
    for value in &values {
        visit(value, 0, &known, &mut grounded);
    }
    grounded
}

fn visit(value: &Value, depth: usize, known: &BTreeSet<String>, grounded: &mut Grounded) {
    if depth > DEPTH_MAX || grounded.values as usize >= VALUES_MAX {
        return;
    }
    match value {
        Value::Array(items) => {
            items.iter().for_each(|item| visit(item, depth + 1, known, grounded));
        }
        Value::Object(fields) => {
            fields.values().for_each(|field| visit(field, depth + 1, known, grounded));
        }
        Value::Number(number) => {
            let text = number.to_string();
            if !is_usual(number.as_f64().unwrap_or(0.0)) {
                count(grounded, known.contains(&canonical(text.trim_start_matches('-'))));
            }
        }
        Value::String(text) => visit_text(text, known, grounded),
        Value::Bool(_) | Value::Null => {}
    }
}

fn visit_text(text: &str, known: &BTreeSet<String>, grounded: &mut Grounded) {
    let words: Vec<String> = words(text).collect();
    let is_option = words.len() <= 1
        && text.chars().all(|letter| letter.is_lowercase() || letter == '_' || letter == '-');
    if words.is_empty() || is_option {
        return;
    }
    let found = words.iter().filter(|word| known.contains(*word)).count();
    count(grounded, found as f64 >= WORDS_SHARE * words.len() as f64);
}

fn count(grounded: &mut Grounded, found: bool) {
    grounded.values += 1;
    grounded.found += u32::from(found);
}

/// Whether a model may well choose such a number by itself: small, or a power of ten.
fn is_usual(number: f64) -> bool {
    let size = number.abs();
    size <= 10.0 && size.fract() == 0.0 || [100.0, 1_000.0, 10_000.0].contains(&size)
}

fn words_of(sources: &[&str]) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for source in sources {
        let mut start = source.len().saturating_sub(SOURCE_BYTES_MAX);
        while !source.is_char_boundary(start) {
            start += 1;
        }
        known.extend(words(&source[start..]));
    }
    known
}

/// The words and numbers of a text in lower case; numbers in one spelling.
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|letter: char| !(letter.is_alphanumeric() || letter == '.' || letter == ','))
        .flat_map(|piece| {
            let is_number = piece.starts_with(|letter: char| letter.is_ascii_digit())
                && piece.chars().all(|c| c.is_ascii_digit() || c == '.' || c == ',');
            // A full stop or comma belongs to a number only.
            let separators: &[char] = if is_number { &[] } else { &['.', ','] };
            piece.split(separators).map(|word| word.trim_matches(['.', ',']))
        })
        .filter(|word| !word.is_empty())
        .map(|word| {
            let lower = word.to_lowercase();
            if lower.starts_with(|letter: char| letter.is_ascii_digit()) {
                canonical(&lower)
            } else {
                lower
            }
        })
}

/// A number in one spelling: no thousands separators, no trailing zeros after the point.
pub(crate) fn canonical(number: &str) -> String {
    let plain = number.replace(',', "");
    match plain.split_once('.') {
        Some((whole, after)) => {
            let after = after.trim_end_matches('0');
            if after.is_empty() { whole.to_owned() } else { format!("{whole}.{after}") }
        }
        None => plain,
    }
}
