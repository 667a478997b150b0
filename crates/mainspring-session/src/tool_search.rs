//! Finds tools by what they do: BM25 over their names, descriptions and parameters, with common
//! word endings removed and common verbs of tools taken for one another.
//!
//! Pure and deterministic: the same tools and words give the same order; ties keep the tools' order.
//! Reading starts at [`ToolIndex::search`].

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;
use serde_json::Value;

use crate::spec::ToolSpec;

/// Most tools that one search returns.
pub const FOUND_MAX: usize = 20;
/// Tools that a search returns if it does not say how many.
const FOUND_DEFAULT: usize = 5;
/// Bytes of a query that are looked at.
const QUERY_BYTES_MAX: usize = 2_000;
/// Nesting of a schema that is looked at.
const SCHEMA_DEPTH_MAX: usize = 4;
/// The constants of BM25, at their usual values (Robertson and Zaragoza, "The Probabilistic Relevance
/// Framework: BM25 and Beyond", 2009).
const K1: f64 = 1.2;
const B: f64 = 0.75;
/// How often a word counts by where it stands.
const NAME_COUNT: f64 = 3.0;
const DESCRIPTION_COUNT: f64 = 1.0;
const PARAMETER_COUNT: f64 = 1.0;
const PARAMETER_TEXT_COUNT: f64 = 0.5;
/// What a related word counts against the word itself.
const RELATED_SHARE: f64 = 0.4;
/// Letters that a word has at least to stand for longer words that begin with it.
const PREFIX_CHARS_MIN: usize = 4;
/// Words of the same meaning in the names of tools.
const RELATED: &[&[&str]] = &[
    &["create", "add", "new", "make", "insert", "open", "register"],
    &["delete", "remove", "drop", "erase", "destroy", "clear"],
    &["update", "edit", "modify", "change", "set", "patch", "rename"],
    &["get", "read", "fetch", "show", "view", "retrieve", "load", "look", "lookup"],
    &["list", "enumerate", "all", "show", "view"],
    &["search", "find", "lookup", "query", "look"],
    &["send", "post", "publish", "deliver", "notify", "create"],
    &["email", "mail", "message"],
    &["run", "execute", "start", "launch", "invoke", "trigger"],
    &["stop", "cancel", "abort", "kill", "terminate", "end"],
    &["file", "document", "path"],
    &["folder", "directory", "dir"],
    &["repo", "repository"],
    &["issue", "ticket", "bug"],
    &["event", "meet", "appointment", "calendar", "schedule"],
    &["buy", "purchase", "order", "pay"],
    &["picture", "image", "photo"],
    &["user", "person", "account", "member"],
];

/// An index over tools.
#[derive(Debug, Clone, Default)]
pub struct ToolIndex {
    /// For each word, the tools that have it and how often, in the tools' order.
    words: BTreeMap<String, Vec<(u32, f64)>>,
    /// How many words each tool has.
    lengths: Vec<f64>,
    length_mean: f64,
}

/// The arguments of `tool_search`.
#[derive(Debug, Clone, Deserialize)]
struct Arguments {
    query: String,
    #[serde(default)]
    limit: Option<u64>,
}

impl ToolIndex {
    /// Indexes tools.
    #[must_use]
    pub fn new(tools: &[ToolSpec]) -> Self {
        let mut index = Self::default();
        for (at, tool) in (0..).zip(tools) {
            let mut counts: BTreeMap<String, f64> = BTreeMap::new();
            count(&mut counts, &tool.name, NAME_COUNT);
            count(&mut counts, &tool.description, DESCRIPTION_COUNT);
            if let Ok(schema) = serde_json::from_str::<Value>(tool.parameters.get()) {
                count_schema(&mut counts, &schema, 0);
            }
            index.lengths.push(counts.values().sum());
            for (word, times) in counts {
                index.words.entry(word).or_default().push((at, times));
            }
        }
        let total: f64 = index.lengths.iter().sum();
        index.length_mean = (total / index.lengths.len().max(1) as f64).max(1.0);
        index
    }

    /// The tools that fit a query best, best first, by position; none that has no word of it.
    #[must_use]
    pub fn search(&self, query: &str, limit: usize) -> Vec<usize> {
        let query = &query[..query.floor_char_boundary(QUERY_BYTES_MAX)];
        let mut scores = vec![0.0; self.lengths.len()];
        for (word, weight) in self.terms(query) {
            let Some(found) = self.words.get(word) else { continue };
            let idf = self.rarity(found.len());
            for &(tool, times) in found {
                let length = self.lengths[tool as usize] / self.length_mean;
                let share = times * (K1 + 1.0) / (times + K1 * (1.0 - B + B * length));
                scores[tool as usize] += weight * idf * share;
            }
        }
        let mut best: Vec<usize> = (0..scores.len()).filter(|&at| scores[at] > 0.0).collect();
        best.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        best.truncate(limit.min(FOUND_MAX));
        best
    }

