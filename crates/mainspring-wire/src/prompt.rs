//! What a model is told in its system message beyond the agent's instructions. Kept short: a local
//! model reads tens of tokens a second, and every one of these is read in every session.

use std::fmt::Write;

use crate::node::Node;

/// Nesting that a compact type shows before it says `object`.
const TYPE_DEPTH_MAX: usize = 4;
/// Values of an `enum` that a compact type lists.
const TYPE_VALUES_MAX: usize = 12;
/// Characters of a tool's description that go into the prompt.
const SENTENCE_CHARS_MAX: usize = 200;

/// A tool as the compact prompt needs it.
pub(crate) struct CompactTool<'a> {
    /// The name.
    pub(crate) name: &'a str,
    /// The whole description.
    pub(crate) description: &'a str,
    /// The cleaned schema of its arguments.
    pub(crate) arguments: &'a Node,
}

/// The tool block of `json_schema` tool mode; empty without tools and without an output schema.
pub(crate) fn envelope_prompt(tools: &[CompactTool<'_>], output: Option<&Node>) -> String {
    let answer = match output {
        Some(schema) => format!("{{\"answer\":{}}}", type_of(schema, 0)),
        None => "{\"answer\":\"...\"}".to_owned(),
    };
    if tools.is_empty() {
        return format!("Reply with JSON on one line: {answer}");
    }
    let mut text = String::from("Tools:\n");
    for tool in tools {
        let _ = write!(text, "{}({})", tool.name, fields_of(tool.arguments, 0));
        match first_sentence(tool.description) {
            "" => {}
            sentence => {
                text.push_str(": ");
                text.extend(sentence.chars().take(SENTENCE_CHARS_MAX));
            }
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "Reply with JSON on one line. To use tools, several at once if they are independent: \
         {{\"tool_calls\":[{{\"name\":\"...\",\"arguments\":{{...}}}}]}}\n\
         When the results are enough: {answer}"
    );
    text
}

/// The instruction that stands in for `response_format` where a provider has none.
pub(crate) fn output_prompt(schema: &str) -> String {
    format!(
        "Give the final answer as one JSON value that fits this JSON Schema, and nothing else:\n\
         {schema}"
    )
}

fn first_sentence(description: &str) -> &str {
    let line = description.trim().lines().next().unwrap_or("").trim_end();
    match line.find(". ") {
        Some(end) => &line[..=end],
        None => line,
    }
}

/// `path: string, limit?: integer`
fn fields_of(schema: &Node, depth: usize) -> String {
    let properties = schema.get("properties").and_then(Node::fields).unwrap_or(&[]);
    let required = schema.get("required").and_then(Node::elements).unwrap_or(&[]);
    let mut text = String::new();
    for (name, field) in properties {
        let optional = !required.iter().any(|node| node.as_str() == Some(name));
        let mark = if optional { "?" } else { "" };
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{name}{mark}: {}", type_of(field, depth + 1));
    }
    text
}

/// A cleaned schema as a short type: `string`, `integer[]`, `"a"|"b"`, `{x: number}`.
fn type_of(schema: &Node, depth: usize) -> String {
    if let Some(value) = schema.get("const") {
        return value.to_json();
    }
    if let Some(values) = schema.get("enum").and_then(Node::elements) {
        let shown: Vec<String> = values.iter().take(TYPE_VALUES_MAX).map(Node::to_json).collect();
        let more = if values.len() > TYPE_VALUES_MAX { "|..." } else { "" };
        return format!("{}{more}", shown.join("|"));
    }
    if let Some(options) = schema.get("anyOf").and_then(Node::elements) {
        let options: Vec<String> = options.iter().map(|node| type_of(node, depth)).collect();
        return options.join("|");
    }
    match schema.get("type") {
        Some(Node::Array(names)) => {
            names.iter().filter_map(Node::as_str).collect::<Vec<_>>().join("|")
        }
        Some(name) => match name.as_str() {
            Some("object") if schema.get("properties").is_some() && depth < TYPE_DEPTH_MAX => {
                format!("{{{}}}", fields_of(schema, depth))
            }
            Some("array") if depth < TYPE_DEPTH_MAX => match schema.get("items") {
                Some(items) => format!("{}[]", type_of(items, depth + 1)),
                None => "array".to_owned(),
            },
            Some(name) => name.to_owned(),
            None => "any".to_owned(),
        },
        None => "any".to_owned(),
    }
}