    fn rarity(&self, tools: usize) -> f64 {
        let (all, with) = (self.lengths.len() as f64, tools as f64);
        (1.0 + (all - with + 0.5) / (with + 0.5)).ln()
    }

    /// The words of the index that a query asks for, and how much each counts.
    fn terms(&self, query: &str) -> BTreeMap<&str, f64> {
        let mut terms: BTreeMap<&str, f64> = BTreeMap::new();
        for word in words(query) {
            if let Some((known, _)) = self.words.get_key_value(word.as_str()) {
                *terms.entry(known).or_default() += 1.0;
            }
            let related = RELATED.iter().filter(|group| group.iter().any(|it| stem(it) == word));
            for stemmed in related.flat_map(|group| group.iter()).map(|other| stem(other)) {
                if let Some((known, _)) = self.words.get_key_value(stemmed) {
                    let weight = terms.entry(known).or_default();
                    *weight = weight.max(RELATED_SHARE);
                }
            }
            if word.chars().count() >= PREFIX_CHARS_MIN {
                let longer = self.words.range(word.clone()..);
                for (known, _) in longer.take_while(|(known, _)| known.starts_with(&word)) {
                    let weight = terms.entry(known).or_default();
                    *weight = weight.max(RELATED_SHARE);
                }
            }
        }
        terms
    }

    /// What `tool_search` answers to a call with these arguments: the best tools as JSON, with their
    /// parameters. `tools` are those that were indexed.
    #[must_use]
    pub fn answer(&self, tools: &[ToolSpec], arguments: &str) -> String {
        let Ok(Arguments { query, limit }) = serde_json::from_str(arguments) else {
            return "the arguments are not {\"query\": \"...\"}".to_owned();
        };
        let limit = limit.map_or(FOUND_DEFAULT, |limit| usize::try_from(limit).unwrap_or(0));
        let found = self.search(&query, limit.max(1));
        if found.is_empty() {
            return "no tool has any of these words: say what the tool should do in other words"
                .to_owned();
        }
        let mut text = String::from("{\"tools\":[");
        for (position, tool) in found.iter().filter_map(|&at| tools.get(at)).enumerate() {
            let comma = if position == 0 { "" } else { "," };
            let name = Value::from(tool.name.as_str());
            let description = Value::from(tool.description.as_str());
            let parameters = tool.parameters.get();
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "{comma}{{\"name\":{name},\"description\":{description},\"parameters\":{parameters}}}"
            );
        }
        text.push_str("]}");
        text
    }
}

/// Counts the names and descriptions of a schema's fields.
fn count_schema(counts: &mut BTreeMap<String, f64>, schema: &Value, depth: usize) {
    if depth >= SCHEMA_DEPTH_MAX {
        return;
    }
    let Some(fields) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, field) in fields {
        count(counts, name, PARAMETER_COUNT);
        if let Some(text) = field.get("description").and_then(Value::as_str) {
            count(counts, text, PARAMETER_TEXT_COUNT);
        }
        count_schema(counts, field, depth + 1);
    }
}

fn count(counts: &mut BTreeMap<String, f64>, text: &str, times: f64) {
    for word in words(text) {
        *counts.entry(word).or_default() += times;
    }
}

/// The words of a text: runs of letters and digits, split where a capital follows a small letter,
/// in small letters and without common endings.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find(char::is_alphanumeric)?;
        rest = &rest[start..];
        let mut before = '_';
        let end = rest
            .char_indices()
            .find(|&(_, char)| {
                let ends = !char.is_alphanumeric() || before.is_lowercase() && char.is_uppercase();
                before = char;
                ends
            })
            .map_or(rest.len(), |(at, _)| at);
        let word = rest[..end].to_lowercase();
        rest = &rest[end..];
        Some(stem(&word).to_owned())
    })
    .filter(|word| !STOP.contains(&word.as_str()))
}

/// Words that say nothing of what a tool does.
const STOP: &[&str] = &[
    "a", "an", "the", "to", "of", "in", "on", "for", "and", "or", "with", "by", "is", "it", "that",
    "this", "from", "my", "me", "i", "tool", "be", "can", "which", "what", "as", "at", "into",
];

/// A word without a common ending: `files` and `file` are one word, so are `searching` and `search`.
fn stem(word: &str) -> &str {
    let cut = |ending: &str, letters: usize| {
        word.strip_suffix(ending).filter(|stem| stem.chars().count() >= letters)
    };
    let stem = cut("ing", 4).or_else(|| cut("ed", 4)).or_else(|| {
        let plural = !word.ends_with("ss") && !word.ends_with("us") && !word.ends_with("is");
        if plural { cut("s", 3) } else { None }
    });
    let stem = stem.unwrap_or(word);
    stem.strip_suffix('e').filter(|stem| stem.chars().count() >= 4).unwrap_or(stem)
}
